"""`roost cluster rebalance --connections RATE`: sockets from the fullest nodes to the others, paced.

Off unless it is asked for: partitions move by themselves, sockets stay where they are, and a new node gets some as
clients come. Each closed client is told of another node (DISCONNECT 0x9C with a server reference, MQTT 5.0); its
session stays.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from roostmq.errors import RoostError
from roostmq.interface.cli import admin

AIM = 1.10
ROUND_S = 1.0
IDLE_ROUNDS = 15


def add_parser(sub: Any) -> None:
    """Options."""
    text = "close connections of the fullest nodes, so many a second, until none has more than 1.10 of its share"
    p = sub.add_parser("rebalance", help=text, description=f"{text}. Sessions are kept; clients come back elsewhere.")
    p.add_argument("--connections", type=int, required=True, metavar="RATE", help="so many sockets a second at most")
    admin.add_option(p)
    p.add_argument("--json", action="store_true", help="as JSON")


def shares(members: list[dict[str, Any]], counts: dict[str, int]) -> dict[str, float]:
    """How many connections each node should have: by weight, none if it is draining."""
    weights = {m["node"]: 0.0 if m["draining"] else m["weight"] for m in members}
    total = sum(weights.values()) or 1.0
    return {node: sum(counts.values()) * weight / total for node, weight in weights.items()}


def excess(counts: dict[str, int], fair: dict[str, float]) -> dict[str, int]:
    """How many each node has to give: all above its share if somebody is above 1.10 of it, else none."""
    worst = max((counts[n] / fair[n] if fair[n] else float(counts[n] > 0) * 2 for n in counts), default=0.0)
    return {n: max(0, int(counts[n] - fair[n])) if worst > AIM else 0 for n in counts}


def main(o: argparse.Namespace) -> int:
    """Look, close a few, look again."""
    closed, idle, least = 0, 0, None
    before: dict[str, int] = {}
    while True:
        members = admin.get(o.admin, "/api/v1/cluster")["members"]
        urls = {m["node"]: f"http://{m['admin']}" for m in members}
        counts = {node: int(admin.get(url, "/api/v1/info")["connections"]) for node, url in urls.items()}
        before = before or counts
        fair = shares(members, counts)
        gives = excess(counts, fair)
        left = sum(gives.values())
        if not left:
            break
        if least is not None and left >= least:
            idle += 1
        else:
            idle, least = 0, left
        if idle > IDLE_ROUNDS:
            raise RoostError(
                f"{closed} clients were sent elsewhere and {left} too many are where they were: they come back to the "
                "address that they know; put the nodes behind a load balancer (`roost lb config haproxy`)"
            )
        if not o.json:
            print(", ".join(f"{n} {counts[n]} of {fair[n]:.0f}" for n in sorted(counts)), file=sys.stderr)
        to = [n for n in counts if counts[n] < fair[n]]
        for node, give in gives.items():
            count = min(give, max(1, o.connections * give // left))
            if give:
                admin.post(urls[node], "/api/v1/cluster/shed", 15, count=count, to=to)
                closed += count
        time.sleep(ROUND_S)
    told = {"closed": closed, "before": before, "after": counts}
    if o.json:
        print(json.dumps(told))
    else:
        print(f"{closed} connections were sent to other nodes: " + ", ".join(f"{n} {c}" for n, c in counts.items()))
    return 0
