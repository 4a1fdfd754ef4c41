"""Memory that a node needs to know what another one wants: a million exact topics, each subscribed to once.

Sessions of 1,000 clients are put on one node (their ids are chosen by the hash); what the other node's process grows by
is its knowledge of them.

    .venv/bin/python bench/interest.py [--topics 1000000]
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from built import ROOT

from roostmq import engine
from roostmq.adapters.join_token import read_token

sys.path.insert(0, str(ROOT / "tests"))
from wire import Client

PER_CLIENT = 1_000


def subscribe(door: str, name: str, topics: list[str]) -> Client:
    """A client with these subscriptions; it stays connected."""
    host, _, port = door.rpartition(":")
    client = Client((host, int(port)), 4, name)
    client.subscribe(*((topic, 0) for topic in topics))
    return client


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def owners(admin: str) -> list[str]:
    """Who owns each partition, once all of them are served and even."""
    while True:
        with urllib.request.urlopen(f"http://{admin}/api/v1/cluster", timeout=10) as answer:
            told: dict[str, Any] = json.load(answer)
        with urllib.request.urlopen(f"http://{admin}/api/v1/cluster/plan", timeout=10) as answer:
            moves = json.load(answer)["moves"]
        if not moves and all(p["state"] == "serving" for p in told["partitions"]):
            return [p["owner"] for p in told["partitions"]]
        time.sleep(0.2)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--topics", type=int, default=1_000_000)
    a = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-interest-"))
    command = [sys.executable, "-m", "roostmq", "dev", "--nodes", "2", "--data", str(folder / "c"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as cluster:
        assert cluster.stdout is not None
        try:
            first, second = json.loads(cluster.stdout.readline())["nodes"]
            cluster.stdout.readline()
            table = owners(first["admin"])
            token = read_token((folder / "c" / "token").read_text())
            points = ((i, engine.hash_ids(token.key_pair, [f"c{i}".encode()])[0]) for i in itertools.count())
            names = (f"c{i}" for i, point in points if table[point * len(table) >> 64] == first["id"])
            before = rss_mb(second["pid"])
            kept = []
            for n in range(0, a.topics, PER_CLIENT):
                topics = [f"fleet/{k // 7}/vehicle/{k}/command" for k in range(n, n + PER_CLIENT)]
                kept.append(subscribe(first["mqtt"], next(names), topics))
            time.sleep(3)
            after = rss_mb(second["pid"])
            print(f"{a.topics:,} topics wanted by {first['id']}: {second['id']} grew by {after - before:.1f} MB")
            print(f"{first['id']} itself has {rss_mb(first['pid']):.0f} MB with their {len(kept)} sessions")
            for client in kept:
                client.drop()
        finally:
            cluster.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
