"""The simulated cluster: a registry, logs, links, nodes that stop, crash and come back, clients that subscribe and publish.

Time is in milliseconds. What decides is the real thing: `policy/members.py`, `failover.py`, `epochs.py`, `table.py`. What the engine
does by message (heartbeats, interest, frozen interest, the barrier, the fence of a log) is modelled here, one rule at a time.
*The invariant*: a publish that was acknowledged is in the log of every partition whose subscription was granted before the publish
was sent. And when the faults are over, every partition is served again.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from policy.sim.rules import RULES
from policy.world import ring_of
from roostmq.errors import PlacementError
from roostmq.model import Epoch, Member, Members, NodeId, PartitionId, PartitionState, PartitionTable, Version
from roostmq.policy import members as votes
from roostmq.policy.epochs import own, serving
from roostmq.policy.failover import disown, next_table
from roostmq.policy.members import Beat, Report
from roostmq.policy.table import empty_table

PARTITIONS = 4
TOPICS = 25
STEP_MS = 250
ANSWER_MS = 1_000


class Violation(Exception):
    """An invariant does not hold."""


@dataclass
class Log:
    """One partition's log: the epoch that it obeys, what is in it, and what its sessions have subscribed to."""

    epoch: int = 0
    messages: set[int] = field(default_factory=set)
    wants: set[int] = field(default_factory=set)
    granted_ms: dict[int, int] = field(default_factory=dict)
    """When a subscription to each topic was granted."""


@dataclass
class Publish:
    """A message on its way."""

    number: int
    topic: int
    sent_ms: int
    missing: set[int]
    """Partitions of which it is not known yet that they need nothing, or have it."""


