"""Names what stands still inside a node that answers nevertheless: the control loop, or the engine's links.

Both turn many times a second. Nothing of a client waits for them at first, so a node could go on for hours without
anybody noticing that it decides nothing any more.
"""

from __future__ import annotations

import asyncio
from typing import Any

STILL_S = 30.0
"""Longer than a round of requests to a registry of which each one is given up."""
WAYS_MAX = 20


class Standstill:
    """Looks now and then; says each standstill once, and its end."""

    def __init__(self, log: Any) -> None:
        self.log = log
        self.named: set[str] = set()

    def look(self, turned_s: dict[str, float], now_s: float) -> None:
        """When each part turned last, monotonic seconds."""
        for part, then_s in turned_s.items():
            if now_s - then_s <= STILL_S:
                if part in self.named:
                    self.named.discard(part)
                    self.log.warning("turns again", part=part)
            elif part not in self.named:
                self.named.add(part)
                self.log.error("stands still", part=part, for_s=round(now_s - then_s), waits=all_waits())


def all_waits() -> list[str]:
    """Where each task of the running loop waits, outermost call first."""
    return sorted(waits(task.get_coro()) for task in asyncio.all_tasks())[:WAYS_MAX]


def waits(coroutine: Any) -> str:
    """The calls of a suspended coroutine, as `function:line > function:line`."""
    calls = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None:
            break
        calls.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return " > ".join(calls)
