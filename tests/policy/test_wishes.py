"""What operators want of moves (30-cluster section 6): pins hold, a pause moves nothing, a change can be taken back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policy.test_failover import NAMES, hand_over, members_of, settle
from policy.world import ring_of, serve
from roostmq.model import Members, NodeId, PartitionId, PartitionState, PartitionTable, Wishes
from roostmq.policy.failover import next_table
from roostmq.policy.table import empty_table
from roostmq.policy.wishes import noted, pins_that_hold, undone, unpinned
from roostmq.store import codec


def walk(table: PartitionTable, members: Members, wishes: Wishes) -> tuple[PartitionTable, Wishes]:
    """Until nothing changes; each move is noted as it begins."""
    for _ in range(300):
        after = next_table(table, members, ring_of(members.nodes), wishes, calm=True, settled=True)
        wishes = noted(wishes, table, after, members)
        begun = sum(a.state is PartitionState.MOVING for a in after.partitions)
        assert begun <= (0 if wishes.paused else wishes.at_once)
        if after.version == table.version:
            return table, wishes
        table = serve(hand_over(after))
    raise AssertionError("it does not end")


def owners(table: PartitionTable) -> list[NodeId | None]:
    return [a.owner for a in table.partitions]


@settings(max_examples=60, deadline=None)
@example(pins=dict.fromkeys(range(7), NAMES[0]), names=list(NAMES[:6]))
@given(
    st.dictionaries(st.integers(0, 31), st.sampled_from(NAMES), max_size=32),
    st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
)
def test_pins_hold_whatever_they_are(pins: dict[int, NodeId], names: list[NodeId]) -> None:
    """Also more of them than a node's share, or on nodes that are not there; what is not pinned is even around them."""
    members = members_of(names)
    wishes = Wishes(pins={PartitionId(p): node for p, node in pins.items()})
    table, _ = walk(settle(empty_table(32, "k"), members), members, wishes)
    held = pins_that_hold(wishes, members)
    assert all(table.partitions[p].owner == node for p, node in held.items())
    assert all(a.state is PartitionState.SERVING and a.owner in names for a in table.partitions)
    loose = {n: sum(a.owner == n and p not in held for p, a in enumerate(table.partitions)) for n in names}
    total = {n: sum(a.owner == n for a in table.partitions) for n in names}
    for a in names:  # nobody has something loose while another has two less than it
        assert loose[a] == 0 or total[a] <= min(total.values()) + 1


def test_a_pause_moves_nothing_and_loses_no_heirs() -> None:
    table = settle(empty_table(64, "k"), members_of(NAMES[:3]))
    paused = Wishes(paused=True)
    four = members_of(NAMES[:4])
    assert owners(walk(table, four, paused)[0]) == owners(table)
    two, _ = walk(table, members_of(NAMES[:2]), paused)
    assert set(owners(two)) == set(NAMES[:2]), "who is gone has heirs all the same"
    assert owners(two)[0] in NAMES[:2]
    moved, _ = walk(table, four, replace(paused, paused=False))
    assert owners(moved).count(NAMES[3]) == 16


def test_a_change_is_taken_back_and_that_again() -> None:
    """All its moves, though they were made a few at a time; unpinned, balance decides again."""
    before = settle(empty_table(64, "k"), members_of(NAMES[:3]))
    four = members_of(NAMES[:4])
    grown, wishes = walk(before, four, Wishes(at_once=3))
    assert len(wishes.last) == 16
    back, wishes = walk(grown, four, undone(wishes, grown))
    assert owners(back) == owners(before)
    forth, wishes = walk(back, four, undone(wishes, back))
    assert owners(forth) == owners(grown)
    again, _ = walk(back, four, unpinned(wishes))
    assert owners(again).count(NAMES[3]) == 16


@pytest.mark.parametrize("last", [{}, {PartitionId(3): NodeId("a"), PartitionId(4): None}])
def test_wishes_come_back_from_the_registry(last: dict[PartitionId, NodeId | None]) -> None:
    made = Wishes(paused=True, at_once=7, pins={PartitionId(1): NodeId("b")}, last=last, cause="3 []")
    assert codec.unpack_wishes(codec.pack_wishes(made)) == made
