"""Backup, everything destroyed, restore: what was kept is there again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from cluster.returned import Returned, gone
from cluster.site import ClusterSite
from cluster.test_cluster import ask, connected

pytestmark = [pytest.mark.xdist_group("nats"), pytest.mark.timeout(300)]


def roost(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "roostmq", *words], capture_output=True, text=True, timeout=120)


def subscribed(door: str, name: str, topic: str) -> mqtt.Client:
    client = connected(door, name, clean=False)
    granted = threading.Event()
    client.on_subscribe = lambda *_: granted.set()
    client.subscribe(topic, 2)
    assert granted.wait(20)
    return client


async def test_backup_destroy_restore(tmp_path: Path) -> None:
    """Made under traffic; sessions, queues and retained messages of before are there, nothing that came later is."""
    site = ClusterSite(tmp_path, nodes=2)
    await site.start()
    kept = tmp_path / "kept"
    try:
        doors = [n["mqtt"] for n in site.nodes]
        for n in range(8):
            gone(subscribed(doors[n % 2], f"kept-{n}", f"b/{n}/#"))
        sender = connected(doors[0], "sender")
        for n in range(8):
            for k in range(5):
                sender.publish(f"b/{n}/x", f"before-{k}", qos=k % 2 + 1).wait_for_publish(20)
            sender.publish(f"state/{n}", f"value-{n}", qos=1, retain=True).wait_for_publish(20)
        made = await asyncio.to_thread(
            roost, "cluster", "backup", "dev", str(kept), "--nats", site.nats[0]["url"], "--json"
        )
        assert made.returncode == 0, made.stderr
        manifest = json.loads(made.stdout)
        assert len(manifest["streams"]) == 9
        again = await asyncio.to_thread(roost, "cluster", "backup", "dev", str(kept), "--nats", site.nats[0]["url"])
        assert again.returncode == 1
        assert "not empty" in again.stderr
        sender.publish("b/0/x", "after", qos=1).wait_for_publish(20)
        refused = await asyncio.to_thread(roost, "cluster", "restore", str(kept), "--nats", site.nats[0]["url"])
        assert refused.returncode == 1
        assert "already" in refused.stderr
        gone(sender)

        for i in range(2):
            site.kill_node(i)
        site.kill_server(0)
        shutil.rmtree(site.data / "nats-0" / "store")
        site.start_server(0)
        for _ in range(100):
            back = await asyncio.to_thread(roost, "cluster", "restore", str(kept), "--nats", site.nats[0]["url"])
            if back.returncode == 0 or "does not answer" not in back.stderr:
                break
        assert back.returncode == 0, back.stderr
        await asyncio.gather(*(site.start_node(i) for i in range(2)))

        back_again = Returned(doors[1], [f"kept-{n}" for n in range(8)], "state/#")
        await back_again.until(40, 8)
        back_again.stop()
        assert back_again.present == {f"kept-{n}": True for n in range(8)}
        before = [f"before-{k}" for k in range(5)]
        assert all(
            sorted(words) == [(f"b/{n}/x", w) for w in before] for n, words in enumerate(back_again.got.values())
        )
        assert back_again.values == {f"state/{n}": f"value-{n}" for n in range(8)}
    finally:
        await site.stop()


async def test_a_backup_that_was_changed_is_refused(tmp_path: Path) -> None:
    """One byte in a file is found before anything is written."""
    site = ClusterSite(tmp_path, nodes=1)
    await site.start()
    kept = tmp_path / "kept"
    try:
        made = await asyncio.to_thread(roost, "cluster", "backup", "dev", str(kept), "--nats", site.nats[0]["url"])
        assert made.returncode == 0, made.stderr
        file = next(kept.glob("KV_*.snapshot"))
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
        back = await asyncio.to_thread(roost, "cluster", "restore", str(kept), "--nats", site.nats[0]["url"])
        assert back.returncode == 1
        assert file.name in back.stderr
    finally:
        await site.stop()


async def test_a_log_that_was_lost_is_never_begun_empty(tmp_path: Path) -> None:
    """A stream is deleted and made again: its partitions stand still and say so, all others serve."""
    from nats.js.errors import NotFoundError

    from roostmq.store.access import NatsAccess
    from roostmq.store.nats_kv import connect
    from roostmq.store.streams import make_streams

    site = ClusterSite(tmp_path, nodes=2)
    await site.start()
    try:
        await asyncio.sleep(1)  # what the logs reach to is in the table
        for i in range(2):
            site.kill_node(i)
        access = NatsAccess((site.nats[0]["url"],))
        client = await connect(access, "test")
        js = client.jetstream()
        await js.delete_stream("ROOST_dev_LOG_3")
        with pytest.raises(NotFoundError):
            await js.stream_info("ROOST_dev_LOG_3")
        await client.close()
        await make_streams(access, "dev", 8, 1)
        starting = [asyncio.create_task(site.start_node(i)) for i in range(2)]
        lost: set[int] = set()
        states: dict[int, str] = {}
        end = time.monotonic() + 40
        while time.monotonic() < end and not (len(lost) == 8 and list(states.values()).count("serving") == 56):
            await asyncio.sleep(0.2)
            with contextlib.suppress(OSError):
                for node in site.nodes:
                    told = await asyncio.to_thread(ask, node["admin"], "/api/v1/cluster")
                    states = {p["partition"]: p["state"] for p in told["partitions"]}
                    lost |= {n["partition"] for n in told["notes"] if n["event"] == "log_damaged"}
        assert lost == {p for p in range(64) if p % 8 == 3}
        assert {p for p, state in states.items() if state != "serving"} == lost
        doctor = await asyncio.to_thread(roost, "cluster", "doctor", "--admin", f"http://{site.nodes[0]['admin']}")
        assert doctor.returncode == 1
        assert "roost cluster restore" in doctor.stdout
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
    finally:
        await site.stop()
