"""How the table may change: at most one owner in each epoch, whatever happens in whatever order (promise 2, promise 4)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from policy.test_table import change, check_owners, owned
from policy.world import member, placed, ring_of, serve
from roostmq.errors import PlacementError
from roostmq.model import PartitionState, PartitionTable
from roostmq.policy import epochs, table

MOVING, RECOVERING, SERVING = PartitionState.MOVING, PartitionState.RECOVERING, PartitionState.SERVING
WALKS = 1200


class Book:
    """Every owner that each epoch has ever had."""

    def __init__(self) -> None:
        self.owners: dict[tuple[int, int], str] = {}

    def read(self, before: PartitionTable, after: PartitionTable) -> None:
        assert after.version == before.version + (before.partitions != after.partitions)
        for p, (old, new) in enumerate(zip(before.partitions, after.partitions, strict=True)):
            assert old.epoch <= new.epoch <= old.epoch + 1
            if new.owner != old.owner:
                assert new.epoch == old.epoch + 1
            assert self.owners.setdefault((p, new.epoch), new.owner) == new.owner
            assert (new.target is not None) == (new.state is MOVING)
            assert new.target != new.owner
            assert new.state is not MOVING or old.state is not RECOVERING
            assert new.owner not in new.standbys
            assert len(set(new.standbys)) == len(new.standbys)


def ended(now: PartitionTable, p: int, members: list) -> PartitionTable:
    """A move has ended: at its target, or at its owner if that is gone."""
    living = {m.node for m in members}
    return (epochs.own if now.partitions[p].target in living else epochs.call_off)(now, p)


def step(made: random.Random, now: PartitionTable, members: list, each: int) -> tuple[PartitionTable, list]:
    """One thing that can happen to a cluster."""
    what = made.choice(("change", "serve", "serve", "announce", "announce", "apply", "own", "own", "give back"))
    moving = [p for p, a in enumerate(now.partitions) if a.state is MOVING]
    if what == "change":
        _, after = change(made, members, even=False)
        if made.random() < 0.5:
            return now, after  # the plan finds it out, and owners that targets are gone
        load = {node: float(n) for node, n in owned(now).items()}
        return epochs.take_over(now, after, ring_of(after), load, each), after
    if what == "serve":
        return epochs.serving(now, {p: a.epoch for p, a in enumerate(now.partitions) if made.random() < 0.7}), members
    if what in ("own", "give back"):
        if not moving:
            return now, members
        p = made.choice(moving)
        return (ended(now, p, members) if what == "own" else epochs.give_back(now, p)), members
    plan = table.plan(now, members, ring_of(members), each)
    if what == "apply":
        return epochs.apply(now, plan), members
    most = made.randrange(1, 6)
    after = epochs.announce(now, plan, most)
    assert sum(a.state is MOVING for a in after.partitions) <= max(most, len(moving))
    return after, members


@pytest.mark.parametrize("batch", range(3))
def test_one_owner_in_each_epoch_and_all_is_well_at_last(batch):
    for seed in range(batch, WALKS, 3):
        made, book, each = random.Random(seed), Book(), seed % 3
        members = [member("n0"), member("n1", zone="y")]
        now = placed(members, 16, each)
        for _ in range(15):
            before = now
            now, members = step(made, now, members, each)
            book.read(before, now)
        for _ in range(12):
            now = serve(now)
            after = epochs.announce(now, table.plan(now, members, ring_of(members), each), 4)
            book.read(now, after)
            now = after
            for p, a in enumerate(now.partitions):
                if a.state is MOVING:
                    after = ended(now, p, members)
                    book.read(now, after)
                    now = after
        now = serve(now)
        check_owners(now, members)
        assert not table.plan(now, members, ring_of(members), each).moves


def test_moves_at_once_are_bounded_and_the_owner_stays_until_the_end():
    members = [member(name) for name in "abc"]
    now = placed(members)
    more = [*members, member("d")]
    first = epochs.announce(now, table.plan(now, more, ring_of(more)), 4)
    assert Counter(a.state for a in first.partitions) == {MOVING: 4, SERVING: 60}
    assert [a.owner for a in first.partitions] == [a.owner for a in now.partitions]
    assert [a.epoch for a in first.partitions] == [a.epoch for a in now.partitions]
    second = table.plan(first, more, ring_of(more))
    assert len(second.moves) == 12
    assert epochs.announce(first, second, 4) == first
    p = next(p for p, a in enumerate(first.partitions) if a.state is MOVING)
    done = epochs.own(first, p)
    assert (done.partitions[p].owner, done.partitions[p].epoch, done.partitions[p].state) == ("d", 2, RECOVERING)
    back = epochs.give_back(first, p)
    assert (back.partitions[p].owner, back.partitions[p].epoch) == (now.partitions[p].owner, 2)
    with pytest.raises(PlacementError, match="does not move"):
        epochs.own(done, p)
    with pytest.raises(PlacementError, match="does not move"):
        epochs.give_back(done, p)


def test_what_is_on_its_way_is_left_alone_and_what_is_called_off_makes_room_for_others():
    members = [member(name) for name in "abc"]
    more = [*members, member("d")]
    now = epochs.announce(placed(members), table.plan(placed(members), more, ring_of(more)), 6)
    moving = {p for p, a in enumerate(now.partitions) if a.state is MOVING}
    drained = [*members, member("d", draining=True)]
    plan = table.plan(now, drained, ring_of(drained))
    assert plan.moves == ()  # they arrive first, then they leave again
    others = [*members, member("e")]
    plan = table.plan(now, others, ring_of(others))
    assert not {m.partition for m in plan.moves} & moving
    now = epochs.announce(now, plan, 6)
    assert {p for p, a in enumerate(now.partitions) if a.state is MOVING} == moving
    for p in moving:
        now = epochs.call_off(now, p)
    after = epochs.announce(now, table.plan(now, others, ring_of(others)), 6)
    assert Counter(a.state for a in after.partitions) == {MOVING: 6, SERVING: 58}
    assert {a.epoch for a in after.partitions} == {1}


def test_moves_step_by_step_end_where_moves_at_once_end():
    members = [member(name) for name in "abcd"]
    more = [*members[1:], member("e"), member("f", weight=2)]
    now = placed(members)
    now = serve(epochs.apply(now, table.plan(now, members[1:], ring_of(members[1:]))))
    at_once = epochs.apply(now, table.plan(now, more, ring_of(more)))
    steps = now
    while (plan := table.plan(steps, more, ring_of(more))).moves:
        steps = epochs.announce(steps, plan, 3)
        for p, a in enumerate(steps.partitions):
            if a.state is MOVING:
                steps = serve(epochs.own(steps, p))
    check_owners(steps, more)
    moved = sum(a.epoch > old.epoch for a, old in zip(steps.partitions, now.partitions, strict=True))
    assert moved == sum(a.epoch > old.epoch for a, old in zip(at_once.partitions, now.partitions, strict=True))


def test_a_dead_node_is_inherited_by_its_standbys_evenly():
    for standbys in (1, 2):
        members = [member(f"n{i}") for i in range(5)]
        now = placed(members, 128, standbys)
        left = members[1:]
        after = epochs.take_over(now, left, ring_of(left), {n: float(c) for n, c in owned(now).items()}, standbys)
        for old, new in zip(now.partitions, after.partitions, strict=True):
            if old.owner == "n0":
                assert new.owner in old.standbys
                assert (new.epoch, new.state) == (old.epoch + 1, RECOVERING)
                assert len(new.standbys) == standbys
            else:
                assert new == old
        assert max(owned(after).values()) <= (38 if standbys == 1 else 34)  # 32 on average
        plan = table.plan(after, left, ring_of(left), standbys)
        assert len(plan.moves) <= 8


def test_a_takeover_leaves_moves_towards_the_dead_to_their_owner_and_gives_moves_of_the_dead_to_their_target():
    """Whoever takes a partition from a living owner takes the connections of its sessions too (promise 5)."""
    members = [member(name) for name in "abcd"]
    now = placed(members[:3], 16)
    now = epochs.announce(now, table.plan(now, members, ring_of(members)), 2)
    p = next(p for p, a in enumerate(now.partitions) if a.state is MOVING)
    dead = [m for m in members if m.node != "d"]
    assert epochs.take_over(now, dead, ring_of(dead), {}) is now
    owner = now.partitions[p].owner
    left = [m for m in members if m.node != owner]
    busy = {node: float(n) for node, n in owned(now).items()}
    after = epochs.take_over(now, left, ring_of(left), busy)
    assert after.partitions[p].owner == "d"
    assert after.partitions[p].target is None
    assert epochs.take_over(now, [], ring_of([]), {}) is now
    assert epochs.take_over(now, members, ring_of(members), {}) is now


def test_a_draining_node_inherits_only_if_no_other_is_left():
    members = [member(name) for name in "abc"]
    now = placed(members, 16)
    left = [member("b", draining=True), member("c")]
    after = epochs.take_over(now, left, ring_of(left), {})
    assert all(new.owner == "c" for old, new in zip(now.partitions, after.partitions, strict=True) if old.owner == "a")
    alone = [member("b", draining=True)]
    assert owned(epochs.take_over(now, alone, ring_of(alone), {})) == {"b": 16}


def test_who_owns_no_more_does_not_serve_and_an_old_plan_is_refused():
    members = [member(name) for name in "ab"]
    now = placed(members, 16)
    plan = table.plan(now, members[:1], ring_of(members[:1]))
    after = epochs.apply(now, plan)
    p = plan.moves[0].partition
    with pytest.raises(PlacementError, match=f"partition {p}: epoch 1 is over, a owns under epoch 2"):
        epochs.serving(after, {p: 1})
    assert epochs.serving(after, {p: 2}).partitions[p].state is SERVING
    for write in (epochs.apply, lambda t, one: epochs.announce(t, one, 4)):
        with pytest.raises(PlacementError, match="plan anew"):
            write(after, plan)
    with pytest.raises(PlacementError):
        epochs.serving(table.empty_table(4, "key"), {0: 0})
    assert replace(now, version=now.version) == now
