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
from typing import Any

from policy.sim.node import PARTITIONS, STEP_MS, TOPICS, Log, Node, Publish
from policy.sim.rules import RULES
from policy.world import ring_of
from roostmq.errors import PlacementError
from roostmq.model import Member, Members, NodeId, PartitionTable, Version
from roostmq.policy import members as votes
from roostmq.policy.failover import next_table
from roostmq.policy.members import Report
from roostmq.policy.table import empty_table


class Violation(Exception):
    """An invariant does not hold."""


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
        self.news = 0
        """Counts changes of what decisions depend on."""
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
