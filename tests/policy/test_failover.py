"""What the acting member does with the table (30-cluster sections 1 and 7): repeated until nothing is left, it always ends well."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.world import member, ring_of, serve
from roostmq.model import Members, NodeId, PartitionId, PartitionState, PartitionTable, Version, Wishes
from roostmq.policy.epochs import own
from roostmq.policy.failover import disown, next_table
from roostmq.policy.quota import quotas
from roostmq.policy.table import empty_table

NAMES = [NodeId(name) for name in "abcdef"]


def members_of(names: list[NodeId]) -> Members:
    return Members(Version(1), tuple(member(n) for n in sorted(names)))


def hand_over(table: PartitionTable) -> PartitionTable:
    """Every move that was begun ends well."""
    for p, a in enumerate(table.partitions):
        if a.state is PartitionState.MOVING:
            table = own(table, PartitionId(p))
    return table


def settle(table: PartitionTable, members: Members) -> PartitionTable:
    """Everybody serves at once; repeat until nothing changes."""
    for _ in range(200):
        after = next_table(table, members, ring_of(members.nodes), calm=True, settled=True)
        moved = sum(
            b.state is PartitionState.MOVING and a.state is not PartitionState.MOVING
            for a, b in zip(table.partitions, after.partitions, strict=True)
        )
        assert moved <= Wishes().at_once, "partitions of living owners move a few at a time"
        raised = [
            b.epoch > a.epoch for a, b in zip(table.partitions, after.partitions, strict=True) if a.owner != b.owner
        ]
        assert all(raised), "each owner has an epoch of its own"
        if after.version == table.version:
            return table
        table = serve(hand_over(after))
    raise AssertionError("it does not end")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(NAMES), min_size=1, unique=True), min_size=1, max_size=6))
def test_whoever_comes_and_goes_all_is_owned_and_even(history: list[list[NodeId]]) -> None:
    table = empty_table(64, "k")
    for names in history:
        members = members_of(names)
        table = settle(table, members)
        held = {n: sum(a.owner == n for a in table.partitions) for n in names}
        assert sum(held.values()) == 64
        allowed = quotas(64, members.nodes, held)
        assert all(held[n] <= allowed[n] for n in names)
        assert all(a.state is PartitionState.SERVING for a in table.partitions)


def test_before_it_is_calm_only_the_dead_are_replaced() -> None:
    two = members_of(NAMES[:2])
    table = settle(empty_table(64, "k"), two)
    three = members_of(NAMES[:3])
    assert next_table(table, three, ring_of(three.nodes), calm=False, settled=False).version == table.version
    assert next_table(table, three, ring_of(three.nodes), calm=True, settled=False).version == table.version
    one = members_of(NAMES[:1])
    after = next_table(table, one, ring_of(one.nodes), calm=False, settled=False)
    assert {a.owner for a in after.partitions} == {NAMES[0]}


def test_a_node_that_comes_back_fences_anew() -> None:
    table = settle(empty_table(64, "k"), members_of(NAMES[:1]))
    freed = disown(table, NAMES[0])
    assert all(
        a.owner is None and a.epoch == b.epoch + 1 for a, b in zip(freed.partitions, table.partitions, strict=True)
    )
    again = settle(freed, members_of(NAMES[:1]))
    assert {a.owner for a in again.partitions} == {NAMES[0]}
    assert disown(replace(freed), NAMES[0]) == freed
