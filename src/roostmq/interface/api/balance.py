"""Balance by load over HTTP: what the partitions of a node cost, and a pass over those of all nodes.

`/api/v1/cluster/load` measures for a few seconds; `/api/v1/cluster/balance` asks every member for that, lets
`policy/balance.py` decide, and pins what it wants to move.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from roostmq.errors import PlacementError
from roostmq.model import PartitionId, PartitionTable
from roostmq.policy.balance import Load, Pass, balance
from roostmq.policy.wishes import pinned

if TYPE_CHECKING:
    from roostmq.runtime.cluster import Cluster
    from roostmq.runtime.node import Node

SECONDS_MAX = 60.0


class BalanceWish(BaseModel):
    """One pass."""

    seconds: float = Field(default=5.0, gt=0, le=SECONDS_MAX)
    """So long it is measured."""
    apply: bool = False
    """What it wants to move is pinned where it shall be."""


Cost = tuple[float, int, tuple[str, int] | None]
"""CPU (seconds per second), bytes in queues, and the client with most of these bytes."""


def costs(before: dict[str, Any], after: dict[str, Any], took_s: float) -> dict[int, Cost]:
    """What each partition costs, between two `stats` events of a node.

    A lane knows how long it was busy, and how much each of its partitions did: its time is divided by that.
    """
    found: dict[int, Cost] = {}
    lanes = zip(before["lanes"], after["lanes"], before["loads"], after["loads"], strict=True)
    for lane_before, lane_after, old, new in lanes:
        busy_s = (lane_after["busy_ns"] - lane_before["busy_ns"]) / 1e9
        had = {p: work for p, work, *_ in old}
        did = {p: max(0, work - had.get(p, work)) for p, work, *_ in new}
        total = sum(did.values()) or 1
        found |= {p: (busy_s * did[p] / total / took_s, held, largest) for p, _, held, largest in new}
    return found


async def measure(node: Node, seconds: float) -> dict[int, Cost]:
    """What the partitions of this node cost."""
    before, begun_s = await node.stats(), time.monotonic()
    await asyncio.sleep(seconds)
    return costs(before, await node.stats(), time.monotonic() - begun_s)


def _ask(admin: str, seconds: float) -> dict[int, Cost]:
    url = f"http://{admin}/api/v1/cluster/load?seconds={seconds}"
    try:
        with urllib.request.urlopen(url, timeout=seconds + 10) as answer:
            return {int(p): (cpu, held, largest) for p, cpu, held, largest in json.load(answer)["partitions"]}
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise HTTPException(503, f"the node at {admin} does not say what its partitions cost: {error}") from None


async def loads_of_all(
    cluster: Cluster, node: Node, table: PartitionTable, seconds: float
) -> tuple[list[Load], dict[str, tuple[PartitionId, Load]]]:
    """By partition, measured at the same time everywhere; and the client with the longest queue of each.

    Raises HTTPException if a member does not answer.
    """
    others = [m.admin for m in cluster.members.nodes if m.node != cluster.node]
    told = await asyncio.gather(measure(node, seconds), *(asyncio.to_thread(_ask, a, seconds) for a in others))
    loads = [Load(0.0)] * len(table.partitions)
    clients = {}
    for p, (cpu, held, largest) in ((p, cost) for one in told for p, cost in one.items()):
        loads[p] = Load(cpu, float(held))
        if largest is not None:
            clients[largest[0]] = (PartitionId(p), Load(0.0, float(largest[1])))
    return loads, clients


def shown(found: Pass, owners: list[Any]) -> dict[str, Any]:
    """A pass as JSON."""
    return {
        "moves": [{"partition": m.partition, "from": owners[m.partition], "to": m.target} for m in found.plan.moves],
        "cpu": {"before": round(found.cpu_before, 3), "after": round(found.cpu_after, 3)},
        "bytes": {"before": round(found.bytes_before, 3), "after": round(found.bytes_after, 3)},
        "heavy": [
            {"what": h.what, "node": h.node, "share": round(h.share, 3), "fair": round(h.fair, 3)} for h in found.heavy
        ],
    }


def add_routes(app: FastAPI, node: Node) -> None:
    """Add them to an application over a node of a cluster."""

    @app.get("/api/v1/cluster/load")
    async def load(seconds: float = 5.0) -> dict[str, Any]:
        """CPU and bytes of each partition of this node, measured for so long, with the client of its longest queue."""
        found = await measure(node, min(SECONDS_MAX, max(0.1, seconds)))
        return {"partitions": [[p, *cost] for p, cost in sorted(found.items())]}

    @app.post("/api/v1/cluster/balance")
    async def pass_over_all(wish: BalanceWish) -> dict[str, Any]:
        """What one pass of balance by load would move, or moves."""
        cluster = node.cluster
        if cluster is None or cluster.table is None:
            raise HTTPException(503, "this node has not read the table yet")
        loads, clients = await loads_of_all(cluster, node, cluster.table, wish.seconds)
        table, members = cluster.table, cluster.members.nodes
        try:
            found = balance(table, members, cluster.ring_of(members), loads, clients)
        except PlacementError as problem:
            raise HTTPException(409, str(problem)) from None
        if wish.apply and found.plan.moves:
            pins = {m.partition: m.target for m in found.plan.moves}
            await cluster.change_wishes(lambda old: pinned(old, pins))
        return shown(found, [a.owner for a in table.partitions])
