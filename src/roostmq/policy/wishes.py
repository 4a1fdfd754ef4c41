"""What operators want of planned moves, and how a change is taken back: values made from values.

A *pin* holds a partition on a node, or brings it there, before quotas are looked at. A change is taken back by pins:
what it has moved goes to who had it before, and everything stays until it is unpinned. So an undo can be undone, and
nothing is moved again behind the operator's back.

Source: 30-cluster section 6 (`apply`, stoppable and resumable at every step).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from roostmq.model import Members, NodeId, PartitionId, PartitionState, PartitionTable, Wishes

AT_ONCE_MAX = 64


def pins_that_hold(wishes: Wishes, members: Members) -> dict[PartitionId, NodeId]:
    """Those whose node is a member and may own something."""
    able = {m.node for m in members.nodes if not m.draining}
    return {p: node for p, node in wishes.pins.items() if node in able}


def pinned(wishes: Wishes, pins: Mapping[PartitionId, NodeId]) -> Wishes:
    """With these pins too."""
    return replace(wishes, pins={**wishes.pins, **pins})


def unpinned(wishes: Wishes, partitions: Iterable[PartitionId] | None = None) -> Wishes:
    """Without these pins; None: without any."""
    gone = set(wishes.pins if partitions is None else partitions)
    return replace(wishes, pins={p: node for p, node in wishes.pins.items() if p not in gone})


def noted(wishes: Wishes, before: PartitionTable, after: PartitionTable, members: Members) -> Wishes:
    """With the moves that the second table begins, so that they can be taken back; the same if there are none."""
    begun = {
        PartitionId(p): a.owner
        for p, (a, b) in enumerate(zip(before.partitions, after.partitions, strict=False))
        if b.state is PartitionState.MOVING and a.state is not PartitionState.MOVING and b.target != b.owner
    }
    if not begun:
        return wishes
    cause = f"{members.version} {sorted(wishes.pins.items())}"
    last = {**begun, **wishes.last} if cause == wishes.cause else begun
    return replace(wishes, last=last, cause=cause)


def undone(wishes: Wishes, table: PartitionTable) -> Wishes:
    """Everything that the last change has moved goes back; all else stays, or balance would fill the gap."""
    stays = {PartitionId(p): a.target or a.owner for p, a in enumerate(table.partitions)}
    pins = {p: node for p, node in {**stays, **wishes.last}.items() if node is not None}
    return pinned(wishes, pins)
