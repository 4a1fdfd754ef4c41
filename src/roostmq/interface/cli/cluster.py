"""`roost cluster`: make a cluster, look at it, ask it why."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from roostmq.interface.cli import admin, cluster_init, cluster_moves, cluster_rebalance, cluster_split


def parser() -> argparse.ArgumentParser:
    """Options of `roost cluster`."""
    p = argparse.ArgumentParser(prog="roost cluster", description="Make a cluster, look at it, ask it why.")
    sub = p.add_subparsers(dest="what", required=True, metavar="COMMAND")
    cluster_init.add_parser(sub)
    texts = {
        "status": "members, partitions and log in a few lines",
        "members": "the nodes",
        "partitions": "who owns which partition",
        "doctor": "what is not well, and what to do; exit code 1 for errors",
        "why": "where a client's session is, and what its owner knows of it",
    }
    for name, text in texts.items():
        one = sub.add_parser(name, help=text, description=f"{text}; from what one node knows, with its age.")
        if name == "why":
            one.add_argument("client", help="client id")
        admin.add_option(one)
        one.add_argument("--json", action="store_true", help="as JSON")
    cluster_moves.add_parsers(sub)
    cluster_rebalance.add_parser(sub)
    cluster_split.add_parser(sub)
    save = sub.add_parser("backup", help="write everything that the cluster keeps into a folder, while it runs")
    save.add_argument("name", help="name of the cluster")
    load = sub.add_parser("restore", help="put a backup into a NATS that knows nothing of this cluster")
    load.add_argument(
        "--cache",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="`cache_dir` of a node: what it has kept that is newer than the backup is told and put there too; "
        "name those of all nodes",
    )
    load.add_argument("--replicas", type=int, choices=(1, 3), help="copies of everything in NATS; default: as it was")
    for one in (save, load):
        one.add_argument("folder", type=Path, metavar="DIR", help="folder of the backup")
        one.add_argument("--nats", action="append", required=True, metavar="URL", help="where NATS is; may be repeated")
        one.add_argument("--json", action="store_true", help="print the manifest")
    return p


def main(words: list[str]) -> int:
    """Run one of the commands."""
    options = parser().parse_args(words)
    if options.what == "init":
        return cluster_init.main(options)
    if options.what in ("backup", "restore"):
        return _keep(options)
    if options.what == "why":
        return _why(options)
    if options.what == "rebalance":
        return cluster_rebalance.main(options)
    if options.what == "split":
        return cluster_split.main(options)
    if options.what in cluster_moves.COMMANDS:
        return cluster_moves.main(options)
    told = admin.get(options.admin, "/api/v1/cluster")
    shown = {"status": told, "members": told["members"], "partitions": told["partitions"], "doctor": told["findings"]}
    if options.json:
        print(json.dumps(shown[options.what]))
    else:
        {"status": _status, "members": _members, "partitions": _partitions, "doctor": _doctor}[options.what](told)
    bad = options.what == "doctor" and any(f["severity"] == "error" for f in told["findings"])
    return int(bad)


def _keep(o: argparse.Namespace) -> int:
    from roostmq.store.access import NatsAccess
    from roostmq.store.backup import backup
    from roostmq.store.restore import restore

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    access = NatsAccess(tuple(o.nats))
    if o.what == "backup":
        manifest = asyncio.run(backup(access, o.name, o.folder, tell))
        done = f"backup of `{o.name}` is in {o.folder}; keep the join token with it: the hash key is only there"
    else:
        manifest = asyncio.run(restore(access, o.folder, o.replicas, o.cache, tell))
        done = f"cluster `{manifest['cluster']}` is restored as it was at {time.ctime(manifest['at'])}"
        done += f"{_newer(manifest['newer'], bool(o.cache))}; start its nodes"
    print(json.dumps(manifest) if o.json else done)
    return 0


def _newer(found: list[dict[str, Any]], asked: bool) -> str:
    if not asked:
        return ", and not later: no --cache was given"
    records, left = sum(n["records"] for n in found), sum(n["left_out"] for n in found)
    text = f", and with {records} records of {len(found)} partitions that nodes had kept since"
    return text + (f"; {left} appends could not be used" if left else "")


def _status(told: dict[str, Any]) -> None:
    states: dict[str, int] = {}
    for p in told["partitions"]:
        states[p["state"]] = states.get(p["state"], 0) + 1
    counted = ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "none"
    print(f"cluster {told['cluster']}, seen from {told['node']}, {told['age_s']} s ago")
    print(f"  members     {len(told['members'])} (version {told['members_version']})")
    print(f"  partitions  {counted} (table version {told['table_version']})")
    print(f"  log         {told['log']['state']}{': ' if told['log']['why'] else ''}{'; '.join(told['log']['why'])}")
    print(f"  this node   {told['not_ready'] or 'ready'}")
    _members(told)
    if told["findings"]:
        print(f"{len(told['findings'])} findings: roost cluster doctor")


def _members(told: dict[str, Any]) -> None:
    print(f"  {'node':12} {'mqtt':22} {'zone':8} {'weight':>6} {'partitions':>10}  heard")
    for m in told["members"]:
        heard = "here" if m["heard_ms"] is None else f"{m['heard_ms']} ms ago"
        print(f"  {m['node']:12} {m['mqtt']:22} {m['zone']:8} {m['weight']:6g} {m['partitions']:10}  {heard}")


def _partitions(told: dict[str, Any]) -> None:
    print(f"  {'partition':>9}  {'owner':12} {'epoch':>5}  {'state':10} standbys")
    for p in told["partitions"]:
        owner = p["owner"] or "nobody"
        print(f"  {p['partition']:9}  {owner:12} {p['epoch']:5}  {p['state']:10} {', '.join(p['standbys'])}")


def _doctor(told: dict[str, Any]) -> None:
    if not told["findings"]:
        print(f"nothing is wrong, as far as {told['node']} can see")
    for f in told["findings"]:
        print(f"{f['severity']}: {f['where']}: {f['what']}\n  {f['do']}")


def _why(o: argparse.Namespace) -> int:
    told = admin.get(o.admin, "/api/v1/cluster/why", client=o.client)
    if o.json:
        print(json.dumps(told))
        return 0
    print(f"{told['client_id']}: partition {told['partition']}, as read {told['age_s']} s ago")
    print(f"  owner    {told.get('owner') or 'nobody'}, epoch {told.get('epoch', 0)}, {told.get('state', 'unknown')}")
    session = told.get("session") or {}
    if "why" in told or "error" in session:
        print(f"  {told.get('why') or session['error']}")
        return 0
    if not session.get("found"):
        print("  session  none: it never connected, or its session has ended")
        return 0
    where = (
        f"connected at {session['node']}" if session.get("node") else "connected" if session["connected"] else "away"
    )
    print(f"  session  {where}; {session['queued']} waiting, {session['sent_unacknowledged']} sent and not answered")
    print(f"  wants    {', '.join(session['subscriptions']) or 'nothing'}")
    return 0
