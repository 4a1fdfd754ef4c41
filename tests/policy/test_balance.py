"""Balance by measured load: a tenth of the load at most, quotas kept, heavy things named, and always an end.

Goal (50-numbers "Cluster"): CPU at most 1.10 of the average after one pass, where that is possible.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from policy.test_table import check_owners, check_standbys
from policy.world import member, placed, ring_of, serve
from roostmq.errors import PlacementError
from roostmq.model import Member, PartitionState, PartitionTable
from roostmq.policy import balance, epochs, table
from roostmq.policy.balance import Load

KINDS = {
    "skewed": lambda made: Load(made.lognormvariate(0, 0.5), made.lognormvariate(0, 0.5)),
    "hot": lambda made: Load((5 if made.random() < 0.05 else 1) * made.uniform(0.8, 1.2), made.uniform(0.8, 1.2)),
    "wild": lambda made: Load(made.paretovariate(1.3), made.paretovariate(1.3)),
    "idle": lambda made: Load(float(made.random() < 0.1), 0.0),
}


def cluster(made: random.Random, *, weights: tuple[float, ...] = (1.0,)) -> tuple[list[Member], PartitionTable]:
    members = [member(f"n{i}", zone="xy"[i % 2], weight=made.choice(weights)) for i in range(made.randrange(2, 9))]
    return members, placed(members, 128)


def one_pass(now: PartitionTable, members: list[Member], loads: list[Load]) -> tuple[balance.Pass, PartitionTable]:
    """A pass, checked: what it says is what the table then carries."""
    found = balance.balance(now, members, ring_of(members), loads)
    after = serve(epochs.apply(now, found.plan))
    for kind, told in (("cpu", found.cpu_after), ("bytes", found.bytes_after)):
        total = sum(getattr(load, kind) for load in loads)
        weight = sum(m.weight for m in members)
        ratios = []
        for m in members:
            held = sum(getattr(load, kind) for a, load in zip(now.partitions, loads, strict=True) if a.owner == m.node)
            new = sum(getattr(load, kind) for a, load in zip(after.partitions, loads, strict=True) if a.owner == m.node)
            ratios.append((new / (total or 1) / (m.weight / weight), held))
        assert told == pytest.approx(max(ratio for ratio, _ in ratios))
        moved = sum(getattr(loads[move.partition], kind) for move in found.plan.moves)
        assert moved <= 0.1 * total * (1 + 1e-9)
    assert len({move.partition for move in found.plan.moves}) == len(found.plan.moves)
    return found, after


@pytest.mark.parametrize("kind", KINDS)
def test_passes_reach_a_table_that_stays_and_quotas_hold(kind):
    """Never oscillates: no table comes twice, and the plan has nothing to undo after any pass."""
    for seed in range(120):
        made = random.Random(seed)
        members, now = cluster(made, weights=(1.0,) if seed % 2 else (0.5, 1.0, 2.0))
        loads = [KINDS[kind](made) for _ in now.partitions]
        seen = {tuple(a.owner for a in now.partitions)}
        for _ in range(40):
            found, after = one_pass(now, members, loads)
            if not found.plan.moves:
                assert after == now
                break
            check_owners(after, members)
            check_standbys(after, members, 1)
            assert not table.plan(after, members, ring_of(members)).moves
            owners = tuple(a.owner for a in after.partitions)
            assert owners not in seen
            seen.add(owners)
            now = after
        else:
            pytest.fail(f"no end after 40 passes, seed {seed}")


@pytest.mark.parametrize(("kind", "share"), [("skewed", 1.0), ("hot", 0.9)])
def test_one_pass_brings_the_cpu_under_its_bound(kind, share):
    """Where a tenth of the load is enough for it; the rest is done by the passes that follow, three at most.

    Hot partitions have five times the load of others: two to eight nodes share 128, so one is up to a quarter of a node.
    """
    good = tried = 0
    for seed in range(200):
        made = random.Random(seed)
        members, now = cluster(made)
        loads = [KINDS[kind](made) for _ in now.partitions]
        found, now = one_pass(now, members, loads)
        if found.cpu_before > balance.CPU_BEGIN:
            tried += 1
            good += found.cpu_after <= 1.10
            assert found.cpu_after < found.cpu_before
            for _ in range(2):
                found, now = one_pass(now, members, loads)
            assert found.cpu_after <= 1.10
    assert tried >= 100
    assert good >= share * tried


def test_fifty_nodes_after_one_pass():
    """The goal as it is written: 50 nodes."""
    members = [member(f"n{i}") for i in range(50)]
    now = placed(members, 1024)
    made = random.Random(1)
    loads = [KINDS["skewed"](made) for _ in now.partitions]
    found, _ = one_pass(now, members, loads)
    assert found.cpu_before > 1.2
    assert found.cpu_after <= 1.10


def test_a_partition_heavier_than_a_node_is_named_and_stays_and_the_rest_makes_way():
    members = [member(name) for name in "abcd"]
    now = placed(members)
    loads = [Load(1.0, 1.0)] * 64
    loads[7] = Load(63.0, 1.0)
    owner = now.partitions[7].owner
    passes = 0
    while True:
        found, now = one_pass(now, members, loads)
        assert [(h.what, h.node) for h in found.heavy] == [("partition 7", owner)]
        assert found.heavy[0].share == pytest.approx(0.5)
        assert found.heavy[0].fair == pytest.approx(0.25)
        assert now.partitions[7].owner == owner
        if not found.plan.moves:
            break
        passes += 1
    # all others weigh the same, and each node keeps its number of them: there is nothing to gain
    assert passes == 0
    quiet = [Load(0.1 if p % 2 else 1.9, 1.0) for p in range(64)]
    quiet[7] = Load(60.0, 1.0)
    before = sum(load.cpu for a, load in zip(now.partitions, quiet, strict=True) if a.owner == owner)
    for _ in range(20):
        found, now = one_pass(now, members, quiet)
    after = sum(load.cpu for a, load in zip(now.partitions, quiet, strict=True) if a.owner == owner)
    assert after < before - 5
    assert now.partitions[7].owner == owner


def test_a_client_heavier_than_a_node_is_named():
    members = [member(name) for name in "abcd"]
    now = placed(members)
    loads = [Load(1.0)] * 63 + [Load(40.0)]
    clients = {"meter-1": (0, Load(0.9)), "firehose": (63, Load(39.0))}
    found = balance.balance(now, members, ring_of(members), loads, clients)
    assert [h.what for h in found.heavy] == ["partition 63", "client firehose"]


def test_bytes_are_balanced_without_harm_to_the_cpu():
    members = [member(name) for name in "abc"]
    now = placed(members)
    for seed in range(50):
        made = random.Random(seed)
        loads = [Load(made.uniform(0.9, 1.1), made.lognormvariate(0, 1.2)) for _ in now.partitions]
        found, _ = one_pass(now, members, loads)
        assert found.bytes_after <= found.bytes_before
        assert found.cpu_after <= max(found.cpu_before, balance.CPU_AIM) + 1e-9


def test_what_is_even_enough_is_left_alone():
    members = [member(name) for name in "abcd"]
    now = placed(members)
    found, after = one_pass(now, members, [Load(1.0, 1.0)] * 64)
    assert (found.plan.moves, found.heavy, after) == ((), (), now)
    found, after = one_pass(now, members, [Load(0.0, 0.0)] * 64)
    assert (found.plan.moves, found.heavy, after) == ((), (), now)


@pytest.mark.parametrize(("above", "moves"), [(0.09, False), (0.11, True)])
def test_a_pass_begins_only_above_its_line(above, moves):
    """Between the aim and the line where passes begin nothing happens: measured loads are never quite still."""
    members = [member(name) for name in "ab"]
    now = placed(members)
    loads = [Load(1 + (above if a.owner == "a" else -above) + 0.5 * (-1) ** p) for p, a in enumerate(now.partitions)]
    for node, share in (("a", 1 + above), ("b", 1 - above)):
        held = [p for p, a in enumerate(now.partitions) if a.owner == node]
        scale = 32 * share / sum(loads[p].cpu for p in held)
        for p in held:
            loads[p] = Load(loads[p].cpu * scale)
    assert bool(one_pass(now, members, loads)[0].plan.moves) == moves


def test_every_partition_has_a_load():
    members = [member("a")]
    with pytest.raises(PlacementError, match="63 loads for 64 partitions"):
        balance.balance(placed(members), members, ring_of(members), [Load(1.0)] * 63)


def test_what_does_not_serve_or_is_not_in_order_is_not_moved():
    members = [member(name) for name in "abcd"]
    now = placed(members)
    hot = now.partitions[0].owner
    loads = [Load(5.0 if a.owner == hot and p % 2 else 1.0) for p, a in enumerate(now.partitions)]
    assert one_pass(now, members, loads)[0].plan.moves
    busy = replace(now, partitions=tuple(replace(a, state=PartitionState.RECOVERING) for a in now.partitions))
    assert not balance.balance(busy, members, ring_of(members), loads).plan.moves
    fewer = members[1:]
    assert not balance.balance(now, fewer, ring_of(fewer), loads).plan.moves
    drained = [replace(members[0], draining=True), *members[1:]]
    assert not balance.balance(now, drained, ring_of(members), loads).plan.moves
    moving = epochs.announce(now, table.plan(now, [*members, member("e")], ring_of([*members, member("e")])), 1)
    assert not balance.balance(moving, members, ring_of(members), loads).plan.moves
