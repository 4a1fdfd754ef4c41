"""A node of the simulated cluster: the real policies decide, what the engine does by message is modelled, one rule at a time."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from roostmq.model import Epoch, Member, Members, NodeId, PartitionId, PartitionState, Version
from roostmq.policy import members as votes
from roostmq.policy.epochs import call_off, own, serving
from roostmq.policy.failover import disown
from roostmq.policy.members import Beat, Report

if TYPE_CHECKING:
    from policy.sim.cluster import World

PARTITIONS = 4
TOPICS = 25
STEP_MS = 250
ANSWER_MS = 1_000


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
        self.read_as = False
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
        self.was_idle: tuple[Any, ...] | None = None
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
        if (self.joined and self.table is not w.table) or self.read_as != self.joined:
            self.table, self.read_as = w.table, self.joined
            for p, a in enumerate(self.table.partitions):
                if a.owner == self.name and self.owned.get(p, 0) < a.epoch:
                    self.owned[p] = a.epoch
                    self.served.pop(p, None)
                    self.confirmed.pop(p, None)
                    w.after(w.rng.randint(20, 400), functools.partial(self.fence, p, a.epoch))
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

    def inputs(self) -> tuple[Any, ...]:
        """All that a decision depends on: where it was the same and nothing was to be done, nothing is to be done now."""
        w, now, version = self.world, self.world.now, self.members.version
        since, read = now - votes.SILENT_MS, self.read
        silent = tuple(key for key in self.starts if self.heard.get(key, self.changed_ms) < since and key != self.key)
        behind = tuple(name for name, _ in self.starts if read.get(name, 0) < version and name != self.name)
        quiet, report = now - self.changed_ms, self.report
        late = lapsed = None
        if silent or not self.joined or (report is not None and report.silent):
            late = now - self.reported_ms > 5_000
            lapsed = tuple(map(w.lapsed, self.members.nodes))
        versions = (w.news, version, self.table.version, self.joined, report is None)
        return (*versions, silent, behind, quiet > 1_000, quiet > 5_000, late, lapsed)

    def decide(self) -> None:
        inputs = self.inputs()
        if inputs != self.was_idle:
            self.decide_anew()
            self.was_idle = self.inputs() if self.change is None else None

    def decide_anew(self) -> None:
        w = self.world
        if not self.joined:
            if w.joins.get(self.name) != (me := self.member()):
                w.joins[self.name], w.news = me, w.news + 1
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
        if w.reports.get(self.name) != made:
            w.reports[self.name], w.news = made, w.news + 1
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
                self.change = self.compare("members", self.members, lambda _: made)
                return
        quiet = w.now - self.changed_ms
        table = w.next_table(self.table, self.members, quiet > 1_000, quiet > 5_000)
        news = {
            PartitionId(p): Epoch(e)
            for p, e in w.told.items()
            if table.partitions[p].epoch == e and table.partitions[p].state is PartitionState.RECOVERING
        }
        if news and table.version == self.table.version:
            table = serving(table, news)
        moving = [PartitionId(p) for p, a in enumerate(table.partitions) if a.state is PartitionState.MOVING]
        if moving and table.version == self.table.version:
            # what it knew beside the log is not modelled: the target reads that; without one the owner serves on
            there = table.partitions[moving[0]].target in {m.node for m in self.members.nodes}
            table = (own if there else call_off)(table, moving[0])
        if table.version != self.table.version:
            self.change = self.compare("table", self.table, lambda _: table)

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
                w.news += 1
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
                w.news += w.told.get(p) != self.owned[p]
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
