"""One core beside mosquitto's: CPU per delivered message at QoS 0 and QoS 1, in turn, every message checked.

Each broker runs alone on core 0, `engine/examples/pair_load.rs` on core 1. Mosquitto keeps nothing on disk here, nor
does RoostMQ (`--memory`). Only the ratio of one run counts.

    .venv/bin/python bench/peers.py [--rounds 3 --seconds 4] [--write] [--smoke]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from durable import HZ, ROOT, on_core, write_section

PAIR = ROOT / "target" / "release" / "examples" / "pair_load"
WORKS = ((0, 256), (1, 64))


def free_port() -> int:
    """A port of the loopback that nobody has."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def broker(name: str, folder: Path) -> Iterator[tuple[int, int]]:
    """Port and pid of a broker on core 0."""
    port = free_port()
    conf = folder / f"{name}.conf"
    conf.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n"
    )
    words = {
        "roost": [ROOT / ".venv" / "bin" / "roost", "run", "--memory", "--no-admin", "--lanes", 1, "--port", port],
        "mosquitto": [shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-c", conf],
    }[name]
    process = subprocess.Popen(on_core(0, *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def cpu_s(pid: int) -> float:
    """CPU of the process so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / HZ


def one(name: str, folder: Path, qos: int, size: int, a: argparse.Namespace) -> tuple[float, float]:
    """CPU per delivered message, us, and messages per second."""
    with broker(name, folder) as (port, pid):
        begun = cpu_s(pid)
        words = on_core(1, PAIR, "127.0.0.1", port, qos, size, a.seconds, a.pairs, a.window)
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{name}: {done.stderr.strip()}")
        got, used = json.loads(done.stdout), cpu_s(pid) - begun
        return used * 1e6 / got["received"], got["received"] / got["seconds"]


def measure(a: argparse.Namespace) -> list[str]:
    """The rows of the table."""
    names = ["roost", "mosquitto"] if shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists() else ["roost"]
    if len(names) == 1:
        print("mosquitto is not installed and left out", file=sys.stderr)
    folder, rows = Path(tempfile.mkdtemp(prefix="bench-peers-")), []
    try:
        for qos, size in WORKS:
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
            for _ in range(a.rounds):
                for name in names:
                    found[name].append(one(name, folder, qos, size, a))
            cost = {name: statistics.median(c for c, _ in got) for name, got in found.items()}
            rate = {name: statistics.median(r for _, r in got) for name, got in found.items()}
            told = " / ".join(f"{cost[n]:.2f} us ({rate[n]:,.0f}/s)" for n in names)
            ratio = f"{cost['mosquitto'] / cost['roost']:.1f}" if len(names) == 2 else "-"
            rows.append(f"| QoS {qos}, {size} B, {a.pairs} pairs | {told} | {ratio} |")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def main() -> int:
    """Build, measure, print, perhaps write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--window", type=int, default=500)
    parser.add_argument("--write", action="store_true", help="write the table to docs/benchmarks.md")
    parser.add_argument("--smoke", action="store_true", help="tiny: do figures come out?")
    a = parser.parse_args()
    if a.smoke:
        a.rounds, a.seconds, a.pairs, a.window = 1, 0.3, 2, 50
    build = ["cargo", "build", "--quiet", "--release", "-p", "roostmq-engine", "--examples"]
    subprocess.run(build, cwd=ROOT, check=True)
    before = os.getloadavg()[0]
    rows = measure(a)
    head = f"`bench/peers.py`, {a.rounds} rounds in turn, medians; load average {before:.1f} before. {TEXT}"
    table = ["| work | CPU per delivered message: roost / mosquitto | times |", "|---|---|---|", *rows]
    text = "\n".join(["## Beside mosquitto, one core", "", head, "", *table, ""])
    print(text)
    if a.write:
        write_section("Beside mosquitto, one core", text)
    return 0


TEXT = "Broker on core 0, generator on core 1; the generator is often the limit of the rate, so the CPU counts."

if __name__ == "__main__":
    sys.exit(main())
