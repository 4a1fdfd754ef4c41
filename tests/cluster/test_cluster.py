"""A cluster through its front door (issue 6): any client at any node, kills and hangs lose nothing.

`make chaos` runs the same for longer and with everything that can fail.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from cluster.chaos import Plan, run
from cluster.returned import gone
from cluster.site import ClusterSite

pytestmark = [pytest.mark.xdist_group("nats"), pytest.mark.timeout(300)]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[ClusterSite]:
    made = ClusterSite(tmp_path)
    await made.start()
    yield made
    await made.stop()


def connected(door: str, name: str, clean: bool = True) -> mqtt.Client:
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name, clean_session=clean)
    host, _, port = door.rpartition(":")
    there = threading.Event()
    client.on_connect = lambda *_: there.set()
    client.connect(host, int(port))
    client.loop_start()
    assert there.wait(20), "no CONNACK"
    return client


def ask(admin: str, path: str) -> Any:
    with urllib.request.urlopen(f"http://{admin}{path}", timeout=10) as answer:
        return json.load(answer)


def roost(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "roostmq", *words], capture_output=True, text=True, timeout=60)


async def test_subscribed_at_one_node_published_at_another(site: ClusterSite) -> None:
    """Each message once and in order; `why` tells the truth about both clients; status and doctor answer."""
    got: list[tuple[int, int]] = []
    first, third = site.nodes[0], site.nodes[2]
    subscriber = connected(first["mqtt"], "sub-1", clean=False)
    granted = threading.Event()
    subscriber.on_subscribe = lambda *_: granted.set()
    subscriber.on_message = lambda _c, _u, m: got.append((m.qos, int(m.payload)))
    subscriber.subscribe("t/#", 2)
    assert granted.wait(20)
    publisher = connected(third["mqtt"], "pub-1")
    for qos in (0, 1, 2):
        for n in range(20):
            publisher.publish("t/x", str(n), qos=qos).wait_for_publish(20)
    end = time.monotonic() + 20
    while len(got) < 60 and time.monotonic() < end:
        time.sleep(0.05)
    for qos in (0, 1, 2):
        assert [n for q, n in got if q == qos] == list(range(20))
    for name, door in (("sub-1", "n1"), ("pub-1", "n3")):
        for node in site.nodes:
            told = ask(node["admin"], f"/api/v1/cluster/why?client={name}")
            assert (told["session"]["connected"], told["session"]["node"]) == (True, door), told
    shown = roost("cluster", "why", "sub-1", "--admin", f"http://{third['admin']}")
    assert "connected at n1" in shown.stdout, shown
    assert "t/#" in shown.stdout
    await site.until_balanced()
    end = time.monotonic() + 20
    while any(p["state"] != "serving" for p in ask(first["admin"], "/api/v1/cluster")["partitions"]):
        assert time.monotonic() < end, "a node that came late still gets its share"
        await asyncio.sleep(0.1)
    status = roost("cluster", "status", "--admin", f"http://{first['admin']}")
    assert "64 serving" in status.stdout, status
    doctor = roost("cluster", "doctor", "--json", "--admin", f"http://{first['admin']}")
    assert (doctor.returncode, json.loads(doctor.stdout)) == (0, []), doctor
    owners = json.loads(roost("cluster", "partitions", "--json", "--admin", f"http://{first['admin']}").stdout)
    counts = sorted(sum(p["owner"] == f"n{n}" for p in owners) for n in (1, 2, 3))
    assert counts == [21, 21, 22]
    gone(subscriber)
    gone(publisher)


async def test_each_node_has_its_own_sys_topics(site: ClusterSite) -> None:
    """What a node says of itself and what the cluster is, retained, at every door."""
    found: dict[str, str] = {}
    reader = connected(site.nodes[1]["mqtt"], "reader")
    reader.on_message = lambda _c, _u, m: found.__setitem__(m.topic, m.payload.decode())
    reader.subscribe([("$SYS/brokers/+/version", 0), ("$SYS/cluster/#", 0)])
    end = time.monotonic() + 20
    while time.monotonic() < end and not (len(found) >= 11 and found.get("$SYS/cluster/partitions/serving") == "64"):
        time.sleep(0.05)
    assert {t.split("/")[2] for t in found if t.startswith("$SYS/brokers/")} == {"n1", "n2", "n3"}
    assert found["$SYS/cluster/members/names"] == "n1 n2 n3"
    assert (found["$SYS/cluster/partitions/serving"], found["$SYS/cluster/partitions/count"]) == ("64", "64")
    gone(reader)


async def test_of_two_nodes_the_one_that_is_left_goes_on(tmp_path: Path) -> None:
    """No majority is left to vote: the lease of the dead one ends, and then the other serves everything that was kept."""
    site = ClusterSite(tmp_path, nodes=2)
    await site.start()
    try:
        doors = [site.nodes[0]["mqtt"], site.nodes[1]["mqtt"]]
        for n in range(12):
            client = connected(doors[n % 2], f"kept-{n}", clean=False)
            granted = threading.Event()
            client.on_subscribe = lambda *_, granted=granted: granted.set()
            client.subscribe("two/#", 1)
            assert granted.wait(20)
            gone(client)
        sender = connected(doors[0], "sender")
        sender.publish("two/x", "1", qos=1).wait_for_publish(20)
        gone(sender)
        site.kill_node(0)
        present: list[bool] = []
        got: list[bytes] = []
        clients = []
        for n in range(12):
            client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, f"kept-{n}", clean_session=False)
            client.on_connect = lambda _c, _u, flags, code, _p: code == 0 and present.append(flags.session_present)
            client.on_message = lambda _c, _u, m: got.append(m.payload)
            client.reconnect_delay_set(1, 1)
            host, _, port = doors[1].rpartition(":")
            client.connect_async(host, int(port))
            client.loop_start()
            clients.append(client)
        end = time.monotonic() + 60
        while time.monotonic() < end and len(got) < 12:
            time.sleep(0.1)
        assert present[:12] == [True] * 12
        assert got == [b"1"] * 12
        for client in clients:
            gone(client)
    finally:
        await site.stop()


async def test_two_nodes_of_one_name_are_refused(site: ClusterSite) -> None:
    config = (site.data / "n2.toml").read_text()
    twin = site.data / "twin.toml"
    busy = {str(site.nodes[1]["mqtt"].rpartition(":")[2]): "0", str(site.nodes[1]["admin"].rpartition(":")[2]): "0"}
    for port, free in busy.items():
        config = config.replace(f"port = {port}", f"port = {free}")
    links = next(line for line in config.splitlines() if line.startswith("links"))
    twin.write_text(config.replace(links, 'links = "127.0.0.1:1"').replace(str(site.data / "n2.log"), "/dev/null"))
    refused = subprocess.run(
        [sys.executable, "-m", "roostmq", "run", "--config", str(twin)], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 1
    assert "links" in refused.stderr or "runs already" in refused.stderr


@pytest.mark.parametrize("weaker", [False, True])
def test_servers_that_do_not_sync_are_refused_unless_that_is_written_out(tmp_path: Path, weaker: bool) -> None:
    """The default class promises what only `sync_interval: always` keeps."""
    words = ["dev", "--nodes", "1", "--sync", "2m", "--data", str(tmp_path), "--json"]
    words += ["--ack-default", "replicated"] if weaker else []
    command = [sys.executable, "-m", "roostmq", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if line.strip() == "ready":
                process.terminate()
        said = process.stderr.read()
        assert process.wait(60) == (0 if weaker else 1)
    assert ("ready" in lines) == weaker
    if not weaker:
        assert "sync_interval: always" in said
        assert "replicated" in said


async def test_kills_and_a_hang_lose_nothing(tmp_path: Path) -> None:
    """Two nodes are killed, the streams are full for a while, one node hangs until it is voted out; nothing is lost."""
    result = await run(Plan(seed=11, seconds=16, story=("kill", "full", "hang", "kill"), calm_s=(1.0, 2.0)), tmp_path)
    assert result.clean, result.table()
    assert result.checked["kills"] == 2
    assert result.checked["demanded at QoS 2"] > 1_000


async def test_links_that_are_cut_and_slow_lose_nothing(tmp_path: Path) -> None:
    """One node from all others, one direction of a pair, and a slow one; they heal by themselves."""
    story = ("cut off", "cut way", "slow")
    result = await run(Plan(seed=12, seconds=20, rate=120, story=story, calm_s=(0.5, 1.5)), tmp_path)
    assert result.clean, result.table()
    assert result.checked["demanded at QoS 2"] > 1_000
