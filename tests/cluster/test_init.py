"""`roost cluster init` with real servers and a real broker: one machine's broker goes on as a cluster."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from durability.site import Site

from cluster.returned import Returned, gone
from cluster.test_cluster import ask, connected
from roostmq.adapters.nats_server import NatsServers, free_ports
from roostmq.store.access import NatsAccess
from roostmq.store.nats_kv import bucket_of, connect

pytestmark = [pytest.mark.xdist_group("nats"), pytest.mark.timeout(300)]
FLEET, QUEUED, JOBS = 40, 5, 6
NAMES = [f"car-{n}" for n in range(FLEET)]


def roost(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "roostmq", *words], capture_output=True, text=True, timeout=120)


async def live_in(site: Site) -> None:
    """Persistent sessions with queues at QoS 1 and 2 and a shared group, retained messages, a restart in between."""
    await site.start()
    assert site.address is not None
    door = f"{site.address[0]}:{site.address[1]}"
    for n in range(FLEET):
        client = connected(door, NAMES[n], clean=False)
        granted = threading.Event()
        client.on_subscribe = lambda *_, granted=granted: granted.set()
        client.subscribe([(f"cars/{n}/#", 2), ("$share/all/jobs", 1)] if n < 3 else [(f"cars/{n}/#", 2)])
        assert granted.wait(20)
        gone(client)
    site.kill()
    await site.start()
    assert site.address is not None
    sender = connected(f"{site.address[0]}:{site.address[1]}", "sender")
    for n in range(FLEET):
        for k in range(QUEUED):
            sender.publish(f"cars/{n}/x", f"{n}-{k}", qos=k % 2 + 1).wait_for_publish(20)
        sender.publish(f"state/{n}", f"value-{n}", qos=1, retain=True).wait_for_publish(20)
    for k in range(JOBS):
        sender.publish("jobs", f"job-{k}", qos=1).wait_for_publish(20)
    gone(sender)


def start_node(folder: Path, nats: NatsServers, token: str, ports: list[int]) -> subprocess.Popen[bytes]:
    config = folder / "node.toml"
    config.write_text(
        f'[listeners.tcp]\nport = {ports[0]}\n[admin]\nport = {ports[1]}\n[cluster]\nname = "fleet"\nnode = "n1"\n'
        f'token = "{token}"\nlinks = "127.0.0.1:{ports[2]}"\nnats = ["{nats.urls[0]}"]\nassert_sync = true\n'
    )
    words = [sys.executable, "-m", "roostmq", "run", "--config", str(config)]
    with (folder / "node.err").open("w") as errors:
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors)


async def until_ready(admin: str) -> None:
    for _ in range(300):
        try:
            told = await asyncio.to_thread(ask, admin, "/api/v1/cluster")
            if all(p["state"] == "serving" for p in told["partitions"]):
                return
        except OSError:
            pass
        await asyncio.sleep(0.1)
    raise AssertionError("not all partitions are served")


async def test_a_broker_becomes_a_cluster_and_its_clients_go_on(tmp_path: Path) -> None:
    """Sessions are present, what was queued comes once and in order of its topic, retained messages are there."""
    site = Site(tmp_path, tmp_path / "data", 1)
    nats = NatsServers(tmp_path / "nats", 1, free_ports(1))
    await live_in(site)
    await nats.start_all()
    node = None
    try:
        words = ("cluster", "init", "fleet", "--nats", nats.urls[0], "--replicas", "1", "--import", str(site.data))
        early = await asyncio.to_thread(roost, *words)
        assert (early.returncode, "in use" in early.stderr) == (1, True), early.stderr
        site.kill()
        made = await asyncio.to_thread(roost, *words)
        assert made.returncode == 0, made.stderr
        assert f"{FLEET} sessions" in made.stderr
        again = await asyncio.to_thread(roost, *words)
        assert (again.returncode, "laid down already" in again.stderr) == (1, True), again.stderr

        ports = free_ports(3)
        node = start_node(tmp_path, nats, made.stdout.strip(), ports)
        await until_ready(f"127.0.0.1:{ports[1]}")
        fleet = Returned(f"127.0.0.1:{ports[0]}", NAMES, "state/#")
        await fleet.until(FLEET * QUEUED + JOBS, FLEET)
        assert fleet.present == dict.fromkeys(NAMES, True)
        assert fleet.values == {f"state/{n}": f"value-{n}" for n in range(FLEET)}
        assert sorted(w for words in fleet.got.values() for t, w in words if t == "jobs") == [
            f"job-{k}" for k in range(JOBS)
        ]
        for n, name in enumerate(NAMES):
            own = [w for t, w in fleet.got[name] if t != "jobs"]
            for qos in (1, 2):
                of_qos = [f"{n}-{k}" for k in range(qos - 1, QUEUED, 2)]
                assert [w for w in own if w in of_qos] == of_qos, own

        # new names are not those of before: what is new comes, too, and once
        for n in range(FLEET):
            fleet.reader.publish(f"cars/{n}/x", f"{n}-new", qos=2)
        await fleet.until(FLEET * (QUEUED + 1) + JOBS, FLEET)
        fleet.stop()
        assert all(fleet.got[name][-1] == (f"cars/{n}/x", f"{n}-new") for n, name in enumerate(NAMES))
        assert sum(map(len, fleet.got.values())) == FLEET * (QUEUED + 1) + JOBS
    finally:
        site.kill()
        if node is not None:
            node.terminate()
            node.wait(20)
        nats.stop()


async def test_logs_that_hold_something_are_not_written_over(tmp_path: Path) -> None:
    """The registry is gone, the streams are not: perhaps of an import that was cut off, perhaps of a cluster in need."""
    site = Site(tmp_path, tmp_path / "data", 1)
    nats = NatsServers(tmp_path / "nats", 1, free_ports(1))
    await live_in(site)
    site.kill()
    await nats.start_all()
    try:
        words = ("cluster", "init", "fleet", "--nats", nats.urls[0], "--replicas", "1", "--import", str(site.data))
        made = await asyncio.to_thread(roost, *words)
        assert made.returncode == 0, made.stderr
        client = await connect(NatsAccess(nats.urls), "test")
        await client.jetstream().delete_stream(f"KV_{bucket_of('fleet')}")
        await client.close()
        again = await asyncio.to_thread(roost, *words)
        assert (again.returncode, "holds something already" in again.stderr) == (1, True), again.stderr
    finally:
        nats.stop()
