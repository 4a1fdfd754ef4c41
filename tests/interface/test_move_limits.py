"""What holds moves back (30-cluster section 6): bytes a second, and appends that take long; what has begun goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from policy.test_failover import members_of

from roostmq.engine import Event
from roostmq.model import Epoch, Members, NodeId, PartitionState, PartitionTable, Wishes
from roostmq.policy.table import empty_table
from roostmq.runtime import moves as module
from roostmq.runtime.moves import SLOW_S, Moves

HERE, THERE = NodeId("a"), NodeId("b")


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def leaving(count: int) -> tuple[PartitionTable, Members]:
    table = empty_table(8, "k", Epoch(3))
    rows = [
        replace(a, owner=HERE, state=PartitionState.MOVING if p < count else PartitionState.SERVING, target=THERE)
        for p, a in enumerate(table.partitions)
    ]
    return replace(table, partitions=tuple(rows)), members_of([HERE, THERE])


def ordered(moves: Moves, there: tuple[PartitionTable, Members], wishes: Wishes, append_ms: float = 0.0) -> list[int]:
    orders: list[dict[str, Any]] = list(moves.orders(*there, wishes, append_ms))
    return [o["partition"] for o in orders]


def test_without_limits_all_that_the_table_says_begins_once(clock: Clock) -> None:
    moves, there = Moves(HERE), leaving(3)
    assert ordered(moves, there, Wishes()) == [0, 1, 2]
    moves.on_event(Event("sealed", {"partition": 0, "bytes": 5000}))
    assert ordered(moves, there, Wishes()) == []


def test_bytes_a_second_are_kept_between_moves(clock: Clock) -> None:
    moves, there, wishes = Moves(HERE), leaving(3), Wishes(bytes_per_s=1000)
    assert ordered(moves, there, wishes) == [0]
    assert ordered(moves, there, wishes) == [], "how much it is will be known when it is sealed"
    moves.on_event(Event("sealed", {"partition": 0, "bytes": 5000}))
    table, nodes = there
    rows = list(table.partitions)
    rows[0] = replace(rows[0], owner=THERE, state=PartitionState.SERVING)
    there = (replace(table, partitions=tuple(rows)), nodes)
    assert ordered(moves, there, wishes) == []
    clock.now_s += 4.9
    assert ordered(moves, there, wishes) == []
    clock.now_s += 0.2
    assert ordered(moves, there, wishes) == [1]


def test_slow_appends_slow_moves_down(clock: Clock) -> None:
    moves, there, wishes = Moves(HERE), leaving(3), Wishes(append_ms_max=50)
    begun = []
    for _ in range(40):
        begun += [(round(clock.now_s - 100, 1), p) for p in ordered(moves, there, wishes, append_ms=51)]
        clock.now_s += 0.1
    assert [p for _, p in begun] == [0, 1]
    assert begun[1][0] >= SLOW_S
    assert ordered(moves, there, wishes, append_ms=50) == [2], "and not any more when they are quick again"


def test_a_move_to_who_is_gone_is_ended_by_the_engine_whatever_holds_moves_back(clock: Clock) -> None:
    """Only the engine knows whether it has sealed anything: what it says decides whether the epoch is over."""
    moves, (table, _), wishes = Moves(HERE), leaving(3), Wishes(bytes_per_s=1, append_ms_max=1)
    assert ordered(moves, (table, members_of([HERE, THERE])), wishes, append_ms=9) == [0]
    alone = members_of([HERE])
    orders = list(moves.orders(table, alone, wishes, append_ms=9))
    assert [(o["do"], o["partition"], o["slot"]) for o in orders] == [
        ("move", 1, module.NO_SLOT),
        ("move", 2, module.NO_SLOT),
    ]
    assert ordered(moves, (table, alone), wishes, append_ms=9) == []
    for partition, sealed in ((0, True), (1, False), (2, False)):
        moves.on_event(Event("move_failed", {"partition": partition, "epoch": 3, "sealed": sealed}))
    made = moves.next_table(table)
    assert [(a.owner, a.epoch, a.target) for a in made.partitions[:3]] == [(HERE, 4, None), *[(HERE, 3, None)] * 2]
    assert [a.state for a in made.partitions[1:3]] == [PartitionState.SERVING] * 2


def test_moves_that_have_ended_together_are_written_together() -> None:
    """Each stands still until it is written; one that another node has ended meanwhile is forgotten."""
    moves, (table, _) = Moves(THERE), leaving(3)
    for partition in (0, 2, 5):
        moves.on_event(Event("carried", {"partition": partition, "epoch": 3}))
    made = moves.next_table(table)
    changed = [p for p, (a, b) in enumerate(zip(table.partitions, made.partitions, strict=True)) if a != b]
    assert changed == [0, 2]
    assert all((made.partitions[p].owner, made.partitions[p].epoch) == (THERE, 4) for p in changed)
    assert moves.next_table(table).version == made.version, "somebody was first: it is tried again"
    assert moves.next_table(made) == made
    assert moves.next_table(table) == table, "and it is over once the table has it"