class Node:
    """One start of a node."""

    def __init__(self, world: World, name: NodeId, incarnation: int) -> None:
        self.world, self.name, self.incarnation = world, name, incarnation
        self.key = (name, incarnation)
        self.alive = True
        self.stopped_until = 0
        self.members = Members(Version(0), ())
        self.starts: frozenset[tuple[NodeId, int]] = frozenset()
        """Of the members."""
        self.beats: dict[Node, deque[tuple[int, int, int, int]]] = {}
        """Heartbeats on their way here: when they come, and what they say. They are read when something depends on them."""
        self.table = world.table
        self.joined = False
        self.heard: dict[tuple[NodeId, int], int] = {}
        self.answered: dict[NodeId, int] = {}
        self.theirs: dict[NodeId, int] = {}
        self.read: dict[NodeId, int] = {}
        self.report: Report | None = None
        self.bound: dict[NodeId, int] = {}
        self.interest: dict[int, tuple[int, NodeId, int, frozenset[int]]] = {}
        """By partition: epoch, owner and its incarnation, wanted."""
        self.frozen: dict[int, int] = {}
        self.owned: dict[int, int] = {}
        self.confirmed: dict[int, set[tuple[NodeId, int]]] = {}
        self.served: dict[int, int] = {}
        self.granting: dict[int, set[int]] = {}
        self.blind_until = 0
        """The registry does not answer this node."""
        self.waiting: list[Publish] = []
        self.change: Callable[[], bool] | None = None
        self.changed_ms = 0
        self.reported_ms = 0

    # ---- helpers

    def running(self) -> bool:
        return self.alive and self.world.now >= self.stopped_until

    def knows(self, other: Node) -> bool:
        return other.key in self.starts

    def read_beats(self) -> None:
        """All that have come."""
        now = self.world.now
        for sender, coming in self.beats.items():
            while coming and coming[0][0] <= now:
                at, told, given, version = coming.popleft()
                if sender.key in self.starts:
                    name = sender.name
                    self.heard[sender.key] = max(at, self.stopped_until) if self.stopped_until <= now else at
                    self.theirs[name] = told
                    if given > self.answered.get(name, -10_000):
                        self.answered[name] = given
                    self.read[name] = version

    def may_acknowledge(self) -> bool:
        if "majority" not in self.world.rules:
            return True
        if self.key not in self.starts:
            return False
        self.read_beats()
        since, fresh = self.world.now - ANSWER_MS, 1
        for name, _ in self.starts:
            if name != self.name and self.answered.get(name, -10_000) > since:
                fresh += 1
        return fresh > len(self.starts) // 2

    # ---- the step, four times a second

    def step(self) -> None:
        w = self.world
        self.read_beats()
        up = w.registry_up and w.now >= self.blind_until
        if self.change is not None and up:
            change, self.change = self.change, None
            change()
        if up:
            w.renewed[self.key] = w.now
            self.read_registry()
        if not self.alive:
            return
        for other in w.living():
            if other is not self and self.knows(other):
                given = self.bound.get(other.name, self.theirs.get(other.name, -10_000))
                w.beat(self, other, (w.now, given, self.members.version))
        if up and self.change is None:
            self.decide()
        self.speak()
        self.settle()

    def read_registry(self) -> None:
        w = self.world
        if w.members.version != self.members.version:
            before, self.members = self.members, w.members
            self.starts = frozenset((m.node, m.incarnation) for m in w.members.nodes)
            self.changed_ms = w.now
            self.bound = {}
            for m in before.nodes:
                if (m.node, m.incarnation) not in self.starts and m.node != self.name:
                    self.freeze(m.node, m.incarnation)
        if not self.joined and self.key in self.starts:
            self.joined = True
        elif self.joined and self.key not in self.starts:
            w.restart(self)
            return
        if self.joined:
            self.table = w.table
            for p, a in enumerate(self.table.partitions):
                if a.owner == self.name and self.owned.get(p, 0) < a.epoch:
                    self.owned[p] = a.epoch
                    self.served.pop(p, None)
                    self.confirmed.pop(p, None)
                    w.after(w.rng.randint(20, 400), lambda p=p, e=a.epoch: self.fence(p, e))
                elif a.owner != self.name and p in self.owned:
                    self.owned.pop(p)
                    self.served.pop(p, None)
                    self.confirmed.pop(p, None)

    def freeze(self, name: NodeId, incarnation: int) -> None:
        for p, (epoch, owner, start, _) in list(self.interest.items()):
            if (owner, start) == (name, incarnation):
                if "frozen" in self.world.rules:
                    self.frozen[p] = epoch + 1
                else:
                    self.interest[p] = (epoch, owner, start, frozenset())

    def decide(self) -> None:
        w = self.world
        if not self.joined:
            w.joins[self.name] = self.member()
            if all(w.lapsed(m) for m in self.members.nodes):
                self.change = self.compare("members", self.members, self.alone)
            return
        beats = self.heard_of()
        made = votes.report(self.members, self.name, self.incarnation, beats, self.report)
        if self.report is None or made.silent != self.report.silent:
            self.reported_ms = w.now
        self.report = made
        if "bind" in w.rules:
            self.bound = {n: self.bound.get(n, self.theirs.get(n, -10_000)) for n in made.silent}
        w.reports[self.name] = made
        gone = votes.voted_out(self.members, w.reports)
        if "votes" not in w.rules and made.silent:
            gone = made.silent[0]
        heard = 1 + sum(b.heard_ms <= votes.SILENT_MS for b in beats)
        if gone is None and heard < self.members.majority:
            over = next((m.node for m in self.members.nodes if m.node != self.name and w.lapsed(m)), None)
            if over is not None:
                self.change = self.compare("members", self.members, lambda m: votes.without(m, over))
                return
        if gone is not None and (votes.read_by_majority(self.members, beats) or "votes" not in w.rules):
            self.change = self.compare("members", self.members, lambda m: votes.without(m, gone))
            return
        reported = {n for r in w.reports.values() if r.version == self.members.version for n in r.silent}
        if votes.acting(self.members, reported) == self.name:
            self.act(beats)

    def heard_of(self) -> list[Beat]:
        """What the engine would tell of the others."""
        now, changed_ms = self.world.now, self.changed_ms
        return [
            Beat(key[0], now - self.heard.get(key, changed_ms), self.read.get(key[0], 0))
            for key in self.starts
            if key != self.key
        ]

    def act(self, beats: list[Beat]) -> None:
        w = self.world
        settled = votes.read_by_majority(self.members, beats)
        silent = self.report.silent if self.report else ()
        back = all(b.heard_ms < votes.SILENT_MS for b in beats if b.node in silent)
        if silent and back and settled and w.now - self.reported_ms > 5_000:
            self.change = self.compare("members", self.members, votes.renewed)
            return
        for wish in list(w.joins.values()):
            free = self.members.find(wish.node) is None and not any(a.owner == wish.node for a in w.table.partitions)
            if free and settled and (made := self.let_in(self.members, wish)) is not None:
                self.change = self.compare("members", self.members, lambda _, made=made: made)
                return
        quiet = w.now - self.changed_ms
        made = w.next_table(self.table, self.members, quiet > 1_000, quiet > 5_000)
        news = {
            PartitionId(p): Epoch(e)
            for p, e in w.told.items()
            if made.partitions[p].epoch == e and made.partitions[p].state is PartitionState.RECOVERING
        }
        if news and made.version == self.table.version:
            made = serving(made, news)
        moving = [PartitionId(p) for p, a in enumerate(made.partitions) if a.state is PartitionState.MOVING]
        if moving and made.version == self.table.version:
            made = own(made, moving[0])  # what it knew beside the log is not modelled: the target reads that
        if made.version != self.table.version:
            self.change = self.compare("table", self.table, lambda _, made=made: made)

    def let_in(self, members: Members, wish: Member) -> Members | None:
        if "twice" in self.world.rules:
            return votes.joined(members, wish)
        return votes.joined(replace(members, past=()), wish)

    def alone(self, members: Members) -> Members:
        w = self.world
        w.table = disown(w.table, self.name)
        made = votes.joined(replace(members, nodes=()), self.member())
        return made if made is not None else members

    def member(self) -> Member:
        return Member(self.name, self.incarnation, "x:1", slot=w_slot(self.name))

    def compare(self, what: str, seen: Any, make: Callable[[Any], Any]) -> Callable[[], bool]:
        """A compare-and-set that is carried out with the next step: others may be first."""

        def write() -> bool:
            w = self.world
            if getattr(w, what).version != seen.version:
                return False
            made = make(seen)
            if made.version != seen.version:
                setattr(w, what, made)
            return True

        return write

    # ---- what the engine does

    def fence(self, p: int, epoch: int) -> None:
        """The log obeys this epoch from now on; what it says is known here."""
        if not self.running() or self.owned.get(p) != epoch:
            if self.alive and self.owned.get(p) == epoch:
                self.world.after(STEP_MS, lambda: self.fence(p, epoch))
            return
        log = self.world.logs[p]
        if epoch < log.epoch:
            return
        log.epoch = epoch
        self.confirmed[p] = {self.key}
        self.learn(p, epoch, self.key, frozenset(log.wants))
        self.speak()

    def speak(self) -> None:
        """Everybody is told what the own partitions want, until everybody has confirmed it."""
        w = self.world
        for p, confirmed in self.confirmed.items():
            if self.starts <= confirmed and self.served.get(p) == self.owned[p] and p not in self.granting:
                continue
            wants = frozenset(w.logs[p].wants)
            for other in w.living():
                fresh = other.key not in confirmed
                if other is not self and self.knows(other) and fresh:
                    w.send(self, other, "interest", (p, self.owned[p], wants, self.table.version))
            if "barrier" not in w.rules or self.starts <= confirmed:
                self.served[p] = self.owned[p]
                w.told[p] = self.owned[p]
                if w.logs[p].epoch == self.owned[p]:
                    for topic in self.granting.pop(p, ()):
                        w.logs[p].granted_ms.setdefault(topic, w.now)

    def subscribe(self, p: int, topic: int) -> None:
        """A client of a partition that is served here wants a topic."""
        log = self.world.logs[p]
        if self.served.get(p) != self.owned.get(p) or topic in log.wants or log.epoch != self.owned.get(p):
            return
        log.wants.add(topic)
        self.granting.setdefault(p, set()).add(topic)
        self.confirmed[p] = {self.key}
        self.learn(p, self.owned[p], self.key, frozenset(log.wants))
        self.speak()

    def learn(self, p: int, epoch: int, owner: tuple[NodeId, int], wants: frozenset[int]) -> None:
        known = self.interest.get(p)
        if known is not None and known[0] > epoch:
            return
        self.interest[p] = (epoch, *owner, wants)
        if self.frozen.get(p, 0) <= epoch:
            self.frozen.pop(p, None)

    def receive(self, sender: Node, what: str, body: Any) -> None:
        w = self.world
        if not self.knows(sender):
            return
        if what == "interest":
            p, epoch, wants, table = body
            if table > self.table.version:
                return  # it is told again
            self.learn(p, epoch, sender.key, wants)
            w.send(self, sender, "confirm", (p, epoch, wants))
        elif what == "confirm":
            p, epoch, wants = body
            if self.owned.get(p) == epoch and p in self.confirmed and wants >= w.logs[p].wants:
                self.confirmed[p].add(sender.key)
        elif what == "append":
            p, epoch, number = body
            log = w.logs[p]
            if self.owned.get(p) == epoch and (log.epoch == epoch or "fence" not in w.rules):
                if log.epoch == epoch:
                    log.messages.add(number)
                w.send(self, sender, "appended", (p, number))
        elif what == "appended":
            p, number = body
            for m in self.waiting:
                if m.number == number:
                    m.missing.discard(p)

    def publish(self, number: int) -> None:
        topic = int(self.world.rng.random() * TOPICS)
        self.waiting.append(Publish(number, topic, self.world.now, set(range(PARTITIONS))))
        self.settle()

    def settle(self) -> None:
        """Every partition needs it or not; what needs it is asked again and again; then it is acknowledged."""
        w = self.world
        for m in list(self.waiting):
            for p in list(m.missing):
                known = self.interest.get(p)
                if p in self.frozen or (known is None and "cover" in w.rules):
                    continue
                if known is None or m.topic not in known[3]:
                    m.missing.discard(p)
                elif (owner := w.find(known[1], known[2])) is not None:
                    w.send(self, owner, "append", (p, known[0], m.number))
            if not m.missing and self.may_acknowledge():
                self.waiting.remove(m)
                w.acknowledged(m, self)


