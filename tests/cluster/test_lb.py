"""HAProxy before a cluster: almost every client lands on the node that owns its session, and any other node serves it too."""

from __future__ import annotations

import asyncio
import csv
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.pauses import Quick, owners, partition_of
from cluster.site import ClusterSite
from cluster.test_cluster import ask, roost
from roostmq.adapters.nats_server import end_with_parent, free_ports

pytestmark = [
    pytest.mark.xdist_group("nats"),
    pytest.mark.timeout(200),
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed: apt install haproxy"),
]
CLIENTS = 150
LOOKED_AT = 60


async def landed(site: ClusterSite, port: int) -> float:
    """Share of clients whose door is the owner of their session."""
    clients = [Quick(f"vehicle-{i:04}", clean=True) for i in range(CLIENTS)]
    for client in clients:
        assert await client.connect(("127.0.0.1", port)), client.name
    owned = owners(site)
    right = 0
    for client in clients[:LOOKED_AT]:
        told = await asyncio.to_thread(ask, site.nodes[0]["admin"], f"/api/v1/cluster/why?client={client.name}")
        right += told["session"]["node"] == owned[partition_of(site, client.name)]
    for client in clients:
        assert client.link is not None
        client.link.drop()
    return right / LOOKED_AT


def held_down(where: Path) -> set[str]:
    """Nodes that HAProxy holds for down now."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(str(where))
        asked.sendall(b"show stat\n")
        with asked.makefile() as answer:
            rows = list(csv.DictReader(line.removeprefix("# ") for line in answer if line.strip()))
    return {row["svname"] for row in rows if row["check_status"] and not row["status"].startswith("UP")}


async def all_are_up(where: Path) -> None:
    """HAProxy has found every node ready."""
    end = time.monotonic() + 30
    while not where.exists() or held_down(where):
        assert time.monotonic() < end, held_down(where)
        await asyncio.sleep(0.2)


async def test_clients_land_where_their_sessions_are(tmp_path: Path) -> None:
    site = ClusterSite(tmp_path)
    await site.start()
    (port,) = free_ports(1)
    words = ["lb", "config", "haproxy", "--token-file", str(site.data / "token"), "--bind", f"127.0.0.1:{port}"]
    words += ["--out", str(tmp_path / "lb"), "--admin", f"http://{site.nodes[0]['admin']}"]
    try:
        cut = ["cluster", "split", "--admin", f"http://{site.nodes[0]['admin']}"]
        roost(*cut)  # the map knows partitions that were cut in two as well
        assert len(owners(site)) == 128
        made = subprocess.run([sys.executable, "-m", "roostmq", *words], capture_output=True, text=True, timeout=60)
        assert made.returncode == 0, made.stderr
        config = tmp_path / "lb" / "haproxy.cfg"
        checked = subprocess.run(["haproxy", "-c", "-f", str(config)], capture_output=True, text=True, timeout=60)
        assert checked.returncode == 0, checked.stderr
        with subprocess.Popen(["haproxy", "-db", "-f", str(config)], preexec_fn=end_with_parent) as process:
            try:
                probe = Quick("probe", clean=True)
                end = time.monotonic() + 20
                while time.monotonic() < end and not await probe.connect(("127.0.0.1", port), 2):
                    await asyncio.sleep(0.1)
                await asyncio.sleep(2)  # all nodes were asked whether they are ready
                assert await landed(site, port) >= 0.95
                # the map is stale now: a quarter of the sessions has moved, and every client is served all the same
                await site.grow()
                assert await landed(site, port) >= 0.6
                site.kill_node(1)
                site.nodes.pop()
                await asyncio.sleep(4)
                assert await landed(site, port) >= 0.3
            finally:
                process.terminate()
    finally:
        await site.stop()
