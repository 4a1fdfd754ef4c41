"""This node's part in planned moves: orders for its engine, and what the table says when they have ended.

The engine carries and tells; the table alone decides. Contract: `orders` and `next_table` are called after each read
of the registry and may be called again: what was done is not done twice, what was interrupted is seen again.

Source: 30-cluster section 6, record 0011.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from roostmq.engine import Event
from roostmq.model import Assignment, Epoch, Members, NodeId, PartitionId, PartitionState, PartitionTable, Wishes
from roostmq.policy.epochs import call_off, cut, give_back, own, renew

REMEMBERED = 256
DIE_AT = os.environ.get("ROOST_DIE_AT")
"""Where a test lets this process die: a step of a move (engine/src/fatal.rs has the engine's)."""
SLOW_S = 2.0
"""Between two orders while appends take long."""
NO_SLOT = (1 << 16) - 1
"""Of no member."""
AGAIN_S = 30.0
"""An order whose outcome was never told is given again after this."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A move that has come to nothing here."""

    epoch: int
    sealed: bool


class Moves:
    """See the top of the file."""

    def __init__(self, node: NodeId) -> None:
        self.node = node
        self.recent: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        """What moved past or into this node: partition, epoch, sessions, bytes, ahead (while it served), pause_ms."""
        self._ordered: dict[int, tuple[int, float]] = {}
        self._carried: dict[int, int] = {}
        self._halved: dict[int, int] = {}
        self._failed: dict[int, Failed] = {}
        self._stale: dict[int, int] = {}
        self._sent = 0
        """Bytes of what was sealed since the last order."""
        self._free_s = 0.0
        """No order before this: what was handed over is spread over time."""
        self._slow_s = 0.0
        """Nor before this, while appends take long."""

    def on_event(self, event: Event) -> bool:
        """True if it was about a move."""
        match event.name:
            case "carried":
                self._carried[event["partition"]] = event["epoch"]
                self._note("carried", event)
            case "halved":
                self._halved[event["partition"]] = event["epoch"]
                self._note("halved", event)
            case "sealed":
                self._sent += event["bytes"]
            case "moved":
                self._note("moved", event)
            case "move_failed":
                self._failed[event["partition"]] = Failed(event["epoch"], event["sealed"])
                self._note("failed", event)
            case "stale":
                self._stale[event["partition"]] = event["epoch"]
            case _:
                return False
        return True

    def _note(self, what: str, event: Event) -> None:
        self.recent.append({"what": what, "at_s": round(time.time(), 3), **event.fields})

    def orders(
        self, table: PartitionTable, members: Members, wishes: Wishes, append_ms: float = 0.0
    ) -> Iterator[dict[str, Any]]:
        """What the engine has to begin; `append_ms`: what an append takes here now.

        Each order is a partition at rest for a moment, so limits are kept between them: what has begun goes on. A move
        to who is gone is ordered too: the engine says that it has failed, and whether anything was sealed.
        """
        now_s = time.monotonic()
        sent, self._sent = self._sent, 0
        if wishes.bytes_per_s:
            self._free_s = max(self._free_s, now_s) + sent / wishes.bytes_per_s
        mine = [
            (p, a)
            for p, a in enumerate(table.partitions)
            if a.state is PartitionState.MOVING and a.owner == self.node and p not in self._failed
        ]
        slow = 0 < wishes.append_ms_max < append_ms
        begun = [p for p, a in mine if self._ordered.get(p, (0, 0.0))[0] == a.epoch]
        # how much one is will be known when it is sent
        held = now_s < self._free_s or (slow and now_s < self._slow_s) or bool(wishes.bytes_per_s and begun)
        for p, a in mine:
            epoch, at_s = self._ordered.get(p, (0, 0.0))
            target = members.find(a.target) if a.target is not None else None
            if (held and target is not None) or (epoch == a.epoch and now_s <= at_s + AGAIN_S):
                continue
            self._ordered[p] = (a.epoch, now_s)
            if a.target == self.node:
                yield {"do": "split", "partition": p, "child": len(table.partitions)}
            else:
                yield {"do": "move", "partition": p, "slot": target.slot if target is not None else NO_SLOT}
            if target is not None:
                self._slow_s = now_s + SLOW_S
                held |= slow or bool(wishes.bytes_per_s)

    def next_table(self, table: PartitionTable) -> PartitionTable:
        """The table with all that has ended here, or the same: four that wait for a write need one, not four."""
        for partition, epoch in list(self._carried.items()):
            a = table.partitions[partition]
            if _is_moving(a, epoch) and a.target == self.node:
                die_at("target decides")
                table = own(table, PartitionId(partition))
            else:
                del self._carried[partition]
        for partition, epoch in list(self._halved.items()):
            a = table.partitions[partition]
            if _is_moving(a, epoch) and a.owner == a.target == self.node:
                die_at("owner decides")
                table = cut(table, PartitionId(partition))
            else:
                del self._halved[partition]
        for partition, failed in list(self._failed.items()):
            a = table.partitions[partition]
            if _is_moving(a, failed.epoch) and a.owner == self.node:
                end = give_back if failed.sealed else call_off
                table = end(table, PartitionId(partition))
            else:
                del self._failed[partition]
                self._ordered.pop(partition, None)
        for partition, epoch in list(self._stale.items()):
            a = table.partitions[partition]
            if a.epoch == epoch and a.owner == self.node:
                table = renew(table, PartitionId(partition), Epoch(epoch))
            else:
                del self._stale[partition]
        return table


def die_at(step: str) -> None:
    """The process ends here, as by `kill -9`, if this is the step that was named."""
    if step == DIE_AT:
        os.abort()


def die_behind(before: PartitionTable, after: PartitionTable, node: NodeId) -> None:
    """The same, if this node has just written a step into the table."""
    if DIE_AT is None:
        return
    for a, b in zip(before.partitions, after.partitions, strict=False):
        if b.state is PartitionState.MOVING and a.state is not PartitionState.MOVING:
            die_at("controller has announced")
        elif a.state is PartitionState.MOVING and b.owner == node != a.owner:
            die_at("target is named")
    if len(after.partitions) > len(before.partitions):
        die_at("halves are named")


def _is_moving(a: Assignment, epoch: int) -> bool:
    return a.state is PartitionState.MOVING and a.epoch == epoch
