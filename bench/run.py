"""`make bench`: RoostMQ beside its peers and beside the floor, on one core, every message verified.

Broker on core 0, generator on core 1, peers in turn, rounds repeated, medians. Only ratios of one run count. Tables go
to docs/benchmarks.md, a plot of each beside it.

    .venv/bin/python bench/run.py [--quick] [--only TABLE ...] [--peers KEY ...] [--write] [--smoke]
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import brokers
import growth
import load_shapes
import works
from brokers import ROOT, BrokerFailed, Features, Peer, Place, Tls, find, running
from built import BUILT
from durable import write_section
from plot import PLOTS, bars

Values = dict[str, list[float]]


@dataclass
class Run:
    """What the command line asks for, and what is at hand."""

    rounds: int
    seconds: float
    peers: dict[str, Peer]
    tls: Tls
    smoke: bool = False
    missed: list[str] = field(default_factory=list)
    ours: dict[str, float] = field(default_factory=dict)

    def options(self, work: works.Work, rate: float | None) -> tuple[object, ...]:
        """A work's options, made short in a smoke; a rate that it gets from another goes to its end."""
        options = [*work.options, *([] if rate is None else [rate])]
        if work.work == "pub-sub":
            options += ["--seconds", self.seconds, "--warmup", min(0.5, self.seconds)]
        if self.smoke:
            small = {"-n": 500, "--publishers": 3, "--subscribers": 3, "--rate": 500, "--messages": 1000}
            options = [small.get(str(options[i - 1]), word) if i else word for i, word in enumerate(options)]
        return tuple(options)


def rounds_of(run: Run, rows: tuple[works.Work, ...]) -> dict[str, Values]:
    """Every figure of every round, by row and peer. Rows with the same load share it."""
    found: dict[str, Values] = {row.name: defaultdict(list) for row in rows}
    for number in range(run.rounds):
        done: dict[tuple[Any, ...], works.Report | None] = {}
        for row in rows:
            for key in row.peers:
                peer = run.peers.get(key)
                if peer is None or not row.can(peer):
                    continue
                what = (key, row.work, row.options)
                saturated = done.get((key, "pub-sub", works.SATURATED))
                if row.half and saturated is None:
                    continue
                if what not in done:
                    print(f"  round {number + 1}: {row.name}: {peer.name}", file=sys.stderr)
                    rate = saturated["steps"][0]["per_second"] / 2 if row.half and saturated else None
                    done[what] = one(run, row, peer, rate)
                report = done[what]
                if report is not None:
                    found[row.name][key].append(row.figure(report))
    return found


def one(run: Run, row: works.Work, peer: Peer, rate: float | None) -> works.Report | None:
    """One load of one broker. Ours must be without fault; a peer that fails is left out of the row."""
    tls = run.tls if row.secured else None
    try:
        with running(peer, tls=tls, durable=row.durable and peer.key == "roost") as broker:
            return works.load(broker, row.work, *run.options(row, rate), tls=tls)
    except (works.Faulty, BrokerFailed) as why:
        if peer.key == "roost":
            raise SystemExit(f"{row.name}: {why}") from None
        print(f"    {peer.name} fails: {why}", file=sys.stderr)
        return None


