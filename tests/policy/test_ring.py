"""The ring: its order depends on nothing but names and key, a node more changes nothing among the others, and the
articles' ways of dividing cost what the articles say."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.world import hash_ids, member, ring_of
from roostmq import engine
from roostmq.errors import PlacementError
from roostmq.model import NodeId
from roostmq.policy import ring

IDS = [b"CLIENT%08d" % i for i in range(100_000)]
NODES = [NodeId(f"node-{i}") for i in range(1, 9)]
names = st.lists(
    st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=8),
    min_size=1,
    max_size=8,
    unique=True,
)


def points_of_ids(key: int) -> list[int]:
    return sorted(engine.hash_ids((key, key), IDS))


def test_the_engine_hashes_as_its_reference_says():
    """Official vectors of SipHash-2-4, key 00 to 0f."""
    assert list(hash_ids([b"", bytes(range(15))])) == [0x726FDB47DD0E0E31, 0xA129CA6149BE45E5]
    assert list(engine.hash_ids((1, 2), [])) == []
    with pytest.raises(OverflowError):
        engine.hash_ids((1 << 64, 0), [b"x"])
    with pytest.raises(TypeError):
        engine.hash_ids((1, 2), ["text"])  # type: ignore[list-item]


@given(names)
def test_a_walk_meets_every_node_once_in_an_order_that_does_not_depend_on_who_was_named_first(found):
    members = [member(name) for name in found]
    one, other = ring.build_ring(members, hash_ids), ring.build_ring(members[::-1], hash_ids)
    assert one == other
    for near in ring.preferences(one, 16):
        assert sorted(near) == sorted(found)


@given(names.filter(lambda found: len(found) > 1), st.sampled_from([0.5, 1.0, 2.0]))
def test_a_node_more_changes_no_order_among_the_others(found, weight):
    members = [member(name) for name in found]
    members[-1] = member(found[-1], weight=weight)
    before = ring.preferences(ring.build_ring(members[:-1], hash_ids), 32)
    after = ring.preferences(ring.build_ring(members, hash_ids), 32)
    assert before == tuple(tuple(node for node in near if node != found[-1]) for near in after)


def test_a_weight_is_so_many_points():
    assert ring.points_of(member("a")) == 128
    assert ring.points_of(member("a", weight=2.5)) == 320
    assert ring.points_of(member("a", weight=1e-9)) == 1
    assert ring.points_of(member("a", weight=1e300)) == ring.POINTS_MAX
    whole = ring_of([member("a"), member("b", weight=3)])
    assert Counter(whole.owners) == {"a": 128, "b": 384}
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(PlacementError, match="node a: weight"):
            ring.points_of(member("a", weight=wrong))


def test_partitions_are_the_top_bits_as_in_the_engine():
    for partitions in (1, 64, 4096):
        bits = partitions.bit_length() - 1
        starts = [ring.start_of(p, partitions) for p in range(partitions)]
        for point in hash_ids(IDS[:500]):
            p = point >> (64 - bits)
            assert starts[p] <= point < starts[p] + ring.SPACE // partitions


@given(st.integers(1, 8), st.lists(st.integers(0, ring.SPACE - 1), max_size=50))
def test_a_ring_as_ranges_is_the_first_node_of_the_walk(count, points):
    whole = ring_of([member(node) for node in NODES[:count]])
    ranges = ring.ring_ranges(whole)
    for point in [*points, 0, ring.SPACE - 1, whole.points[0], whole.points[0] + 1, whole.points[-1]]:
        assert ranges.owner(point) == next(whole.walk(point))


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.lists(st.integers(0, ring.SPACE - 1), max_size=200))
def test_counting_by_ranges_is_counting_one_by_one(one, other, points):
    points.sort()
    before = ring.equal_ranges(NODES[:one])
    after = ring.ring_ranges(ring_of([member(node) for node in NODES[:other]], 3))
    assert +ring.counts(after, points) == Counter(after.owner(p) for p in points)
    assert ring.moved(before, after, points) == sum(before.owner(p) != after.owner(p) for p in points)
    assert ring.imbalance(ring.counts(before, []), NODES) == 1.0


def test_equal_ranges_move_half_when_the_fourth_node_comes():
    """The article's 50 %."""
    even = [i * (ring.SPACE // 120_000) for i in range(120_000)]
    three, four = ring.equal_ranges(NODES[:3]), ring.equal_ranges(NODES[:4])
    assert ring.moved(three, four, even) / len(even) == pytest.approx(0.5, abs=1e-4)
    assert ring.moved(three, four, points_of_ids(1)) / len(IDS) == pytest.approx(0.5, abs=0.01)
    assert ring.imbalance(ring.counts(four, points_of_ids(1)), NODES[:4]) < 1.02


def test_virtual_nodes_move_a_quarter_and_only_to_the_new_node():
    """The article's 25 %, as the mean over 64 keys; a ring with one point for each node is as good only on average."""
    shares: dict[int, list[float]] = {1: [], 128: []}
    balance: dict[int, list[float]] = {1: [], 128: []}
    even = [i * (ring.SPACE // 5000) for i in range(5000)]
    for key in range(64):
        for per_node in shares:
            rings = [
                ring.build_ring(
                    [member(node) for node in NODES[:n]], lambda ids, k=key: engine.hash_ids((k, k), ids), per_node
                )
                for n in (3, 4)
            ]
            three, four = map(ring.ring_ranges, rings)
            shares[per_node].append(ring.moved(three, four, even) / len(even))
            balance[per_node].append(ring.imbalance(ring.counts(four, even), NODES[:4]))
            for point in even[::50]:
                assert four.owner(point) in (three.owner(point), NODES[3])
    mean = {per_node: sum(found) / len(found) for per_node, found in shares.items()}
    assert mean[128] == pytest.approx(0.25, abs=0.01)
    assert mean[1] == pytest.approx(0.25, abs=0.05)
    assert max(shares[128]) < 0.32 < 0.6 < max(shares[1])
    assert sum(balance[128]) / 64 < 1.2 < 1.8 < sum(balance[1]) / 64


def test_the_alphabet_is_the_hotspot():
    """The article's example: every id begins with CLIENT, one node has them all."""
    points = sorted(ring.alphabet_point(each) for each in IDS)
    found = ring.counts(ring.equal_ranges(NODES[:4]), points)
    assert max(found.values()) == len(IDS)
    assert ring.imbalance(found, NODES[:4]) == 4.0


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_the_alphabet_keeps_the_order_of_the_dictionary(one, other):
    assert 0 <= ring.alphabet_point(one) < ring.SPACE
    kept = [bytes(c for c in each.lower() if c in ring.LETTERS)[:12].ljust(12, b"0") for each in (one, other)]
    if kept[0] < kept[1]:
        assert ring.alphabet_point(kept[0]) < ring.alphabet_point(kept[1])
    assert ring.alphabet_point(one.upper()) == ring.alphabet_point(one.lower())
