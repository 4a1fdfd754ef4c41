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
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException, Query

from roostmq import engine
from roostmq.interface.api import changes
from roostmq.interface.doctor import findings
from roostmq.policy.ring import partition_of

if TYPE_CHECKING:
    from roostmq.runtime.cluster import Cluster
    from roostmq.runtime.node import Node

ASK_S = 3.0


def add_routes(app: FastAPI, node: Node) -> None:
    """Add them to an application over a node."""

    def there() -> Cluster:
        if node.cluster is None:
            raise HTTPException(404, "this broker is no node of a cluster")
        return node.cluster

    changes.add_routes(app, there)

    @app.get("/api/v1/cluster")
    async def cluster() -> dict[str, Any]:
        """Members, table and log as this node knows them."""
        stats = await node.stats()
        told = describe(there(), node.not_ready) | {"waits": stats["waits"]}
        told["lanes_late_ms"] = [lane["late_ms"] for lane in stats["lanes"]]
        return told | {"findings": findings(told)}

    @app.get("/api/v1/cluster/why")
    async def why(client: str = Query()) -> dict[str, Any]:
        """Where a client's session is, and what its owner knows of it."""
        known = there()
        point = engine.hash_ids(known.token.key_pair, [client.encode()])[0]
        roots = known.token.partitions
        partition = partition_of(point, roots, len(known.table.partitions) if known.table is not None else roots)
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
            "answered_ms": heard[m.slot]["answered_ms"] if m.slot in heard else None,
            "way_ms": heard[m.slot]["way_ms"] if m.slot in heard else None,
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
        "log": {
            "state": cluster.log_state["state"],
            "why": cluster.log_state["why"],
            "appends_10s": cluster.appends.figures(),
        },
        "crowded": cluster.crowded,
        "notes": cluster.notes[-20:],
        "moves": list(cluster.moves.recent),
    }