def number(value: float) -> str:
    """Three digits that matter."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def judged(run: Run, row: works.Work, medians: dict[str, float]) -> str:
    """The goals of a row and whether they are met."""
    said = []
    for goal in row.goals:
        try:
            met = goal.met(medians)
        except KeyError:
            said.append(f"{goal.text}: -")
            continue
        said.append(f"{goal.text}: {'met' if met else '**missed**'}")
        if not met:
            run.missed.append(f"{row.name}: {goal.text}")
    return "; ".join(said)


def table(run: Run, rows: tuple[works.Work, ...], plot: str) -> list[str]:
    """Lines of a table, and its plot."""
    found = rounds_of(run, rows)
    keys = [key for key in run.peers if any(found[row.name].get(key) for row in rows)]
    lines = [
        f"| work | unit | {' | '.join(run.peers[k].name for k in keys)} | goal |",
        "|---|---|" + "---|" * (len(keys) + 1),
    ]
    drawn = []
    for row in rows:
        medians = {key: statistics.median(values) for key, values in found[row.name].items() if values}
        cells = []
        for key in keys:
            values = found[row.name].get(key, [])
            spread = f" ({number(min(values))} to {number(max(values))})" if len(values) > 1 else ""
            cells.append(f"{number(medians[key])}{spread}" if values else "-")
        lines.append(f"| {row.name} | {row.unit} | {' | '.join(cells)} | {judged(run, row, medians)} |")
        run.ours[row.name] = medians["roost"]
        drawn.append((f"{row.name} ({row.unit})", [(run.peers[k].name, medians[k]) for k in keys if k in medians]))
    if not run.smoke:
        bars(PLOTS / f"{plot}.svg", drawn)
        lines += ["", f"![{plot}](plots/{plot}.svg)"]
    return lines


TRAFFIC = """CPU of the broker for each delivered message, system calls included; the last two rows are latencies on a
fixed schedule, counted from the instant when a message was due."""


def traffic(run: Run) -> list[str]:
    """One core, in memory: messages."""
    return [TRAFFIC, "", *table(run, works.TRAFFIC, "traffic")]


def connections(run: Run) -> list[str]:
    """One core, in memory: connections."""
    loop = tls_loop(run.tls)
    run.peers["tls-loop"] = loop
    try:
        lines = table(run, works.CONNECTIONS, "connections")
        plain, vehicle = (run.ours[row.name] / 1e3 for row in (works.CONNECTIONS[0], works.CONNECTIONS[2]))
        told = f"A million idle connections, by that: {plain:.2f} GB plain, {vehicle:.1f} GB of vehicles."
        return [*lines, "", told]
    finally:
        del run.peers["tls-loop"]


def tls_loop(tls: Tls) -> Peer:
    """The floor of handshakes."""

    def words(place: Place) -> list[object]:
        return [BUILT / "tls-loop", place.tls_port, tls.cert, tls.key, tls.ca]

    return Peer("tls-loop", "bare rustls loop", words, Features(protocols=(4,), one_listener=True))


def state(run: Run) -> list[str]:
    """One core, in memory: retained messages and subscriptions."""
    return table(run, works.STATE, "state")


OFFLINE = """RoostMQ acknowledges when the message is synced to its disk (`--data`); the peers keep it in memory and
lose it with a `kill -9`."""


def offline(run: Run) -> list[str]:
    """Durable, beside peers that are not."""
    return [OFFLINE, "", *table(run, works.OFFLINE, "offline")]


def growing(run: Run) -> list[str]:
    """What grows, and what it costs then."""
    return growth.measure(run.peers["roost"], run.rounds, run.smoke, run.missed)


def shapes(run: Run) -> list[str]:
    """Lanes, Python's share, fairness, overload."""
    return load_shapes.measure(run.rounds, run.seconds, run.tls, run.smoke, run.missed)


SECTIONS: dict[str, tuple[str, Callable[[Run], list[str]]]] = {
    "traffic": ("One core, in memory: messages", traffic),
    "connections": ("One core, in memory: connections", connections),
    "state": ("One core, in memory: retained messages and subscriptions", state),
    "offline": ("Durable, beside peers in memory", offline),
    "growth": ("What grows", growing),
    "shapes": ("Lanes, Python, fairness, overload", shapes),
}


def machine() -> str:
    """What it was measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", info)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return (
        f"{datetime.date.today()}, commit {commit.stdout.strip()}, {os.cpu_count()} cores of "
        f"{model[1].strip() if model else platform.machine()}, Linux {platform.release().split('-')[0]}"
    )


def main() -> int:
    """Find the brokers, measure, print, perhaps write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, two peers, under three minutes")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="TABLE", help=str([*SECTIONS])
    )
    parser.add_argument("--peers", nargs="+", choices=brokers.FINDERS, default=list(works.ALL), metavar="KEY")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--write", action="store_true", help="write the tables to docs/benchmarks.md")
    parser.add_argument("--smoke", action="store_true", help="tiny: do tables come out?")
    a = parser.parse_args()
    if a.quick:
        a.rounds, a.seconds, a.peers = 1, 1.0, ["null", "roost", "mosquitto"]
        a.only = [name for name in a.only if name in ("traffic", "connections", "state")]
    if a.smoke:
        a.rounds, a.seconds, a.peers = 1, 0.2, ["null", "roost"]
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-tls-") as folder:
        peers = {peer.key: peer for peer in find(list(dict.fromkeys(["roost", *a.peers])))}
        ordered = {key: peers[key] for key in works.ALL if key in peers}
        run = Run(a.rounds, a.seconds, ordered, brokers.make_tls(Path(folder)), a.smoke)
        for name in a.only:
            title, measure = SECTIONS[name]
            head = (
                f"{machine()}; load average {before:.1f} before; {a.rounds} rounds in turn: median (lowest to highest)."
            )
            text = "\n".join([f"## {title}", "", head, "", *measure(run), ""])
            print(text, flush=True)
            if a.write:
                write_section(title, text)
    print(f"{len(run.missed)} goals missed" + "".join(f"\n  {line}" for line in run.missed), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
