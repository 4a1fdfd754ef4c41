"""Standbys: who follows the log of each partition, to own it within seconds if its owner dies.

A standby is the better, in this order of importance,

1. in a zone that neither the owner nor another standby of the partition is in,
2. on a node that has no more standbys than its share of all,
3. on a node that has no more than its share of *this owner's*, so that many inherit from it and none is flooded,
4. the earlier in the preference list.

A present standby stays unless another node is better by the first three. Each such change makes the whole better in
the most important thing that it changes, so it ends, and a table whose standbys are chosen is not changed again.

Source: 30-cluster section 1 ("next nodes in the list, another zone first").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil

from roostmq.model import Member, NodeId, PartitionTable
from roostmq.policy.quota import fair_shares
from roostmq.policy.ring import Ring, start_of

Faults = tuple[bool, bool, bool]
"""What speaks against a node, the most important first: its zone, all its standbys, those of this owner."""
ROUNDS_MAX = 100
"""Two or three are usual; should there ever be more, what is found by then is as good a table."""


def choose_standbys(
    table: PartitionTable, owners: Sequence[NodeId | None], members: Sequence[Member], ring: Ring, each: int
) -> tuple[tuple[NodeId, ...], ...]:
    """By partition: `each` standbys, or as many as there are nodes for, if these are the owners; None: of nobody.

    A draining node is standby of nothing. Raises PlacementError as `quota.fair_shares`.
    """
    choice = _Choice(owners, members, each)
    for p, a in enumerate(table.partitions):
        for node in dict.fromkeys(a.standbys):
            if node in choice.zones and node != owners[p] and len(choice.found[p]) < each:
                choice.put(p, len(choice.found[p]), node)
    near: dict[int, list[NodeId]] = {}
    for _ in range(ROUNDS_MAX):
        changed = False
        for p, owner in enumerate(owners):
            for place in range(min(each, len(choice.zones) - (owner in choice.zones))):
                now = choice.faults_of(p, place)
                if now is None or any(now):
                    if p not in near:
                        near[p] = [node for node in ring.walk(start_of(p, table.roots)) if node in choice.zones]
                    changed |= choice.improve(p, place, now, near[p])
        if not changed:
            break
    return tuple(choice.ordered(p) for p in range(len(owners)))


class _Choice:
    """The standbys while they are chosen, and how many each node has."""

    def __init__(self, owners: Sequence[NodeId | None], members: Sequence[Member], each: int) -> None:
        self.owners = owners
        self.zones = {m.node: m.zone for m in members if not m.draining}
        self.homes: dict[NodeId | None, str] = {m.node: m.zone for m in members}
        self.limits = {node: ceil(share * each) for node, share in fair_shares(len(owners), members).items()}
        self.load: Counter[NodeId] = Counter()
        self.pairs: Counter[tuple[NodeId | None, NodeId]] = Counter()
        self.found: list[list[NodeId]] = [[] for _ in owners]
        zones = Counter(self.zones.values())
        self.most = {}
        """By owner: how many of its standbys one node should have at most."""
        for owner, owned in Counter(owners).items():
            others = len(self.zones) - zones[self.homes[owner]] if owner in self.homes else len(self.zones)
            self.most[owner] = ceil(owned * each / (others or max(1, len(self.zones) - 1)))

    def put(self, p: int, place: int, node: NodeId) -> None:
        """Make a node the standby at this place of a partition, instead of who was there."""
        found, owner = self.found[p], self.owners[p]
        for old in found[place : place + 1]:
            self.load[old] -= 1
            self.pairs[owner, old] -= 1
        found[place : place + 1] = [node]
        self.load[node] += 1
        self.pairs[owner, node] += 1

    def ordered(self, p: int) -> tuple[NodeId, ...]:
        """The standbys of a partition, those outside its owner's zone first."""
        home = self.homes.get(self.owners[p])
        return tuple(sorted(self.found[p], key=lambda node: self.zones[node] == home))

    def used(self, p: int, place: int) -> set[str | None]:
        """The zones of the owner and of the other standbys."""
        return {self.homes.get(self.owners[p]), *(self.zones[n] for i, n in enumerate(self.found[p]) if i != place)}

    def faults_of(self, p: int, place: int) -> Faults | None:
        """What speaks against the present standby; None if there is none."""
        if place >= len(self.found[p]):
            return None
        node, owner = self.found[p][place], self.owners[p]
        return (
            self.zones[node] in self.used(p, place),
            self.load[node] > self.limits[node],
            self.pairs[owner, node] > self.most[owner],
        )

    def improve(self, p: int, place: int, now: Faults | None, near: Sequence[NodeId]) -> bool:
        """Put the best node there, if it is better than what is there now."""
        owner, used = self.owners[p], self.used(p, place)

        def faults(node: NodeId) -> Faults:
            full = self.load[node] >= self.limits[node], self.pairs[owner, node] >= self.most[owner]
            return self.zones[node] in used, *full

        free = [node for node in near if node != owner and node not in self.found[p]]
        best = min(free, key=faults, default=None)
        if best is None or (now is not None and faults(best) >= now):
            return False
        self.put(p, place, best)
        return True
