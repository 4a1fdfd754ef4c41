"""Does anybody notice a checkpoint? p99 of QoS 1 at a fixed rate, while one is written and while none is.

The broker (one lane, core 0) holds a queue of many messages, so that each checkpoint is long;
`engine/examples/paced_load.rs` (core 1) publishes into offline persistent sessions at a fixed rate and times every
acknowledgement from the instant at which its message was due. Which instants lay
in a checkpoint says the broker's own gauge `checkpoint_running`.

    .venv/bin/python bench/pause.py [--rate 20000 --seconds 60 --queued 1000000] [--write] [--smoke]
"""

from __future__ import annotations

import argparse
import array
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from durable import CONFIG, ROOT, Broker, load, on_core, write_section

PACED = ROOT / "target" / "release" / "examples" / "paced_load"
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
        file = folder / "latencies"
        words = [PACED, broker.host, broker.port, a.sessions, 64, a.seconds, a.rate, file]
        with subprocess.Popen(on_core(1, *words), stdout=subprocess.PIPE, text=True) as paced:
            intervals, finished = watch(broker, paced)
            out = paced.stdout.read() if paced.stdout else ""
        if paced.returncode != 0:
            raise SystemExit("paced_load failed")
        quiet, during = split(file, json.loads(out)["started_unix_ms"], intervals)
        return rows(a, quiet, during, sum(b - x for x, b in intervals), finished)
    finally:
        broker.end()


def rows(a: argparse.Namespace, quiet: list[int], during: list[int], lasted_ms: float, finished: float) -> list[str]:
    """Two percentiles of both."""
    told = len(during) + len(quiet)
    made = [
        f"| {a.rate:,.0f} messages/s, 64 B, QoS 1, {a.queued:,} queued: checkpoints in {a.seconds:g} s | "
        f"{finished:.0f}, {lasted_ms / 1000:.1f} s in all, {len(during):,} of {told:,} messages | - |"
    ]
    for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
        plain, busy = percentile(quiet, share), percentile(during, share)
        goal = "at most 1.5 times" if name == "p99" else "-"
        made.append(
            f"| {name} without / during a checkpoint "
            f"| {plain:,.0f} / {busy:,.0f} us: {busy / plain:.2f} times | {goal} |"
        )
    return made


def main() -> int:
    """Build, measure, print, perhaps write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=20_000.0, help="messages per second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--queued", type=int, default=1_000_000, help="messages that wait all the time")
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument("--checkpoint-bytes-min", type=int, default=16 << 20, help="smaller: more of them")
    parser.add_argument("--write", action="store_true", help="write the table to docs/benchmarks.md")
    parser.add_argument("--smoke", action="store_true", help="tiny: do figures come out?")
    a = parser.parse_args()
    if a.smoke:
        a.rate, a.seconds, a.queued, a.sessions, a.checkpoint_bytes_min = 2_000.0, 1.5, 2_000, 20, 65_536
    build = ["cargo", "build", "--quiet", "--release", "-p", "roostmq-engine", "--examples"]
    subprocess.run(build, cwd=ROOT, check=True)
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


TEXT = "broker with one lane on core 0, open-loop publishers on core 1; times count from the instant a message was due."

if __name__ == "__main__":
    sys.exit(main())
