"""What clusters of 1, 3 and 6 nodes carry, and what a message costs all of them: `python bench/cluster.py`.

Nodes, NATS servers that sync every write, and the generators share this machine: figures count beside each other.
There is a generator at each door, so a node more brings its clients with it; publishers and subscribers of one have
their sessions on all nodes. `--first-door`: everything by the first node. Every message is checked by `roost bench`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
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
LOADS = {
    "QoS 0": ("--qos", "0"),
    "QoS 1": ("--qos", "1"),
    "QoS 2": ("--qos", "2"),
    "persistent QoS 1": ("--qos", "1", "--persistent"),
}


@contextlib.contextmanager
def cluster(nodes: int, servers: int) -> Iterator[list[dict[str, Any]]]:
    """A running and balanced one: its nodes."""
    with tempfile.TemporaryDirectory(prefix="bench-cluster-") as folder:
        command = [
            *ROOST,
            "dev",
            "--nodes",
            str(nodes),
            "--nats-servers",
            str(servers),
            "--data",
            f"{folder}/c",
            "--json",
        ]
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


def bench(nodes: list[dict[str, Any]], doors: int, *words: str) -> dict[str, float]:
    """The last step of a load at so many doors at once. Raises RuntimeError if a message was wrong."""
    pids = [word for n in nodes for word in ("--pid", str(n["pid"]))]
    running = []
    for node in nodes[:doors]:
        host, _, port = node["mqtt"].rpartition(":")
        command = [*ROOST, "bench", *words, "--host", host, "--port", port, *pids, "--json", "--quiet"]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT))
    steps = []
    for process in running:
        said, error = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: {said} {error}")
        steps.append(next(s for s in json.loads(said)["steps"] if s["name"] in ("traffic", "load")))
    per_second = sum(s["per_second"] for s in steps)
    cores = statistics.mean(s["broker"]["cores"] for s in steps)
    return {"per_second": per_second, "us": cores * 1e6 / per_second}


def figures(count: int, a: argparse.Namespace) -> dict[str, float]:
    """Medians of some rounds with so many nodes."""
    seen: dict[str, list[float]] = {}
    doors = 1 if a.first_door else count
    pairs = str(a.pairs)
    with cluster(count, a.servers) as nodes:
        for _ in range(a.rounds):
            for load, more in LOADS.items():
                words = ("pub-sub", "--publishers", pairs, "--subscribers", pairs, *more)
                step = bench(nodes, doors, *words, "--window", "100", "--seconds", str(a.seconds))
                seen.setdefault(f"{load}, per second", []).append(step["per_second"])
                seen.setdefault(f"{load}, us", []).append(step["us"])
            words = ("offline", "--count", str(1000 // doors), "--messages", str(300_000 // doors))
            step = bench(nodes, doors, *words, "--window", "1000")
            seen.setdefault("away, per second", []).append(step["per_second"])
    return {what: statistics.median(values) for what, values in seen.items()}


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", default="1,3,6")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", type=int, default=1, choices=(1, 3), help="of NATS")
    parser.add_argument("--pairs", type=int, default=12, help="publishers, and subscribers, at each door")
    parser.add_argument("--first-door", action="store_true")
    a = parser.parse_args()
    found = {n: figures(n, a) for n in map(int, a.nodes.split(","))}
    names = next(iter(found.values()))
    print("| nodes | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for count, row in found.items():
        cells = [f"{v:,.2f}" if "us" in k else f"{v:,.0f}" for k, v in row.items()]
        print(f"| {count} | " + " | ".join(cells) + " |")
    counts = sorted(found)
    for fewer, more in itertools.pairwise(counts):
        for load in LOADS:
            ratio = found[more][f"{load}, us"] / found[fewer][f"{load}, us"]
            print(f"{more} nodes: CPU of a message, {load}, {ratio:.2f} times that of {fewer}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
