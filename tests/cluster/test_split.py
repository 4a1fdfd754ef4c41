"""Every partition is cut in two while clients talk and nodes die (record 0014): no socket closes, nothing is lost, doubled or
reordered, and who asks is told the truth."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.chaos import Plan, run
from cluster.returned import gone
from cluster.site import ClusterSite
from cluster.test_cluster import ask, connected

pytestmark = [pytest.mark.xdist_group("nats"), pytest.mark.timeout(300)]


async def split(site: ClusterSite, *words: str) -> tuple[int, str, str]:
    """`roost cluster split`: code, what it prints and says."""
    command = [
        sys.executable,
        "-m",
        "roostmq",
        "cluster",
        "split",
        "--admin",
        f"http://{site.nodes[0]['admin']}",
        *words,
    ]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, said = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None
    return process.returncode, out.decode(), said.decode()


def probes(site: ClusterSite, count: int) -> dict[str, Any]:
    """Clients with kept sessions, through all doors."""
    made = {}
    for i in range(count):
        name = f"vehicle-{i:03}"
        client = connected(site.nodes[i % 3]["mqtt"], name, clean=False)
        client.subscribe(f"to/{name}", 1)
        made[name] = client
    return made


async def test_twice_as_many_partitions_and_nobody_notices(tmp_path: Path) -> None:
    """No socket closes; each client gets what is sent to it, and `why` finds it where the table says, from every node."""
    site = ClusterSite(tmp_path)
    await site.start()
    try:
        closed: list[str] = []
        got: dict[str, list[bytes]] = {}
        clients = await asyncio.to_thread(probes, site, 60)
        for name, client in clients.items():
            got[name] = []
            client.on_message = lambda _c, _u, m, name=name: got[name].append(m.payload)
            client.on_disconnect = lambda *_, name=name: closed.append(name)
        doors = {name: site.nodes[i % 3]["id"] for i, name in enumerate(clients)}
        code, out, said = await split(site, "--dry-run", "--json")
        assert (code, json.loads(out)["partitions"]) == (0, 128), said
        assert len((await asyncio.to_thread(ask, site.nodes[0]["admin"], "/api/v1/cluster"))["partitions"]) == 64
        code, out, said = await split(site, "--json")
        assert code == 0, said
        told = json.loads(out)
        assert (told["was"], told["partitions"]) == (64, 128)
        assert "of 128 partitions" in said
        writer = connected(site.nodes[1]["mqtt"], "writer")
        for name in clients:
            writer.publish(f"to/{name}", name, qos=1).wait_for_publish(10)
        owners = {}
        for node in site.nodes:
            rows = (await asyncio.to_thread(ask, node["admin"], "/api/v1/cluster"))["partitions"]
            assert len(rows) == 128
            for name in clients:
                why = await asyncio.to_thread(ask, node["admin"], f"/api/v1/cluster/why?client={name}")
                assert why["session"]["node"] == doors[name], why
                assert why["owner"] == rows[why["partition"]]["owner"]
                owners.setdefault(name, set()).add((why["partition"], why["owner"]))
        assert all(len(found) == 1 for found in owners.values())
        assert any(p >= 64 for found in owners.values() for p, _ in found)
        await asyncio.sleep(0.5)
        assert got == {name: [name.encode()] for name in clients}
        assert not closed
        for client in (*clients.values(), writer):
            client.on_disconnect = None
            gone(client)
        code, _, said = await split(site, "--to", "64")
        assert code == 1
        assert "there are 128 partitions already" in said
    finally:
        await site.stop()


async def test_nodes_die_while_partitions_are_cut(tmp_path: Path) -> None:
    """One whose new log is written, then one anywhere; everything is cut in the end. `make chaos-moves` has every step."""
    story = ("die: owner has written", "kill")
    result = await run(Plan(seed=15, rate=120, story=story, calm_s=(0.3, 1.0)), tmp_path)
    assert result.clean, result.table()
    assert result.checked["demanded at QoS 2"] > 1_000
    assert result.checked["partitions at the end"] == 128
