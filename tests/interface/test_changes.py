"""What may be wished of moves over HTTP, and what is refused with a word about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from policy.test_failover import NAMES, members_of, settle

from roostmq.interface.api.changes import MoveWish, wished
from roostmq.model import PartitionId, Wishes
from roostmq.policy.table import empty_table


def cluster() -> Any:
    members = members_of(NAMES[:2])
    return SimpleNamespace(
        members=members, table=settle(empty_table(8, "k"), members), token=SimpleNamespace(partitions=8)
    )


def test_nothing_is_taken_back_where_nothing_was_moved() -> None:
    """Or all partitions would be pinned for no reason."""
    with pytest.raises(HTTPException, match="nothing to take back"):
        wished(cluster(), MoveWish(undo=True), Wishes())
    moved = Wishes(last={PartitionId(1): NAMES[0]})
    assert wished(cluster(), MoveWish(undo=True), moved).pins[PartitionId(1)] == NAMES[0]


@pytest.mark.parametrize(("pin", "text"), [({8: "a"}, "no partition 8"), ({1: "z"}, "no member")])
def test_what_is_not_there_is_refused(pin: dict[int, str], text: str) -> None:
    with pytest.raises(HTTPException, match=text):
        wished(cluster(), MoveWish(pin=pin), Wishes())


def test_pins_of_some_partitions_go_and_the_others_stay() -> None:
    old = Wishes(pins={PartitionId(1): NAMES[0], PartitionId(2): NAMES[1]}, paused=True)
    made = wished(cluster(), MoveWish(unpin=[1]), old)
    assert (made.pins, made.paused) == ({PartitionId(2): NAMES[1]}, True)
    assert wished(cluster(), MoveWish(unpin=True, paused=False), old) == Wishes()
