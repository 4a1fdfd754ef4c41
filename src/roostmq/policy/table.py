"""The partition table: who owns what, and the fewest moves to what should be.

*The ring proposes, quotas dispose.* Each node's quota is the floor or the ceiling of `P * weight / sum(weights)`. A
partition stays where it is unless its owner is over quota, draining or gone; then it goes to the first node of its
preference list that has room. So a change moves as few partitions as can be moved (a node more: P/N of them), and the
fullest node has at most one partition more than its share, whatever happened before.

Everything here is a value made from values: `plan` says what should move, `epochs.py` writes it into a table, and
only the compare-and-set of that table makes it true. A partition that is on its way already (state MOVING) counts for
its target, or for its owner if that is gone, and is not moved again. Standbys follow in the preference list, of another
zone first; each node is standby of about as many partitions as it owns, and a standby stays one as long as it may.

Source: 30-cluster section 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from roostmq.errors import PlacementError
from roostmq.model import Assignment, Epoch, Member, NodeId, PartitionId, PartitionState, PartitionTable, Version
from roostmq.policy.quota import quotas
from roostmq.policy.ring import Ring, start_of
from roostmq.policy.standbys import choose_standbys

NEW = Epoch(0)
PARTITIONS_MAX = 1 << 15
"""The engine knows no more."""


@dataclass(frozen=True, slots=True)
class Move:
    """One partition that changes its owner."""

    partition: PartitionId
    source: NodeId | None
    """Who has it and can hand it over. None: nobody, it is new or its node is gone, so the target reads the log."""
    target: NodeId


@dataclass(frozen=True, slots=True)
class Plan:
    """What should move, and what the table then says."""

    version: Version
    """Of the table from which it was made; it fits no other."""
    moves: tuple[Move, ...]
    """By partition."""
    standbys: tuple[tuple[NodeId, ...], ...]
    """By partition, once everything has moved."""

    @property
    def share(self) -> float:
        """Share of all clients (K) that moves, 0 to 1: that of the partitions, as ids spread evenly over them."""
        return len(self.moves) / len(self.standbys)


def empty_table(partitions: int, key_id: str, epoch: Epoch = NEW) -> PartitionTable:
    """The table of `cluster init`: nobody owns anything yet; `epoch` is that of the logs.

    Raises PlacementError if the number is not a power of two from 1 to 32,768.
    """
    if not 1 <= partitions <= PARTITIONS_MAX or partitions & (partitions - 1):
        raise PlacementError(f"{partitions} partitions: a power of two from 1 to {PARTITIONS_MAX} is needed")
    return PartitionTable(Version(1), key_id, (Assignment(None, epoch),) * partitions)


def plan(
    table: PartitionTable,
    members: Sequence[Member],
    ring: Ring,
    standbys: int = 1,
    pins: Mapping[PartitionId, NodeId] | None = None,
) -> Plan:
    """What should move so that these members own what they should; a table that is as it should be moves nothing.

    First table, join, leave, drain, another weight: all are this one comparison. `ring` is that of the same members.
    `pins` go before quotas: these partitions belong to these nodes, which may own something.
    Raises PlacementError as `quota.fair_shares`.
    """
    nodes = {m.node: m for m in members}
    count = len(table.partitions)
    stay = [_holder(a, nodes) for a in table.partitions]
    under_way = {p for p, a in enumerate(table.partitions) if a.state is PartitionState.MOVING}
    fixed = {p: node for p, node in (pins or {}).items() if p < count and p not in under_way}
    for pinned, node in fixed.items():
        stay[pinned] = node
    held = Counter(node for node in stay if node is not None)
    quota = quotas(count, members, held, Counter(fixed.values()))
    room = {node: quota.get(node, 0) - held[node] for node in nodes}
    owners = _dispose(stay, room, ring, table.roots, under_way | fixed.keys())
    moves = tuple(
        Move(PartitionId(p), a.owner if a.owner in nodes else None, owner)
        for p, (a, owner) in enumerate(zip(table.partitions, owners, strict=True))
        if owner != a.owner and not (p in under_way and a.owner in nodes)
    )
    return Plan(table.version, moves, choose_standbys(table, owners, members, ring, standbys))


def _holder(a: Assignment, nodes: Container[NodeId]) -> NodeId | None:
    """The member that has a partition, or will have it when its move has ended; None: nobody has."""
    if a.state is PartitionState.MOVING and a.target in nodes:
        return a.target
    return a.owner if a.owner in nodes else None


def _dispose(
    stay: list[NodeId | None], room: dict[NodeId, int], ring: Ring, roots: int, under_way: Container[int]
) -> list[NodeId]:
    """The owner of each partition; `room` is how many more each node may have, negative if it must give some away.

    Who has to give away gives what is nearest to a node with room. Rooms only shrink, so what found no room at a
    node once finds none later; and there is as much room as there are partitions without a node.
    """
    owners = list(stay)
    loose = [p for p, node in enumerate(stay) if node is None or (room[node] < 0 and p not in under_way)]
    near = {p: list(ring.walk(start_of(p, roots))) for p in loose}
    for rank in range(ring.size):
        for p in loose:
            source, target = stay[p], near[p][rank]
            if owners[p] != source or room.get(target, 0) <= 0 or (source is not None and room[source] >= 0):
                continue
            owners[p] = target
            room[target] -= 1
            if source is not None:
                room[source] += 1
    placed = [node for node in owners if node is not None]
    if len(placed) < len(stay):
        raise PlacementError("the ring has other nodes than the members: build it from the same members")
    return placed


def heir(a: Assignment, load: Mapping[NodeId, float], living: Sequence[NodeId]) -> NodeId | None:
    """Who takes a partition whose owner is gone: the least loaded of its standbys and its move's target that live.

    None of them lives: the least loaded of all, which has to read the log from its checkpoint. `load` is by node, in
    any unit (partitions owned over weight, or CPU); of equal ones the first is taken. None: nobody lives.
    """
    warm = [node for node in (a.target, *a.standbys) if node is not None and node in living]
    return min(warm or living, key=lambda node: load.get(node, 0.0), default=None)
