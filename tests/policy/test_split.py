"""Partitions are cut in two, one after another, until there are twice as many (record 0014): the names move from one to the next
number and nowhere else, owners stay, and balance comes back afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.world import member, placed, ring_of, serve
from roostmq.errors import PlacementError
from roostmq.model import Members, NodeId, PartitionId, PartitionState, PartitionTable, Version, Wishes
from roostmq.policy.epochs import begin_cut, cut, give_back, own
from roostmq.policy.failover import has_returned, next_table
from roostmq.policy.ring import SPACE, parent_of, partition_of, start_of, table_ranges
from roostmq.policy.wishes import noted
from roostmq.store.codec import pack_table, unpack_table

POINTS = st.integers(0, SPACE - 1)
NODES = Members(Version(1), tuple(member(n) for n in "abc"))


@settings(max_examples=300, deadline=None)
@given(POINTS, st.sampled_from([1, 4, 64]), st.integers(0, 300))
def test_one_more_partition_takes_only_from_its_parent(point: int, roots: int, more: int) -> None:
    count = roots + more
    before, after = partition_of(point, roots, count), partition_of(point, roots, count + 1)
    assert 0 <= before < count
    assert after == before or (after, before) == (count, parent_of(count, roots))
    assert partition_of(start_of(after, roots), roots, count + 1) == after, "a partition has its own first point"


@given(POINTS, st.integers(0, 200))
def test_the_table_says_who_has_a_point(point: int, more: int) -> None:
    table = placed(NODES.nodes)
    for _ in range(more):
        table = serve(cut(begin_cut(table), PartitionId(parent_of(len(table.partitions), table.roots))))
    owner = table.partitions[partition_of(point, 64, len(table.partitions))].owner
    assert table_ranges(table).owner(point) == owner
    assert unpack_table(pack_table(table)) == table


def step(table: PartitionTable, members: Members, wishes: Wishes) -> PartitionTable:
    """What the acting member does next, and what then ends well."""
    made = next_table(table, members, ring_of(members.nodes), wishes, calm=True, settled=True)
    for p, a in enumerate(made.partitions):
        if a.state is PartitionState.MOVING:
            after = cut(made, PartitionId(p)) if a.target == a.owner else own(made, PartitionId(p))
            assert not (a.target == a.owner and has_returned(made, after))
            made = after
    return serve(made)


def test_twice_as_many_with_the_same_owners() -> None:
    table = begun = placed(NODES.nodes)
    for n in range(64):
        table = step(table, NODES, Wishes(split_to=128))
        assert len(table.partitions) == 65 + n
    assert [a.owner for a in table.partitions] == [a.owner for a in begun.partitions] * 2
    assert all(a.epoch == b.epoch for a, b in zip(table.partitions, table.partitions[64:], strict=False))
    for _ in range(10):
        table = step(table, NODES, Wishes(split_to=128))
    held = [sum(a.owner == m.node for a in table.partitions) for m in NODES.nodes]
    assert max(held) - min(held) <= 1


def test_a_pause_holds_cuts_and_nothing_is_noted_as_moved() -> None:
    table = placed(NODES.nodes)
    wishes = Wishes(split_to=128, paused=True)
    assert next_table(table, NODES, ring_of(NODES.nodes), wishes, calm=True, settled=True) == table
    begun = next_table(table, NODES, ring_of(NODES.nodes), replace(wishes, paused=False), calm=True, settled=True)
    assert begun.partitions[0].target == begun.partitions[0].owner
    assert noted(wishes, table, begun, NODES) == wishes


def test_a_node_that_has_just_come_gets_its_share_first() -> None:
    table, four = placed(NODES.nodes), Members(Version(2), (*NODES.nodes, member("d")))
    while sum(a.owner == NodeId("d") for a in table.partitions) * 2 < 16:
        table = step(table, four, Wishes(split_to=128))
        assert len(table.partitions) == 64
    assert len(step(table, four, Wishes(split_to=128)).partitions) == 65


def test_a_cut_that_comes_to_nothing_leaves_what_was() -> None:
    table = placed(NODES.nodes)
    begun = begin_cut(table)
    back = serve(give_back(begun, PartitionId(0)))
    assert has_returned(begun, back)
    assert [a.owner for a in back.partitions] == [a.owner for a in table.partitions]
    assert back.partitions[0].epoch == table.partitions[0].epoch + 1
    with pytest.raises(PlacementError):
        cut(begun, PartitionId(1))
    waiting = replace(table.partitions[0], state=PartitionState.RECOVERING)
    unready = replace(table, partitions=(waiting, *table.partitions[1:]))
    assert begin_cut(unready) == unready
