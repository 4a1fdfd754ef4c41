"""Does anybody notice a checkpoint? p99 of QoS 1 at a fixed rate, while one is written and while none is.

The broker (one lane, core 0) holds a queue of many messages, so that each checkpoint is long;
`engine/examples/paced_load.rs` (core 1) publishes into offline persistent sessions at a fixed rate and times every
acknowledgement from the instant at which its message was due. Which instants lay
in a checkpoint says the broker's own gauge `checkpoint_running`.

    .venv/bin/python bench/pause.py [--rate 20000 --seconds 30 --rounds 5 --queued 1000000] [--write] [--smoke]
"""

from __future__ import annotations

import argparse
import array
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from built import BUILT, ROOT, build
from durable import CONFIG, Broker, load, on_core, spread, write_section
from plot import PLOTS, Group, bars

PACED = BUILT / "examples" / "paced_load"
LOOK_S = 0.05
SPARE_MS = 20  # around what was seen of a checkpoint: the gauge is looked at now and then only


def watch(broker: Broker, paced: subprocess.Popen[str]) -> tuple[list[tuple[float, float]], float]:
    """The checkpoints while the load runs, as intervals in ms since 1970; and how many were finished."""
    found: list[tuple[float, float]] = []
    begun, done = None, broker.metrics()["checkpoints"]
    while paced.poll() is None:
        now, metrics = time.time() * 1000, broker.metrics()
        if metrics["checkpoint_running"] and begun is None:
            begun = now - LOOK_S * 1000
        if not metrics["checkpoint_running"] and begun is not None:
            found.append((begun, now))
            begun = None
        time.sleep(LOOK_S)
    return found, broker.metrics()["checkpoints"] - done


@dataclass
class Round:
    """Latencies in us of messages due outside of checkpoints and within, and how many were finished."""

    quiet: list[int]
    during: list[int]
    finished: float


def percentile(values: list[int], share: float) -> float:
    """The value below which `share` lie; NaN of none."""
    return float(sorted(values)[int(len(values) * share)]) if values else float("nan")


def split(file: Path, start_ms: float, intervals: list[tuple[float, float]]) -> tuple[list[int], list[int]]:
    """Latencies in us of messages due outside of the intervals and within."""
    numbers = array.array("I", file.read_bytes())
    busy = {ms for a, b in intervals for ms in range(int(a - start_ms) - SPARE_MS, int(b - start_ms) + SPARE_MS)}
    quiet, during = [], []
    for due_ms, took_us in zip(numbers[::2], numbers[1::2], strict=True):
        (during if due_ms in busy else quiet).append(took_us)
    return quiet, during


def measure(folder: Path, a: argparse.Namespace) -> list[str]:
    """The rows of the table."""
    folder.mkdir()
    broker = Broker(folder)
    broker.config.write_text(f"{CONFIG}[durability]\ncheckpoint_bytes_min = {a.checkpoint_bytes_min}\n")
    try:
        broker.start()
        load("prepare", broker.host, broker.port, a.sessions)
        load("publish", broker.host, broker.port, a.sessions, 64, 0, 8, 1000, a.queued)
        return rows(a, [one_round(broker, a) for _ in range(a.rounds)])
    finally:
        broker.end()


def one_round(broker: Broker, a: argparse.Namespace) -> Round:
    """Latencies outside of checkpoints and within."""
    file = broker.folder / "latencies"
    words = [PACED, broker.host, broker.port, a.sessions, 64, a.seconds, a.rate, file]
    with subprocess.Popen(on_core(1, *words), stdout=subprocess.PIPE, text=True) as paced:
        intervals, finished = watch(broker, paced)
        out = paced.stdout.read() if paced.stdout else ""
    if paced.returncode != 0:
        raise SystemExit("paced_load failed")
    quiet, during = split(file, json.loads(out)["started_unix_ms"], intervals)
    return Round(quiet, during, finished)


def rows(a: argparse.Namespace, rounds: list[Round]) -> list[str]:
    """Percentiles of both: of each round, and their medians."""
    inside = sum(len(r.during) for r in rounds)
    told = inside + sum(len(r.quiet) for r in rounds)
    made = [
        f"| {a.rate:,.0f} messages/s, 64 B, QoS 1, {a.queued:,} queued: checkpoints in {a.rounds} x {a.seconds:g} s | "
        f"{sum(r.finished for r in rounds):.0f}, {inside:,} of {told:,} messages in them | - |"
    ]
    drawn: list[Group] = []
    for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
        plain = [percentile(r.quiet, share) for r in rounds]
        busy = [percentile(r.during, share) for r in rounds]
        times = [b / p for b, p in zip(busy, plain, strict=True)]
        goal = "at most 1.5 times" if name == "p99" else "-"
        both = f"{statistics.median(plain):,.0f} / {statistics.median(busy):,.0f} us"
        drawn.append((f"{name} (us)", [("without", statistics.median(plain)), ("during", statistics.median(busy))]))
        made.append(f"| {name} without / during a checkpoint | {both}: {spread(times, '.2f')} times | {goal} |")
    if a.write:
        bars(PLOTS / "pauses.svg", drawn)
    return [*made, "", "![pauses](plots/pauses.svg)"]


def main() -> int:
    """Build, measure, print, perhaps write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=20_000.0, help="messages per second")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queued", type=int, default=1_000_000, help="messages that wait all the time")
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument("--checkpoint-bytes-min", type=int, default=16 << 20, help="smaller: more of them")
    parser.add_argument("--write", action="store_true", help="write the table to docs/benchmarks.md")
    parser.add_argument("--smoke", action="store_true", help="tiny: do figures come out?")
    a = parser.parse_args()
    if a.smoke:
        a.rate, a.seconds, a.queued, a.sessions, a.checkpoint_bytes_min = 2_000.0, 1.5, 2_000, 20, 65_536
        a.rounds = 1
    subprocess.run(build("-p", "roostmq-engine", "--examples"), cwd=ROOT, check=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-pause-", dir=ROOT / "target"))
    try:
        found = measure(folder / "pause", a)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = "\n".join(
        ["## Pauses", "", "`bench/pause.py`: " + TEXT, "", "| what | measured | goal |", "|---|---|---|", *found, ""]
    )
    print(text)
    if a.write:
        write_section("Pauses", text)
    return 0


TEXT = (
    "broker with one lane on core 0, open-loop publishers on core 1; times count from the instant a message was due; "
    "medians of the rounds (lowest to highest)."
)

if __name__ == "__main__":
    sys.exit(main())
