"""A control loop or links that stand still are named once, with where every task waits, and their end is told."""

from __future__ import annotations

import asyncio
import contextlib

import structlog
from structlog.testing import capture_logs

from roostmq.runtime.standstill import STILL_S, Standstill


async def inner(gate: asyncio.Event) -> None:
    await gate.wait()


async def outer(gate: asyncio.Event) -> None:
    await inner(gate)


async def test_a_standstill_is_named_once_with_where_it_waits_and_so_is_its_end() -> None:
    gate = asyncio.Event()
    stuck = asyncio.create_task(outer(gate))
    await asyncio.sleep(0)
    try:
        with capture_logs() as said:
            watch = Standstill(structlog.get_logger())
            turned_s = {"control loop": 100.0, "links": 100.0}
            watch.look(turned_s, 100.0 + STILL_S)
            assert said == []
            turned_s["links"] = 130.0
            for _ in range(3):
                watch.look(turned_s, 101.0 + STILL_S)
            assert [(line["event"], line["part"]) for line in said] == [("stands still", "control loop")]
            assert any("outer:" in way and way.split(" > ")[1].startswith("inner:") for way in said[0]["waits"]), said
            watch.look({"control loop": 131.0, "links": 131.0}, 132.0)
            assert [line["event"] for line in said] == ["stands still", "turns again"]
            watch.look({"control loop": 131.0, "links": 131.0}, 200.0)
            assert sorted(line["part"] for line in said[2:]) == ["control loop", "links"]
    finally:
        stuck.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stuck