def w_slot(name: NodeId) -> int:
    return ord(name[0]) - ord("a")


class World:
    """Everything, and the clock."""

    def __init__(self, seed: int, without: frozenset[str] = frozenset(), nodes: int = 3) -> None:
        self.rng = random.Random(seed)
        self.rules = set(RULES) - without
        self.now = 0
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.members = Members(Version(0), ())
        self.table: PartitionTable = empty_table(PARTITIONS, "k")
        self.reports: dict[NodeId, Report] = {}
        self.joins: dict[NodeId, Member] = {}
        self.told: dict[int, int] = {}
        self.logs = [Log() for _ in range(PARTITIONS)]
        self.registry_up = True
        self.up_since = 0
        self.renewed: dict[tuple[NodeId, int], int] = {}
        self.last_ms: dict[tuple[int, int], int] = {}
        self.plans: dict[tuple[int, int, bool, bool], tuple[PartitionTable, PartitionTable]] = {}
        self.cut: set[frozenset[NodeId]] = set()
        self.nodes: dict[NodeId, Node] = {}
        self.starts = 0
        self.number = 0
        self.acks = 0
        self.faults = True
        for name in "abcdef"[:nodes]:
            self.start(NodeId(name))

    def after(self, ms: int, what: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.queue, (self.now + ms, self.count, what))

    def living(self) -> list[Node]:
        return [n for n in self.nodes.values() if n.alive]

    def find(self, name: NodeId, incarnation: int) -> Node | None:
        node = self.nodes.get(name)
        return node if node is not None and node.alive and node.incarnation == incarnation else None

    def lapsed(self, m: Member) -> bool:
        """Its lease is over: the registry could be reached for long enough, and it has not renewed its entry."""
        since = max(self.renewed.get((m.node, m.incarnation), 0), self.up_since)
        return self.now - since > votes.LEASE_MS

    def start(self, name: NodeId) -> None:
        self.starts += 1
        node = Node(self, name, self.starts)
        self.nodes[name] = node
        self.after(self.rng.randint(1, STEP_MS), lambda: self.tick(node))

    def restart(self, node: Node) -> None:
        node.alive = False
        self.after(self.rng.randint(100, 1_500), lambda: self.start(node.name))

    def tick(self, node: Node) -> None:
        if not node.alive:
            return
        if node.running():
            node.step()
            self.after(STEP_MS - 20 + int(self.rng.random() * 41), lambda: self.tick(node))
        else:
            self.after(max(1, node.stopped_until - self.now), lambda: self.tick(node))

    def send(self, a: Node, b: Node, what: str, body: Any) -> None:
        if a is b:
            return b.receive(a, what, body)
        if frozenset((a.name, b.name)) in self.cut:
            return
        self.after(self.comes_at(a, b) - self.now, lambda: self.deliver(a, b, what, body))

    def beat(self, a: Node, b: Node, body: tuple[int, int, int]) -> None:
        """As `send`."""
        if frozenset((a.name, b.name)) not in self.cut:
            b.beats.setdefault(a, deque()).append((self.comes_at(a, b), *body))

    def comes_at(self, a: Node, b: Node) -> int:
        """When something that is sent now comes: in order, as on a real link."""
        link = (a.incarnation, b.incarnation)
        at = self.last_ms[link] = max(self.last_ms.get(link, 0), self.now + 1 + int(self.rng.random() * 15))
        return at

    def deliver(self, a: Node, b: Node, what: str, body: Any) -> None:
        if not b.alive:
            return
        if b.running():
            b.receive(a, what, body)
        else:
            self.after(b.stopped_until - self.now, lambda: self.deliver(a, b, what, body))

    def acknowledged(self, m: Publish, node: Node) -> None:
        self.acks += 1
        for p, log in enumerate(self.logs):
            granted_ms = log.granted_ms.get(m.topic, m.sent_ms)
            if granted_ms < m.sent_ms and m.number not in log.messages:
                raise Violation(
                    f"{self.now} ms: {node.name} acknowledged #{m.number}, sent at {m.sent_ms}, but partition {p}, "
                    f"granted at {granted_ms}, has it not"
                )

    def next_table(self, table: PartitionTable, members: Members, calm: bool, settled: bool) -> PartitionTable:
        """As the policy says; asked again and again, it says the same."""
        asked = (id(table), members.version, calm, settled)
        if asked not in self.plans:
            try:
                made = next_table(table, members, ring_of(members.nodes), calm=calm, settled=settled)
            except PlacementError:
                made = table
            self.plans[asked] = (table, made)
        return self.plans[asked][1]

    # ---- what befalls it

    def client(self) -> None:
        nodes = [n for n in self.living() if n.running() and n.joined]
        if nodes:
            node = self.rng.choice(nodes)
            if self.rng.random() < 0.1:
                mine = list(node.served)
                if mine:
                    node.subscribe(self.rng.choice(mine), self.rng.randrange(TOPICS))
            else:
                self.number += 1
                node.publish(self.number)
        self.after(20 + int(self.rng.random() * 280), self.client)

    def fault(self) -> None:
        if not self.faults:
            return
        nodes = self.living()
        draw = self.rng.random()
        if nodes and draw < 0.3:
            self.restart(self.rng.choice(nodes))
        elif nodes and draw < 0.65:
            self.rng.choice(nodes).stopped_until = self.now + self.rng.choice((300, 900, 1_400, 2_500, 6_000))
        elif draw < 0.75 and nodes:
            self.isolate(self.rng.choice(nodes), self.rng.randint(1_000, 8_000))
        elif draw < 0.88:
            names = list(self.nodes)
            pair = frozenset(self.rng.sample(names, 2))
            self.cut.add(pair)
            self.after(self.rng.randint(300, 8_000), lambda: self.cut.discard(pair))
        else:
            self.registry_up = False
            self.after(self.rng.randint(300, 8_000), self.registry_back)
        self.after(self.rng.randint(500, 9_000), self.fault)

    def isolate(self, node: Node, ms: int) -> None:
        """Nothing reaches it and it reaches nothing, but its clients do."""
        pairs = {frozenset((node.name, other)) for other in self.nodes if other != node.name}
        self.cut |= pairs
        node.blind_until = self.now + ms + self.rng.choice((0, 500, 1_500))
        self.after(ms, lambda: self.cut.difference_update(pairs))

    def registry_back(self) -> None:
        if not self.registry_up:
            self.registry_up, self.up_since = True, self.now

    def run(self, seconds: int) -> None:
        """Faults for so long, then peace; raises Violation."""
        self.after(3_000, self.client)
        self.after(6_000, self.fault)
        self._until(seconds * 1_000)
        self.faults = False
        self.cut.clear()
        self.registry_back()
        self._until(self.now + 40_000)
        served = all(
            (n := self.nodes.get(a.owner)) is not None and n.alive and n.served.get(p) == a.epoch
            for p, a in enumerate(self.table.partitions)
            if a.owner is not None
        )
        if not served or any(a.owner is None for a in self.table.partitions):
            raise Violation(f"{self.now} ms: the faults are over and not every partition is served")

    def _until(self, end: int) -> None:
        while self.queue and self.queue[0][0] <= end:
            self.now, _, what = heapq.heappop(self.queue)
            what()
        self.now = end
