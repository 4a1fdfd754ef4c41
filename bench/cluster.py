"""What clusters of 1, 3 and 6 nodes carry, and what a message costs all of them: `python bench/cluster.py`.

Nodes, one NATS server that syncs every write, and the generator share this machine: figures count beside each other.
Traffic enters and leaves by the first node, sessions are on all of them; every message is checked by `roost bench`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

from built import ROOT

ROOST = (sys.executable, "-m", "roostmq")
PAIRS = 16


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[list[dict[str, Any]]]:
    """A running and balanced one: its nodes."""
    with tempfile.TemporaryDirectory(prefix="bench-cluster-") as folder:
        command = [*ROOST, "dev", "--nodes", str(nodes), "--data", f"{folder}/c", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            try:
                assert process.stdout is not None
                found: list[dict[str, Any]] = json.loads(process.stdout.readline())["nodes"]
                process.stdout.readline()
                while not is_balanced(found[0]["admin"]):
                    time.sleep(0.2)
                time.sleep(2)
                yield found
            finally:
                process.terminate()


def is_balanced(admin: str) -> bool:
    """Every partition is served, and nothing would move."""
    with urllib.request.urlopen(f"http://{admin}/api/v1/cluster", timeout=10) as answer:
        serving = all(p["state"] == "serving" for p in json.load(answer)["partitions"])
    with urllib.request.urlopen(f"http://{admin}/api/v1/cluster/plan", timeout=10) as answer:
        return serving and not json.load(answer)["moves"]


def bench(nodes: list[dict[str, Any]], *words: str) -> dict[str, Any]:
    """The last step of a load at the first node. Raises RuntimeError if a message was wrong."""
    host, _, port = nodes[0]["mqtt"].rpartition(":")
    pids = [word for n in nodes for word in ("--pid", str(n["pid"]))]
    command = [*ROOST, "bench", *words, "--host", host, "--port", port, *pids, "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stdout} {done.stderr}")
    steps: list[dict[str, Any]] = json.loads(done.stdout)["steps"]
    return next(s for s in steps if s["name"] in ("traffic", "load"))


def figures(count: int, seconds: float, rounds: int) -> dict[str, float]:
    """Medians of some rounds with so many nodes."""
    seen: dict[str, list[float]] = {}
    with cluster(count) as nodes:
        for _ in range(rounds):
            for qos in (0, 1, 2):
                words = ("pub-sub", "--publishers", str(PAIRS), "--subscribers", str(PAIRS), "--qos", str(qos))
                step = bench(nodes, *words, "--window", "100", "--seconds", str(seconds))
                seen.setdefault(f"QoS {qos}, per second", []).append(step["per_second"])
                seen.setdefault(f"QoS {qos}, us", []).append(step["broker"]["us_each"])
            step = bench(nodes, "offline", "--count", "1000", "--messages", "300000", "--window", "1000")
            seen.setdefault("away, per second", []).append(step["per_second"])
    return {what: statistics.median(values) for what, values in seen.items()}


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", default="1,3,6")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    found = {n: figures(n, a.seconds, a.rounds) for n in map(int, a.nodes.split(","))}
    names = next(iter(found.values()))
    print("| nodes | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for count, row in found.items():
        cells = [f"{v:,.2f}" if "us" in k else f"{v:,.0f}" for k, v in row.items()]
        print(f"| {count} | " + " | ".join(cells) + " |")
    first = found[min(found)]
    for count, row in found.items():
        ratio = row["QoS 1, us"] / first["QoS 1, us"]
        print(f"{count} nodes: CPU of a QoS 1 message {ratio:.2f} times that of {min(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
