"""`roost cluster split`: twice as many partitions with the same owners, while clients talk (record 0014).

Partitions are cut in two one after another; each stands still for a moment, no socket closes. What was begun goes on by
itself, also if this command ends: asking again shows how far it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from roostmq.errors import RoostError
from roostmq.interface.cli import admin
from roostmq.interface.explain import size

LOOK_S = 0.2
CUT_S, PAUSE_MS, CUT_BYTES_S = 0.07, 45, 120_000_000
"""What a cut takes on loopback (record 0014), and bytes of queues that are packed and read twice in a second."""
STUCK_S = 60.0
"""Without one more partition for so long something is wrong."""


def add_parser(sub: Any) -> None:
    """Options of `roost cluster split`."""
    text = "cut every partition in two, one after another: twice as many, with the same owners"
    split = sub.add_parser("split", help=text, description=f"{text}. No socket closes; there is no way back.")
    split.add_argument("--to", type=int, metavar="P", help="so many, a power of two; default: twice as many as now")
    split.add_argument("--dry-run", action="store_true", help="only say what it would do")
    split.add_argument("--no-wait", action="store_true", help="do not wait until all are cut")
    admin.add_option(split)
    split.add_argument("--json", action="store_true", help="as JSON")


def main(o: argparse.Namespace) -> int:
    """Want it, and show how far it is."""
    if not o.dry_run:
        admin.refuse_if_paused(o.admin, "no partition would be cut")
    begun_s, before = time.time(), len(_rows(o))
    asked = admin.get(o.admin, "/api/v1/cluster/moves")["split_to"]
    to = o.to or (asked if asked > before else 2 << (before.bit_length() - 1))
    if to <= before:
        raise RoostError(f"--to: there are {before} partitions already, and they are never joined again")
    if o.dry_run:
        return _foresee(o, before, to)
    admin.post(o.admin, "/api/v1/cluster/moves", 15, split_to=to)
    if not o.no_wait:
        _wait(o, before, to)
    told = {"was": before, "partitions": to, "waited": not o.no_wait, **_pauses(o, begun_s)}
    if o.json:
        print(json.dumps(told))
    elif o.no_wait:
        print(f"{before} partitions become {to}, one after another: `roost cluster status` shows how far it is")
    else:
        print(f"{to} partitions; each stood still for {told['pause_p99_ms']} ms at most in 99 of 100 cases")
    return 0


def _foresee(o: argparse.Namespace, before: int, to: int) -> int:
    """What it would do, from what queues hold now."""
    held: list[int] = []
    for member in admin.get(o.admin, "/api/v1/cluster")["members"]:
        if member["admin"]:
            loads = admin.get(f"http://{member['admin']}", "/api/v1/cluster/load", seconds="0.1")["partitions"]
            held += [load[2] for load in loads]
    largest = max(held, default=0)
    told = {"was": before, "partitions": to, "seconds": round((to - before) * CUT_S + sum(held) / CUT_BYTES_S, 1)}
    told |= {"largest_bytes": largest, "longest_pause_ms": round(PAUSE_MS + 1000 * largest / CUT_BYTES_S)}
    if o.json:
        print(json.dumps(told))
        return 0
    print(f"{before} partitions become {to}, each with the owner of the one that it was cut off")
    print(f"it takes about {told['seconds']:.0f} s; NATS keeps the state of half of them once more")
    print(f"the largest holds {size(largest)} in its queues and stands still for about {told['longest_pause_ms']} ms")
    return 0


def _rows(o: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = admin.get(o.admin, "/api/v1/cluster")["partitions"]
    return rows


def _wait(o: argparse.Namespace, count: int, to: int) -> None:
    changed_s = time.monotonic()
    while True:
        rows = _rows(o)
        if len(rows) >= to and all(p["state"] == "serving" for p in rows):
            return
        if len(rows) != count:
            changed_s = time.monotonic()
            print(f"{len(rows)} of {to} partitions", file=sys.stderr)
        elif time.monotonic() > changed_s + STUCK_S:
            raise RoostError(f"{count} of {to} partitions, and no more for {STUCK_S:.0f} s: ask `roost cluster doctor`")
        count = len(rows)
        time.sleep(LOOK_S)


def _pauses(o: argparse.Namespace, since_s: float) -> dict[str, int]:
    """How long doors held what was for a partition, of all nodes that can be asked."""
    told = admin.get(o.admin, "/api/v1/cluster")
    pauses: list[int] = []
    for member in told["members"]:
        if member["admin"]:
            moves = admin.get(f"http://{member['admin']}", "/api/v1/cluster")["moves"]
            pauses += [m["pause_ms"] for m in moves if m["what"] == "moved" and m["at_s"] >= since_s]
    pauses.sort()
    at = min(len(pauses) - 1, len(pauses) * 99 // 100)
    return {"pause_p99_ms": pauses[at] if pauses else 0, "pause_max_ms": pauses[-1] if pauses else 0}
