"""What the acting member does with the table: the first owners, heirs of who is gone, and back to balance.

A pure comparison of table and members, repeated until nothing is left to do: whatever was interrupted is seen again.
Each result is for a compare-and-set on the table it was made from.

Source: 30-cluster sections 1, 2, 7.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from roostmq.model import Epoch, Member, Members, NodeId, PartitionState, PartitionTable, Version, Wishes
from roostmq.policy.epochs import announce, apply, begin_cut, take_over
from roostmq.policy.quota import fair_shares
from roostmq.policy.ring import Ring
from roostmq.policy.table import Move, Plan, plan
from roostmq.policy.wishes import pins_that_hold


def next_table(
    table: PartitionTable, members: Members, ring: Ring, wishes: Wishes | None = None, *, calm: bool, settled: bool
) -> PartitionTable:
    """The table after the next step; the same if nothing is to be done.

    `calm`: no member has come or gone for a moment, so partitions without an owner are given out. `settled`: for
    longer, so partitions may move although their owners live: a few at a time, each by hand-over. Who is asked to
    leave need not wait for that.
    """
    nodes = members.nodes
    if not nodes:
        return table
    taken = take_over(table, nodes, ring, _load(table, nodes))
    if taken.version != table.version:
        return taken
    if not calm or all(m.draining for m in nodes):
        return table
    wishes = wishes or Wishes()
    wanted = plan(table, nodes, ring, pins=pins_that_hold(wishes, members))
    orphans = tuple(m for m in wanted.moves if m.source is None)
    if orphans:
        return apply(table, _only(wanted, table, orphans))
    at_rest = all(a.state is not PartitionState.RECOVERING for a in table.partitions)
    leaving = any(m.draining for m in nodes)
    if settled and not leaving and len(table.partitions) < wishes.split_to and not _starves(table, nodes):
        serves = all(a.state is PartitionState.SERVING for a in table.partitions)
        return begin_cut(table) if serves and not wishes.paused else table
    if (settled or leaving) and at_rest and wanted.moves:
        return announce(table, wanted, 0 if wishes.paused else wishes.at_once)
    return table


def _only(wanted: Plan, table: PartitionTable, moves: tuple[Move, ...]) -> Plan:
    """Some moves of a plan; what stays for now keeps its standbys."""
    moved = {m.partition for m in moves}
    standbys = tuple(
        found if p in moved or a.owner not in found else tuple(n for n in found if n != a.owner)
        for p, (found, a) in enumerate(zip(wanted.standbys, table.partitions, strict=True))
    )
    return replace(wanted, moves=moves, standbys=standbys)


def _starves(table: PartitionTable, nodes: tuple[Member, ...]) -> bool:
    """Has a node less than half of its share? Then balance comes before cuts.

    Otherwise it waits for them: who has cut more of its partitions than others so far would have to give some away.
    """
    held = Counter(a.target or a.owner for a in table.partitions)
    return any(2 * held[node] < share for node, share in fair_shares(len(table.partitions), nodes).items())


def _load(table: PartitionTable, nodes: tuple[Member, ...]) -> dict[NodeId, float]:
    load: dict[NodeId, float] = {m.node: 0.0 for m in nodes}
    weights = {m.node: m.weight for m in nodes}
    for a in table.partitions:
        if a.owner in load:
            load[a.owner] += 1.0 / weights[a.owner]
    return load


def has_returned(before: PartitionTable, after: PartitionTable) -> bool:
    """Has a move come to nothing: it was under way, and its owner has the partition still?"""
    return len(before.partitions) == len(after.partitions) and any(
        a.state is PartitionState.MOVING and b.state is not PartitionState.MOVING and a.owner == b.owner
        for a, b in zip(before.partitions, after.partitions, strict=True)
    )


def disown(table: PartitionTable, node: NodeId) -> PartitionTable:
    """A node comes back that the table gives something to: another start of it has to fence the logs anew."""
    changed = tuple(
        replace(a, owner=None, epoch=Epoch(a.epoch + 1), state=PartitionState.RECOVERING, target=None)
        if a.owner == node
        else a
        for a in table.partitions
    )
    if changed == table.partitions:
        return table
    return replace(table, version=Version(table.version + 1), partitions=changed)
