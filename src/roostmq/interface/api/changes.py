"""Changes of a cluster over HTTP: plan, drain, weights, pins, a pause, the last change taken back, sockets moved on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from roostmq.errors import PlacementError
from roostmq.model import Member, NodeId, PartitionId, Wishes
from roostmq.policy.table import PARTITIONS_MAX
from roostmq.policy.table import plan as make_plan
from roostmq.policy.wishes import AT_ONCE_MAX, pinned, pins_that_hold, undone, unpinned
from roostmq.runtime import prepare

if TYPE_CHECKING:
    from roostmq.runtime.cluster import Cluster


LIMITS = ("paused", "at_once", "bytes_per_s", "append_ms_max", "leave_slow", "split_to")


class Wish(BaseModel):
    """What a member shall be; null leaves it as it is."""

    draining: bool | None = None
    weight: float | None = Field(default=None, gt=0)


class ShedWish(BaseModel):
    """Connections that shall go elsewhere."""

    count: int = Field(ge=1)
    to: list[str] = []
    """Nodes that clients of MQTT 5 are told of: the owner of their session if it is among them."""


class MoveWish(BaseModel):
    """What is wanted of planned moves; null leaves it as it is."""

    paused: bool | None = None
    at_once: int | None = Field(default=None, ge=1, le=AT_ONCE_MAX)
    bytes_per_s: int | None = Field(default=None, ge=0)
    append_ms_max: int | None = Field(default=None, ge=0)
    leave_slow: bool | None = None
    split_to: int | None = Field(default=None, ge=1, le=PARTITIONS_MAX)
    """So many partitions shall there be, a power of two: each is cut in two, one after another."""
    pin: dict[int, str] = {}
    """Partitions that shall be on a node and stay there."""
    unpin: bool | list[int] = False
    """All pins go, or those of some partitions, before those of `pin` come."""
    undo: bool = False
    """What the last change has moved goes back, and all is pinned where it then is."""


def wished(cluster: Cluster, wish: MoveWish, old: Wishes) -> Wishes:
    """The wishes after one. Raises HTTPException for a partition or a node that is none."""
    for p, node in wish.pin.items():
        count = len(cluster.table.partitions) if cluster.table is not None else cluster.token.partitions
        if not 0 <= p < count:
            raise HTTPException(404, f"there is no partition {p}: they are 0 to {count - 1}")
        if cluster.members.find(NodeId(node)) is None:
            raise HTTPException(404, f"`{node}` is no member of this cluster")
    if wish.split_to is not None and wish.split_to & (wish.split_to - 1):
        raise HTTPException(422, f"split_to: {wish.split_to} is not a power of two")
    gone = None if wish.unpin is True else [PartitionId(p) for p in wish.unpin or ()]
    made = unpinned(old, gone)
    if wish.undo:
        if cluster.table is None or not old.last:
            raise HTTPException(409, "there is nothing to take back: no planned move was made")
        made = undone(made, cluster.table)
    made = pinned(made, {PartitionId(p): NodeId(node) for p, node in wish.pin.items()})
    named = {name: getattr(wish, name) for name in LIMITS}
    return replace(made, **{name: value for name, value in named.items() if value is not None})


def planned(cluster: Cluster, join: str | None, leave: str | None, weight: float) -> dict[str, Any]:
    """Moves of a change, from what this node knows. Raises HTTPException for a change that cannot be."""
    if cluster.table is None:
        raise HTTPException(503, "this node has not read the table yet")
    nodes = {m.node: m for m in cluster.members.nodes}
    if join is not None:
        name = NodeId(join)
        nodes[name] = replace(nodes.get(name, Member(name, 0, "")), weight=weight, draining=False)
    if leave is not None and nodes.pop(NodeId(leave), None) is None:
        raise HTTPException(404, f"`{leave}` is no member of this cluster")
    members = tuple(sorted(nodes.values(), key=lambda m: m.node))
    try:
        pins = pins_that_hold(cluster.wishes, replace(cluster.members, nodes=members))
        found = make_plan(cluster.table, members, cluster.ring_of(members), pins=pins)
    except PlacementError as problem:
        raise HTTPException(409, str(problem)) from None
    owners = [a.owner for a in cluster.table.partitions]
    moves = [{"partition": m.partition, "from": owners[m.partition], "to": m.target} for m in found.moves]
    after = list(owners)
    for m in found.moves:
        after[m.partition] = m.target
    counts = {m.node: after.count(m.node) for m in members}
    told = {"moves": moves, "share": found.share, "partitions": counts, "table_version": cluster.table.version}
    return told | {name: getattr(cluster.wishes, name) for name in LIMITS}


def add_routes(app: FastAPI, there: Callable[[], Cluster]) -> None:
    """Add them to an application over a node; `there` is its cluster, or raises HTTPException."""

    @app.post("/api/v1/cluster/members/{name}")
    async def change(name: str, wish: Wish) -> dict[str, Any]:
        """Give a node another weight, let it hand over everything, or take that back."""
        found = await there().change_member(NodeId(name), draining=wish.draining, weight=wish.weight)
        if found is None:
            raise HTTPException(404, f"`{name}` is no member of this cluster")
        return {"members_version": found.version}

    @app.get("/api/v1/cluster/plan")
    async def plan(join: str | None = None, leave: str | None = None, weight: float = 1.0) -> dict[str, Any]:
        """What would move if a node joined, left, or had another weight, or now; nothing is changed."""
        await there().read_wishes()
        return planned(there(), join, leave, weight)

    @app.post("/api/v1/cluster/moves")
    async def moves(wish: MoveWish) -> dict[str, Any]:
        """Pause moves, let them go on, pin partitions to nodes, take the last change back."""
        known = there()
        return wishes_told(await known.change_wishes(lambda old: wished(known, wish, old)))

    @app.get("/api/v1/cluster/moves")
    async def wishes() -> dict[str, Any]:
        """What is wanted of planned moves."""
        return wishes_told(await there().read_wishes())

    @app.post("/api/v1/cluster/finalize")
    async def finalize() -> dict[str, Any]:
        """Write the newest format that all members read; releases that do not read it cannot come back."""
        known = there()
        if known.registry is None:
            raise HTTPException(503, "this node has not reached the registry yet")
        try:
            was, made = await prepare.finalize(known.registry, known.members.nodes)
        except PlacementError as problem:
            raise HTTPException(409, str(problem)) from None
        return {"was": was, "format": made}

    @app.post("/api/v1/cluster/shed")
    async def shed(wish: ShedWish) -> dict[str, Any]:
        """Send some of this node's clients to other nodes; their sessions stay."""
        there().shed(wish.count, {NodeId(n) for n in wish.to})
        return {"count": wish.count}


def wishes_told(wishes: Wishes) -> dict[str, Any]:
    """As JSON."""
    limits = {name: getattr(wishes, name) for name in LIMITS}
    return {**limits, "pins": dict(wishes.pins), "last": dict(wishes.last)}
