"""`roost cluster plan`, `apply`, `drain` and friends: what would move, let it move, hold it, take it back."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from roostmq.errors import ConfigError
from roostmq.interface.cli import admin
from roostmq.interface.explain import size

LOOK_S = 0.2
MOVE_S, MOVED_BYTES_S = 0.2, 200_000_000
"""What a move takes on loopback (docs/guide/cluster.md): between networks it is what they carry."""
TEXTS = {
    "plan": "what would move if a node joined or left, or now; nothing is changed",
    "apply": "let moves go on, with progress, until everything is where it should be",
    "pause": "no further move begins; those under way end",
    "resume": "moves may begin again",
    "undo": "take the last change back: what it has moved goes to who had it before, and all is pinned",
    "move": "bring one partition to a node, and pin it there",
    "unpin": "forget all pins: balance decides again",
    "drain": "move everything away from a node, so that it can be stopped",
    "undrain": "take a drain back: the node gets its share again",
    "finalize": "after an upgrade of all nodes: write the newest format; the release before cannot come back then",
    "weight": "give a node another share of the partitions",
}
COMMANDS = tuple(TEXTS)


def add_parsers(sub: Any) -> None:
    """The commands that move something, or show what would move."""
    made = {name: sub.add_parser(name, help=text, description=f"{text}.") for name, text in TEXTS.items()}
    made["plan"].add_argument(
        "change", nargs="?", choices=("add", "remove"), help="the node joins (or gets another weight), or leaves"
    )
    made["plan"].add_argument("node", nargs="?", help="name of the node; without: what would move now")
    made["plan"].add_argument("--weight", type=float, default=1.0, metavar="W", help="its weight; default 1")
    made["move"].add_argument("partition", type=int, metavar="PARTITION", help="its number")
    for name in ("move", "drain", "undrain", "weight"):
        made[name].add_argument("node", help="name of the node")
    for name in ("apply", "drain"):
        made[name].add_argument("--no-wait", action="store_true", help="do not wait until everything has moved")
    made["apply"].add_argument("--moves-at-once", type=int, metavar="N", help="so many at the same time; at first 4")
    made["apply"].add_argument(
        "--bytes-per-second",
        type=int,
        metavar="B",
        help="each node hands over so much on average; 0, at first: no limit",
    )
    made["apply"].add_argument(
        "--append-ms", type=int, metavar="MS", help="slow down while appends to NATS take longer; 0, at first: never"
    )
    made["apply"].add_argument(
        "--leave-slow",
        choices=("on", "off"),
        help="a node whose links are all slow gives its partitions away until they are well; at first off",
    )
    made["weight"].add_argument("weight", type=float, metavar="W", help="2 is twice the share of a node with 1")
    for one in made.values():
        admin.add_option(one)
        one.add_argument("--json", action="store_true", help="as JSON")


def main(o: argparse.Namespace) -> int:
    """Run one of them."""
    if o.what == "plan":
        return _plan(o)
    if o.what in ("drain", "undrain", "weight"):
        return _change(o)
    if o.what == "finalize":
        return _finalize(o)
    if o.what == "apply":
        return _apply(o)
    return _wish(o)


def _plan(o: argparse.Namespace) -> int:
    if (o.change is None) != (o.node is None):
        raise ConfigError(f"roost cluster plan {o.change}: which node?")
    change = {"join": o.node, "weight": str(o.weight)} if o.change == "add" else {"leave": o.node}
    told = admin.get(o.admin, "/api/v1/cluster/plan", **(change if o.change else {}))
    told["bytes"] = _bytes_of(o, told)
    if o.json:
        print(json.dumps(told))
        return 0
    print(f"{len(told['moves'])} partitions would move, {told['share']:.1%} of all clients; each one is handed over:")
    print("its clients wait for a moment and stay connected")
    per_s = told["bytes_per_s"]
    pace = f"{told['at_once']} at once" + (f", {size(per_s)} a second from each node" if per_s else "")
    print(f"their queues hold {size(told['bytes'])}; {pace}: {_expected(told)}")
    print(f"NATS: {2 * len(told['moves'])} changes of the table, {len(told['moves'])} appends; standbys copy nothing")
    routes: dict[tuple[str, str], list[int]] = {}
    for move in told["moves"]:
        routes.setdefault((move["from"] or "nobody", move["to"]), []).append(move["partition"])
    for (source, target), partitions in sorted(routes.items()):
        print(f"  {source} > {target}: {len(partitions):3} ({', '.join(str(p) for p in partitions)})")
    print("partitions afterwards: " + ", ".join(f"{node} {n}" for node, n in told["partitions"].items()))
    return 0


def _bytes_of(o: argparse.Namespace, told: dict[str, Any]) -> int:
    """What the queues of these partitions hold now; each owner is asked."""
    moved = {m["partition"] for m in told["moves"]}
    sources = {m["from"] for m in told["moves"]}
    found = 0
    for member in admin.get(o.admin, "/api/v1/cluster")["members"]:
        if member["node"] in sources:
            load = admin.get(f"http://{member['admin']}", "/api/v1/cluster/load", seconds="0.1")
            found += sum(held for p, _, held, _ in load["partitions"] if p in moved)
    return found


def _expected(told: dict[str, Any]) -> str:
    """How long it takes about: at least the pauses one after another, and what limits say."""
    pauses_s = len(told["moves"]) * MOVE_S / max(1, told["at_once"]) + told["bytes"] / MOVED_BYTES_S
    sources = len({m["from"] for m in told["moves"]}) or 1
    paced_s = told["bytes"] / told["bytes_per_s"] / sources if told["bytes_per_s"] else 0.0
    return f"about {max(pauses_s, paced_s):.0f} s" if max(pauses_s, paced_s) >= 1 else "about a second"


def _change(o: argparse.Namespace) -> int:
    wish = {"weight": o.weight} if o.what == "weight" else {"draining": o.what == "drain"}
    told = admin.post(o.admin, f"/api/v1/cluster/members/{o.node}", 15, **wish)
    if o.what == "drain" and not o.no_wait:
        admin.refuse_if_paused(o.admin, f"{o.node} shall hand over everything, but that waits")
        left = -1
        while left != 0:
            now = admin.get(o.admin, "/api/v1/cluster")["partitions"]
            if (held := sum(p["owner"] == o.node for p in now)) != left:
                print(f"{o.node} has {held} partitions left", file=sys.stderr)
            left = held
            time.sleep(LOOK_S)
    if o.json:
        print(json.dumps(told))
    else:
        draining = "is being emptied" if getattr(o, "no_wait", False) else "owns nothing and can be stopped"
        after = {"drain": draining, "undrain": "gets its share again"}
        print(f"{o.node} {after.get(o.what) or f'has weight {o.weight:g} now: see `roost cluster members`'}")
    return 0


def _apply(o: argparse.Namespace) -> int:
    limits = {"at_once": o.moves_at_once, "bytes_per_s": o.bytes_per_second, "append_ms_max": o.append_ms}
    leave = None if o.leave_slow is None else o.leave_slow == "on"
    told = admin.post(o.admin, "/api/v1/cluster/moves", 15, paused=False, leave_slow=leave, **limits)
    shown = None
    while not o.no_wait:
        left = len(admin.get(o.admin, "/api/v1/cluster/plan")["moves"])
        rows = admin.get(o.admin, "/api/v1/cluster")["partitions"]
        moving = sum(p["state"] != "serving" for p in rows)
        if (left, moving) != shown and not o.json:
            print(f"{left} partitions have to move, {moving} are on their way", file=sys.stderr)
        shown = (left, moving)
        if shown == (0, 0):
            break
        time.sleep(LOOK_S)
    print(json.dumps(told) if o.json else f"moves go on, {told['at_once']} at once")
    return 0


def _finalize(o: argparse.Namespace) -> int:
    told = admin.post(o.admin, "/api/v1/cluster/finalize", 15)
    if o.json:
        print(json.dumps(told))
    elif told["was"] == told["format"]:
        print(f"format {told['format']} is the newest that all nodes read, and is written already: nothing changes")
    else:
        print(f"format {told['format']} is written from now on; releases that do not read it cannot come back")
    return 0


def _wish(o: argparse.Namespace) -> int:
    wishes: dict[str, dict[str, Any]] = {
        "pause": {"paused": True},
        "resume": {"paused": False},
        "undo": {"undo": True},
        "unpin": {"unpin": True},
    }
    wish = wishes[o.what] if o.what in wishes else {"pin": {str(o.partition): o.node}}
    told = admin.post(o.admin, "/api/v1/cluster/moves", 15, **wish)
    if o.json:
        print(json.dumps(told))
        return 0
    pins = ", ".join(f"{p} > {node}" for p, node in sorted(told["pins"].items(), key=lambda i: int(i[0]))) or "none"
    if o.what == "undo":
        pins = f"all {len(told['pins'])} partitions"
    print(f"moves are paused: `roost cluster resume`; pins: {pins}" if told["paused"] else f"pins: {pins}")
    if o.what in ("undo", "move") and not told["paused"]:
        print("they move now: `roost cluster apply` shows how far they are; `roost cluster unpin` lets balance decide")
    return 0
