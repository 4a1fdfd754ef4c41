"""How the partition table may change: each function makes the next table, for a compare-and-set on the present one.

*Each change of owner raises the partition's epoch by one*, and so does the return to an owner whose move failed. So an
epoch is never used twice, and the log can tell a stale owner by it. Each new table has a version of one more; where
nothing changes, the same table comes back. A living owner alone ends a move whose target is gone: only it knows
whether it has sealed anything, and who takes the partition from it would take connections with it.

    RECOVERING --serving--> SERVING --announce--> MOVING --own--> RECOVERING of the target, epoch + 1
    any --apply, take_over--> RECOVERING of another owner, epoch + 1
    MOVING --give_back--> RECOVERING of the same owner, epoch + 1: it goes on with what it has sealed
    MOVING --call_off--> SERVING of the same owner, which has sealed nothing yet: same epoch
    SERVING --begin_cut--> MOVING to itself --cut--> two RECOVERING of the same owner, both with epoch + 1

Source: 30-cluster sections 1 and 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from roostmq.errors import PlacementError
from roostmq.model import (
    Assignment,
    Epoch,
    LogRef,
    Member,
    NodeId,
    PartitionId,
    PartitionState,
    PartitionTable,
    Version,
)
from roostmq.policy.ring import Ring, parent_of
from roostmq.policy.standbys import choose_standbys
from roostmq.policy.table import Plan, heir


def apply(table: PartitionTable, plan: Plan) -> PartitionTable:
    """All moves of a plan at once: the new owners recover from the log.

    Raises PlacementError if the plan was made from another table.
    """
    _check(table, plan)
    changed = _settle(table, plan)
    for move in plan.moves:
        a = table.partitions[move.partition]
        changed[move.partition] = _owned(a, move.target, plan.standbys[move.partition])
    return _next(table, changed)


def announce(table: PartitionTable, plan: Plan, moves_at_once: int) -> PartitionTable:
    """Begin moves until `moves_at_once` are under way: the old owners serve until the new ones have everything.

    What nobody can hand over changes its owner at once and counts for nothing. What does not serve yet has to wait.
    Raises PlacementError if the plan was made from another table.
    """
    _check(table, plan)
    changed = _settle(table, plan)
    left = moves_at_once - sum(a.state is PartitionState.MOVING for a in table.partitions)
    for move in plan.moves:
        a = table.partitions[move.partition]
        if move.source is None:
            changed[move.partition] = _owned(a, move.target, plan.standbys[move.partition])
        elif left > 0 and a.state is PartitionState.SERVING:
            left -= 1
            changed[move.partition] = replace(a, state=PartitionState.MOVING, target=move.target)
    return _next(table, changed)


def serving(
    table: PartitionTable, recovered: Mapping[PartitionId, Epoch], logs: Mapping[PartitionId, LogRef] | None = None
) -> PartitionTable:
    """The owners of some partitions have recovered under these epochs and serve; these are their logs.

    Raises PlacementError if one of these epochs is over.
    """
    changed = {}
    for partition, epoch in recovered.items():
        a = table.partitions[partition]
        if a.epoch != epoch or a.owner is None:
            raise PlacementError(f"partition {partition}: epoch {epoch} is over, {a.owner} owns under epoch {a.epoch}")
        if a.state is PartitionState.RECOVERING:
            log = (logs or {}).get(partition)
            kept = a.logs if log is None else (log,)
            changed[int(partition)] = replace(a, state=PartitionState.SERVING, logs=kept)
    return _next(table, changed)


def own(table: PartitionTable, partition: PartitionId) -> PartitionTable:
    """The target of a move has everything and becomes the owner. Raises PlacementError if it does not move."""
    a = _moving(table, partition)
    standbys = tuple(node for node in a.standbys if node != a.target)
    return _next(table, {partition: _owned(a, a.target, standbys)})


def begin_cut(table: PartitionTable) -> PartitionTable:
    """The next partition in turn is to be cut in two by its owner; the same table if it does not serve."""
    partition = parent_of(len(table.partitions), table.roots)
    a = table.partitions[partition]
    if a.state is not PartitionState.SERVING:
        return table
    return _next(table, {partition: replace(a, state=PartitionState.MOVING, target=a.owner)})


def cut(table: PartitionTable, partition: PartitionId) -> PartitionTable:
    """Both halves are written: the new one gets the next number. Raises PlacementError if it is not being cut."""
    a = _moving(table, partition)
    if a.target != a.owner or partition != parent_of(len(table.partitions), table.roots):
        raise PlacementError(f"partition {partition} is not the one that is being cut")
    made = _owned(a, a.owner, a.standbys)
    grown = (*_next(table, {partition: made}).partitions, replace(made, logs=()))
    return replace(table, version=Version(table.version + 1), partitions=grown, begun_with=table.roots)


def give_back(table: PartitionTable, partition: PartitionId) -> PartitionTable:
    """A move has failed: it returns to its owner, which begins anew. Raises PlacementError if it does not move."""
    a = _moving(table, partition)
    return _next(table, {partition: _owned(a, a.owner, a.standbys)})


def call_off(table: PartitionTable, partition: PartitionId) -> PartitionTable:
    """A move ends before its owner has sealed anything: the owner serves on.

    Raises PlacementError if it does not move.
    """
    a = _moving(table, partition)
    return _next(table, {partition: replace(a, state=PartitionState.SERVING, target=None)})


def renew(table: PartitionTable, partition: PartitionId, epoch: Epoch) -> PartitionTable:
    """What an owner was given is not what the log says: it begins anew from the log, under the next epoch.

    Raises PlacementError if that epoch is over.
    """
    a = table.partitions[partition]
    if a.epoch != epoch:
        raise PlacementError(f"partition {partition}: epoch {epoch} is over")
    return _next(table, {partition: _owned(a, a.owner, a.standbys)})


def take_over(
    table: PartitionTable, members: Sequence[Member], ring: Ring, load: Mapping[NodeId, float], standbys: int = 1
) -> PartitionTable:
    """What to do when members are gone: each of their partitions goes to its heir.

    `load` is by node, 1.0 for the average of one partition; what is taken over is added to it. A draining node
    inherits only if no other is left. `ring` is that of the members. Without members the table stays, and a partition
    that nobody has ever owned waits for a plan.
    """
    nodes = {m.node: m for m in members}
    living = [m.node for m in members if not m.draining] or list(nodes)
    if not living:
        return table
    loads = {node: load.get(node, 0.0) for node in nodes}
    owners: list[NodeId | None] = []
    changed: dict[int, Assignment] = {}
    for p, a in enumerate(table.partitions):
        owner = a.owner
        if owner is not None and owner not in nodes and (owner := heir(a, loads, living)) is not None:
            loads[owner] += 1.0 / nodes[owner].weight
        owners.append(owner)
        if owner != a.owner:
            changed[p] = _owned(a, owner, a.standbys)
    if changed and any(not m.draining for m in members):
        found = choose_standbys(table, owners, members, ring, standbys)
        changed = {p: replace(a, standbys=found[p]) for p, a in changed.items()}
    return _next(table, changed)


def _check(table: PartitionTable, plan: Plan) -> None:
    if plan.version != table.version:
        raise PlacementError(f"the plan is of table version {plan.version}, now it is {table.version}: plan anew")


def _settle(table: PartitionTable, plan: Plan) -> dict[int, Assignment]:
    """The standbys of what stays."""
    moved = {move.partition for move in plan.moves}
    return {
        p: replace(a, standbys=plan.standbys[p])
        for p, a in enumerate(table.partitions)
        if p not in moved and a.state is not PartitionState.MOVING
    }


def _moving(table: PartitionTable, partition: PartitionId) -> Assignment:
    a = table.partitions[partition]
    if a.state is not PartitionState.MOVING or a.target is None:
        raise PlacementError(f"partition {partition} does not move: it is {a.state} at {a.owner}")
    return a


def _owned(a: Assignment, owner: NodeId | None, standbys: tuple[NodeId, ...]) -> Assignment:
    """The beginning of an ownership."""
    return replace(
        a,
        owner=owner,
        epoch=Epoch(a.epoch + 1),
        standbys=standbys,
        state=PartitionState.RECOVERING,
        target=None,
    )


def _next(table: PartitionTable, changed: Mapping[int, Assignment]) -> PartitionTable:
    partitions = tuple(changed.get(p, a) for p, a in enumerate(table.partitions))
    if partitions == table.partitions:
        return table
    return replace(table, version=Version(table.version + 1), partitions=partitions)
