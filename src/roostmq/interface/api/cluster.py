"""What a node knows of its cluster, over HTTP: `/api/v1/cluster`, `/api/v1/cluster/why`.

From local state, with its age.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException, Query
from pydantic import BaseModel, Field

from roostmq import engine
from roostmq.errors import PlacementError
from roostmq.interface.doctor import findings
from roostmq.model import Member, NodeId, PartitionId, Wishes
from roostmq.policy.ring import build_ring
from roostmq.policy.table import plan as make_plan
from roostmq.policy.wishes import AT_ONCE_MAX, pinned, pins_that_hold, undone, unpinned

if TYPE_CHECKING:
    from roostmq.runtime.cluster import Cluster
    from roostmq.runtime.node import Node

ASK_S = 3.0


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
    pin: dict[int, str] = {}
    """Partitions that shall be on a node and stay there."""
    unpin: bool = False
    """All pins go, before those of `pin` come."""
    undo: bool = False
    """What the last change has moved goes back, and all is pinned where it then is."""


def wished(cluster: Cluster, wish: MoveWish, old: Wishes) -> Wishes:
    """The wishes after one. Raises HTTPException for a partition or a node that is none."""
    for p, node in wish.pin.items():
        if not 0 <= p < cluster.token.partitions:
            raise HTTPException(404, f"there is no partition {p}: they are 0 to {cluster.token.partitions - 1}")
        if cluster.members.find(NodeId(node)) is None:
            raise HTTPException(404, f"`{node}` is no member of this cluster")
    made = unpinned(old) if wish.unpin else old
    made = undone(made, cluster.table) if wish.undo and cluster.table is not None else made
    made = pinned(made, {PartitionId(p): NodeId(node) for p, node in wish.pin.items()})
    return replace(
        made,
        paused=made.paused if wish.paused is None else wish.paused,
        at_once=made.at_once if wish.at_once is None else wish.at_once,
    )


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
        ring = build_ring(members, lambda names: engine.hash_ids(cluster.token.key_pair, names))
        pins = pins_that_hold(cluster.wishes, replace(cluster.members, nodes=members))
        found = make_plan(cluster.table, members, ring, pins=pins)
    except PlacementError as problem:
        raise HTTPException(409, str(problem)) from None
    owners = [a.owner for a in cluster.table.partitions]
    moves = [{"partition": m.partition, "from": owners[m.partition], "to": m.target} for m in found.moves]
    after = list(owners)
    for m in found.moves:
        after[m.partition] = m.target
    counts = {m.node: after.count(m.node) for m in members}
    return {"moves": moves, "share": found.share, "partitions": counts, "table_version": cluster.table.version}


def add_routes(app: FastAPI, node: Node) -> None:
    """Add them to an application over a node."""

    def there() -> Cluster:
        if node.cluster is None:
            raise HTTPException(404, "this broker is no node of a cluster")
        return node.cluster

    @app.get("/api/v1/cluster")
    async def cluster() -> dict[str, Any]:
        """Members, table and log as this node knows them."""
        told = describe(there(), node.not_ready) | {"waits": (await node.stats())["waits"]}
        return told | {"findings": findings(told)}

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

    @app.post("/api/v1/cluster/shed")
    async def shed(wish: ShedWish) -> dict[str, Any]:
        """Send some of this node's clients to other nodes; their sessions stay."""
        there().shed(wish.count, {NodeId(n) for n in wish.to})
        return {"count": wish.count}

    @app.get("/api/v1/cluster/why")
    async def why(client: str = Query()) -> dict[str, Any]:
        """Where a client's session is, and what its owner knows of it."""
        known = there()
        point = engine.hash_ids(known.token.key_pair, [client.encode()])[0]
        partition = point >> (64 - (known.token.partitions.bit_length() - 1)) if known.token.partitions > 1 else 0
        told: dict[str, Any] = {"client_id": client, "partition": partition, "age_s": age_s(known)}
        if known.table is None:
            return told | {"owner": None, "why": "this node has not read the table yet"}
        a = known.table.partitions[partition]
        told |= {"owner": a.owner, "epoch": a.epoch, "state": a.state, "standbys": list(a.standbys)}
        owner = known.members.find(a.owner) if a.owner is not None else None
        if owner is None:
            return told | {"why": "its owner is gone; the next one is about to take over"}
        if owner.node == known.node:
            session = await node.why(client, None)
        else:
            session = await asyncio.to_thread(_ask_owner, owner.admin, client)
        door = next((m.node for m in known.members.nodes if m.slot == session.get("slot")), None)
        return told | {"session": session | {"node": door}}


def wishes_told(wishes: Wishes) -> dict[str, Any]:
    """As JSON."""
    return {"paused": wishes.paused, "at_once": wishes.at_once, "pins": dict(wishes.pins), "last": dict(wishes.last)}


def _ask_owner(admin: str, client: str) -> dict[str, Any]:
    if not admin:
        return {"error": "its owner has no admin port"}
    url = f"http://{admin}/api/v1/why?client={urllib.parse.quote(client)}"
    try:
        with urllib.request.urlopen(url, timeout=ASK_S) as answer:
            told: dict[str, Any] = json.load(answer)
            return told
    except (OSError, urllib.error.URLError, ValueError) as error:
        return {"error": f"its owner does not answer at {admin}: {error}"}


def age_s(cluster: Cluster) -> float:
    """How old what this node knows of the registry is."""
    return round(time.monotonic() - cluster.read_s, 1)


def describe(cluster: Cluster, not_ready: str | None) -> dict[str, Any]:
    """Everything, as JSON."""
    heard = {link["slot"]: link for link in cluster.links}
    names = {m.slot: m.node for m in cluster.members.nodes}
    members = [
        {
            "node": m.node,
            "slot": m.slot,
            "incarnation": m.incarnation,
            "zone": m.zone,
            "weight": m.weight,
            "draining": m.draining,
            "mqtt": m.mqtt,
            "admin": m.admin,
            "links": m.address,
            "heard_ms": heard[m.slot]["heard_ms"] if m.slot in heard else None,
            "around": names.get(heard[m.slot]["around"]) if m.slot in heard else None,
            "partitions": sum(a.owner == m.node for a in cluster.table.partitions) if cluster.table else 0,
        }
        for m in cluster.members.nodes
    ]
    table = cluster.table
    partitions = (
        []
        if table is None
        else [
            {
                "partition": p,
                "owner": a.owner,
                "epoch": a.epoch,
                "state": a.state,
                "target": a.target,
                "standbys": list(a.standbys),
            }
            for p, a in enumerate(table.partitions)
        ]
    )
    return {
        "cluster": cluster.options.name,
        "node": cluster.node,
        "joined": cluster.joined,
        "not_ready": not_ready,
        "age_s": age_s(cluster),
        "members_version": cluster.members.version,
        "members": members,
        "table_version": table.version if table is not None else 0,
        "partitions": partitions,
        "log": {"state": cluster.log_state["state"], "why": cluster.log_state["why"]},
        "notes": cluster.notes[-20:],
        "moves": list(cluster.moves.recent),
    }
