"""What is not well in a cluster, from what one node knows: each finding says what, where, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from roostmq.policy.leaving import WAY_MS_MAX, is_slow

AGE_S_MAX = 5.0
SILENT_MS = 1_500
ANSWERED_MS_MAX = 10_000
"""Who is heard answers at once, or after the seconds that a report of somebody binds."""
APPEND_MS_MAX = 250
LATE_MS_MAX = 500
"""A lane that was later than this in the last ten seconds had no CPU, or stood still."""
EACH_MIN = 8
"""Fewer partitions for each node than this do not balance well; 16 are advised."""

Say = Callable[[str, str, str, str], None]


def findings(told: dict[str, Any]) -> list[dict[str, str]]:
    """Findings about `GET /api/v1/cluster`, the worst first. Empty: nothing is wrong as far as this node can see."""
    found: list[dict[str, str]] = []

    def say(severity: str, where: str, what: str, do: str) -> None:
        found.append({"severity": severity, "where": where, "what": what, "do": do})

    for look in (_nats, _members, _partitions):
        look(told, say)
    return sorted(found, key=lambda f: f["severity"] != "error")


def _nats(told: dict[str, Any], say: Say) -> None:
    log = told["log"]
    if log["state"] == "unsuitable":
        for why in log["why"]:
            say("error", "NATS", why, "change NATS's configuration as said, then restart its servers one by one")
    elif log["state"] != "ready":
        say("error", "NATS", "; ".join(log["why"]) or log["state"], "nothing is lost; see whether its servers run")
    appends = log["appends_10s"]
    if appends["mean_ms"] > APPEND_MS_MAX or appends["unanswered"]:
        text = f"{told['node']}'s appends took {appends['mean_ms']:.0f} ms each in the last 10 s"
        text += f", {appends['unanswered']} had no answer in time" if appends["unanswered"] else ""
        say(
            "warning",
            "NATS",
            text,
            "acknowledgements wait as long: look at the disks of NATS's servers and the way there",
        )
    if told["crowded"] is not None:
        server, count = told["crowded"]
        text = f"server {server} leads {count} of the streams: all of them take nothing for seconds when it dies"
        say(
            "warning",
            "NATS",
            text,
            "wait: one is handed over every 20 s of calm; the log of the acting node says if not",
        )
    if told["age_s"] > AGE_S_MAX:
        text = f"the registry was read {told['age_s']:.0f} s ago"
        say("error", "registry", text, "what is shown is as old as that; see whether NATS has a leader")


def _members(told: dict[str, Any], say: Say) -> None:
    for member in told["members"]:
        if member["heard_ms"] is not None and member["heard_ms"] > SILENT_MS:
            text = f"was heard {member['heard_ms'] / 1000:.1f} s ago by {told['node']}"
            say("warning", member["node"], text, "it is voted out if a majority hears as little; look at its process")
        elif member["answered_ms"] is not None and member["answered_ms"] > ANSWERED_MS_MAX:
            text = f"{told['node']} hears it, but has had no answer for {member['answered_ms'] / 1000:.0f} s"
            say("error", member["node"], text, "their link does not settle: restart one of the two")
        if member["around"] is not None:
            text = f"{told['node']} does not reach it: what they say to each other goes through {member['around']}"
            say("warning", member["node"], text, "see to the network between the two: address, firewall, cable")
    _ways(told, say)
    if (late := max(told["lanes_late_ms"], default=0)) > LATE_MS_MAX:
        text = f"a lane was {late} ms late in the last seconds"
        say("warning", told["node"], text, "its clients wait as long: its machine has too little CPU, or stood still")
    if len(told["members"]) == 2:
        say("warning", "members", "two nodes: if one dies the other waits 12 s for the lease", "add a third node")


def _ways(told: dict[str, Any], say: Say) -> None:
    """Links that are slow; if all of them are, it is this node's own network or machine."""
    ways = {m["node"]: m["way_ms"] for m in told["members"] if m["way_ms"] is not None}
    slow = {node: ms for node, ms in ways.items() if ms > WAY_MS_MAX}
    advice = "what has to go there waits as long: look at its network, and whether its machine is overloaded"
    if is_slow(ways.values()):
        text = f"the way to every other node and back takes {min(slow.values())} ms or more"
        say("warning", told["node"], text, advice)
        return
    for node, ms in slow.items():
        say("warning", node, f"the way from {told['node']} to it and back takes {ms} ms", advice)


def _partitions(told: dict[str, Any], say: Say) -> None:
    orphans = [p["partition"] for p in told["partitions"] if p["owner"] is None]
    if orphans:
        say(
            "error",
            "table",
            f"{len(orphans)} partitions have no owner",
            "start a node; they are given out by themselves",
        )
    late = [p["partition"] for p in told["partitions"] if p["state"] != "serving" and p["owner"] is not None]
    if late:
        text = f"{len(late)} partitions do not serve yet: {late[:8]}"
        say("warning", "table", text, "their owners read the logs; if it lasts, see those nodes' logs")
    counts = [m["partitions"] / m["weight"] for m in told["members"]]
    if counts and max(counts) - min(counts) > 1 + min(counts) / 2:
        say(
            "warning",
            "balance",
            f"partitions by weight: {min(counts):.0f} to {max(counts):.0f}",
            "wait: it balances itself",
        )
    nodes, count = len(told["members"]), len(told["partitions"])
    if nodes > 1 and 0 < count < EACH_MIN * nodes:
        text = f"{count} partitions for {nodes} nodes: they do not balance well"
        say(
            "warning",
            "balance",
            text,
            "`roost cluster split` doubles them while clients talk; 16 for each node are good",
        )
    mine = {p["partition"] for p in told["partitions"] if p["owner"] == told["node"]}
    last = {n["partition"]: n["full"] for n in told["notes"] if n["event"] == "log_full" and n["partition"] in mine}
    if full := sorted(p for p, is_full in last.items() if is_full):
        text = f"the logs of {len(full)} partitions of {told['node']} are full: {full[:8]}"
        say("error", "NATS", text, "acknowledgements for their sessions wait: give the streams a higher max_bytes")
    for note in (n for n in told["notes"] if n["event"] == "not_kept"):
        text = f"keeps nothing beside NATS any more: {note['why']}"
        say("warning", told["node"], text, "see to the disk of its `cache_dir`, then restart it")
    damaged = [n for n in told["notes"] if n["event"] == "log_damaged"]
    for note in damaged:
        where = f"partition {note['partition']}"
        say(
            "error",
            where,
            note["why"],
            "it is never begun empty: bring its stream back, or a backup (roost cluster restore DIR --cache ...)",
        )
