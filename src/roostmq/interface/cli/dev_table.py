"""The live table of `roost dev` on a terminal: nodes, partitions, clients, rates; drawn anew each second."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

from roostmq.errors import RoostError
from roostmq.interface.cli import admin

if TYPE_CHECKING:
    from roostmq.interface.cli.dev import Dev

EACH_S = 1.0
HEAD = (
    f"{'node':6} {'state':12} {'partitions':>10} {'clients':>8} {'sessions':>9} {'in/s':>8} {'out/s':>8} {'waiting':>8}"
)


async def keep_drawing(dev: Dev) -> None:
    """Until cancelled."""
    lines, then_s = 0, time.monotonic()
    before: dict[str, dict[str, int]] = {}
    while True:
        told = dict(zip(dev.admins(), await asyncio.gather(*(_ask(url) for url in dev.admins().values())), strict=True))
        now_s = time.monotonic()
        text = table(told, before, now_s - then_s)
        if lines:
            print(f"\x1b[{lines}A\x1b[J", end="")
        print(text, flush=True)
        lines, then_s = text.count("\n") + 1, now_s
        before = {node: t["info"]["counters"] for node, t in told.items() if t is not None}
        await asyncio.sleep(EACH_S)


async def _ask(url: str) -> dict[str, Any] | None:
    try:
        return {
            "info": await asyncio.to_thread(admin.get, url, "/api/v1/info", 2),
            "cluster": await asyncio.to_thread(admin.get, url, "/api/v1/cluster", 2),
        }
    except RoostError:
        return None


def table(told: dict[str, dict[str, Any] | None], before: dict[str, dict[str, int]], elapsed_s: float) -> str:
    """What each node says, as lines; `before` are the counters of the last time."""
    lines = [HEAD]
    for node, t in told.items():
        if t is None:
            lines.append(f"{node:6} {'no answer':12}")
            continue
        counters, gauges = t["info"]["counters"], t["info"]["gauges"]
        old = before.get(node, counters)
        rates = [(counters[n] - old[n]) / max(elapsed_s, 0.001) for n in ("publish_received", "publish_sent")]
        state = "ready" if t["cluster"]["not_ready"] is None else "not ready"
        lines.append(
            f"{node:6} {state:12} {gauges['partitions']:10} {gauges['connections']:8} {gauges['sessions']:9} "
            f"{rates[0]:8.0f} {rates[1]:8.0f} {gauges['publishes_waiting']:8}"
        )
    seen = [t["cluster"] for t in told.values() if t is not None]
    newest = max(seen, key=lambda c: int(c["table_version"]), default=None)
    if newest is not None:
        states = [p["state"] for p in newest["partitions"]]
        counts = ", ".join(f"{states.count(s)} {s}" for s in ("serving", "moving", "recovering") if s in states)
        lines.append(f"partitions: {counts}; table {newest['table_version']}, members {newest['members_version']}")
    return "\n".join(lines)


def wanted(as_json: bool) -> bool:
    """Only for people."""
    return not as_json and sys.stdout.isatty()
