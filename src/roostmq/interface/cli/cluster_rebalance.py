"""`roost cluster rebalance`: what partitions really cost is spread; with `--connections RATE` sockets are, paced.

By load, one pass exchanges a few partitions, at most a tenth of the load; it is measured, then moved. Sockets stay
where they are unless it is asked for, and a new node gets some as clients come. Each client that is closed is told of
another node (DISCONNECT 0x9C with a server reference, MQTT 5.0); its session stays.
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
    text = "measure what partitions cost, and exchange a few so that no node carries more than 1.10 of its share"
    p = sub.add_parser("rebalance", help=text, description=f"{text}. Or, with --connections, spread sockets.")
    p.add_argument(
        "--connections",
        type=int,
        metavar="RATE",
        help="instead send so many clients a second to other nodes, until no node has more than 1.10 of its share",
    )
    p.add_argument("--seconds", type=float, default=5.0, metavar="S", help="measure for so long; default 5")
    p.add_argument("--dry-run", action="store_true", help="only say what would move")
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
    """One or the other."""
    return _by_load(o) if o.connections is None else _sockets(o)


def _by_load(o: argparse.Namespace) -> int:
    if not o.dry_run:
        admin.refuse_if_paused(o.admin, "nothing can be exchanged now")
    wish = {"seconds": o.seconds, "apply": not o.dry_run}
    told = admin.post(o.admin, "/api/v1/cluster/balance", o.seconds + 30, **wish)
    moves = {m["partition"]: m["to"] for m in told["moves"]}
    while moves and not o.dry_run:
        rows = admin.get(o.admin, "/api/v1/cluster")["partitions"]
        left = sum(r["owner"] != moves[r["partition"]] for r in rows if r["partition"] in moves)
        if not left:
            admin.post(o.admin, "/api/v1/cluster/moves", 15, unpin=list(moves))
            break
        if not o.json:
            print(f"{left} of {len(moves)} partitions have to move", file=sys.stderr)
        time.sleep(ROUND_S)
    if o.json:
        print(json.dumps(told))
        return 0
    print(f"fullest node, CPU over its share: {told['cpu']['before']:.2f}, afterwards {told['cpu']['after']:.2f}")
    print(f"the same in bytes: {told['bytes']['before']:.2f}, afterwards {told['bytes']['after']:.2f}")
    print("  " + (", ".join(f"{m['partition']}: {m['from']} > {m['to']}" for m in told["moves"]) or "nothing moves"))
    for heavy in told["heavy"]:
        print(f"{heavy['what']} on {heavy['node']} is {heavy['share']:.0%} of all, more than that node's share")
    return 0


def _sockets(o: argparse.Namespace) -> int:
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
