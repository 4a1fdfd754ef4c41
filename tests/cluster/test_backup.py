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
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from cluster.returned import Returned, gone
from cluster.site import ClusterSite
from cluster.test_cluster import ask, connected
from roostmq.errors import UnavailableError
from roostmq.store import restore as restoring
from roostmq.store.access import NatsAccess
from roostmq.store.nats_kv import connect
from roostmq.store.restore import restore
from roostmq.store.streams import make_streams, streams_of

pytestmark = [pytest.mark.xdist_group("nats"), pytest.mark.timeout(300)]


def subscribed(door: str, name: str, topic: str) -> mqtt.Client:
    client = connected(door, name, clean=False)
    granted = threading.Event()
    client.on_subscribe = lambda *_: granted.set()
    client.subscribe(topic, 2)
    assert granted.wait(20)
    return client


def cluster(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "roostmq", "cluster", *map(str, words)], capture_output=True, text=True, timeout=120
    )


async def reached(url: str) -> dict[str, int]:
    """Last address of each stream of the log."""
    client = await connect(NatsAccess((url,)), "test")
    try:
        js = client.jetstream()
        return {name: (await js.stream_info(name)).state.last_seq for name in streams_of("dev", 8)[:-1]}
    finally:
        await client.close()


async def everything_lost(site: ClusterSite) -> None:
    """All nodes are killed, and NATS loses its data."""
    for i in range(len(site.nodes)):
        site.kill_node(i)
    for i in range(len(site.nats)):
        site.kill_server(i)
        shutil.rmtree(site.data / f"nats-{i}" / "store")
    for i in range(len(site.nats)):
        site.start_server(i)


async def restored(*words: str | Path) -> dict[str, Any]:
    for _ in range(100):
        back = await asyncio.to_thread(cluster, "restore", *words, "--json")
        if back.returncode == 0 or "does not answer" not in back.stderr:
            break
    assert back.returncode == 0, back.stderr
    told: dict[str, Any] = json.loads(back.stdout)
    return told


async def interrupted(folder: Path, url: str) -> None:
    """A restore whose terminal goes away in the middle: it takes back the streams that it has made by then."""
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        if len(said) == 4:
            raise BrokenPipeError

    access, end = NatsAccess((url,)), time.monotonic() + 60
    with pytest.raises(BrokenPipeError):
        while time.monotonic() < end:  # servers that have just started hold an election
            with contextlib.suppress(UnavailableError):
                await restore(access, folder, None, (), tell)
    client = await connect(access, "test")
    try:
        assert await client.jetstream(timeout=20).streams_info() == []
    finally:
        await client.close()


async def has(site: ClusterSite, words: list[str]) -> None:
    """Each of the eight clients is given these, and nothing else; retained messages are there."""
    back_again = Returned(site.nodes[1]["mqtt"], [f"kept-{n}" for n in range(8)], "state/#")
    await back_again.until(8 * len(words), 8)
    back_again.stop()
    assert back_again.present == {f"kept-{n}": True for n in range(8)}
    for n, got in enumerate(back_again.got.values()):
        assert sorted(got) == [(f"b/{n}/x", w) for w in sorted(words)]
    assert back_again.values == {f"state/{n}": f"value-{n}" for n in range(8)}


def send(sender: mqtt.Client, words: list[str]) -> None:
    for n in range(8):
        for k, word in enumerate(words):
            sender.publish(f"b/{n}/x", word, qos=k % 2 + 1).wait_for_publish(20)


async def test_backup_destroy_restore(tmp_path: Path) -> None:
    """Backed up twice under traffic. Everything is destroyed: with what nodes kept nothing is missing, without it what
    came after the backup; and what is newer is told exactly."""
    site = ClusterSite(tmp_path, nodes=2, servers=3)
    await site.start()
    kept, url = tmp_path / "kept", site.nats[0]["url"]
    try:
        doors = [n["mqtt"] for n in site.nodes]
        for n in range(8):
            gone(subscribed(doors[n % 2], f"kept-{n}", f"b/{n}/#"))
        sender = connected(doors[0], "sender")
        first, second, third = ([f"{word}-{k}" for k in range(5)] for word in ("first", "second", "third"))
        send(sender, first)
        made = await asyncio.to_thread(cluster, "backup", "dev", kept, "--nats", url, "--json")
        assert made.returncode == 0, made.stderr
        assert len(json.loads(made.stdout)["streams"]) == 9
        send(sender, second)
        for n in range(8):
            sender.publish(f"state/{n}", f"value-{n}", qos=1, retain=True).wait_for_publish(20)
        made = await asyncio.to_thread(cluster, "backup", "dev", kept, "--nats", url, "--json")
        assert made.returncode == 0, made.stderr
        had = {s["name"]: s["last"] for s in json.loads(made.stdout)["streams"][:-1]}
        assert sum(later["messages"] for s in json.loads(made.stdout)["streams"] for later in s["later"]) > 40
        send(sender, third)
        refused = await asyncio.to_thread(cluster, "restore", kept, "--nats", url)
        assert (refused.returncode, "already" in refused.stderr) == (1, True)
        gone(sender)
        await asyncio.sleep(0.5)
        newer = {name: last - had[name] for name, last in (await reached(url)).items()}

        await everything_lost(site)
        caches = [word for i in (1, 2) for word in ("--cache", site.data / f"n{i}.cache")]
        told = await restored(kept, "--nats", url, *caches)
        found = dict.fromkeys(newer, 0)
        for line in told["newer"]:
            assert line["why"] is None
            found[f"ROOST_dev_LOG_{line['partition'] % 8}"] += line["appends"]
        assert (found, told["unknown"]) == (newer, {})
        await asyncio.gather(*(site.start_node(i) for i in range(2)))
        await has(site, first + second + third)

        await everything_lost(site)
        await interrupted(kept, url)
        told = await restored(kept, "--nats", url)
        assert told["newer"] == []
        await asyncio.gather(*(site.start_node(i) for i in range(2)))
        await has(site, first + second)
        refused = await asyncio.to_thread(cluster, "backup", "dev", kept, "--nats", url)
        assert (refused.returncode, "before a restore" in refused.stderr) == (1, True)
    finally:
        await site.stop()


async def test_a_backup_that_was_changed_is_refused(tmp_path: Path) -> None:
    """One byte in a file is found before anything is written. (And a node that cannot keep anything goes on and says so.)"""
    site = ClusterSite(tmp_path, nodes=1)
    site.data.mkdir()
    (site.data / "n1.cache").touch()
    await site.start()
    kept = tmp_path / "kept"
    try:
        made = await asyncio.to_thread(cluster, "backup", "dev", kept, "--nats", site.nats[0]["url"])
        assert made.returncode == 0, made.stderr
        file = next(kept.glob("KV_*.snapshot"))
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
        back = await asyncio.to_thread(cluster, "restore", kept, "--nats", site.nats[0]["url"])
        assert back.returncode == 1
        assert file.name in back.stderr
        doctor = await asyncio.to_thread(cluster, "doctor", "--admin", f"http://{site.nodes[0]['admin']}")
        assert "keeps nothing beside NATS any more" in doctor.stdout
    finally:
        await site.stop()


async def test_a_server_that_gives_a_restore_up_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five seconds without a word from the restore and the server that takes a stream in forgets it."""
    site = ClusterSite(tmp_path, nodes=1, servers=3)
    await site.start()
    kept, access = tmp_path / "kept", NatsAccess((site.nats[0]["url"],))
    stuck = "ROOST_dev_LOG_1"
    sent: list[str] = []

    async def late(client: Client, subject: str, data: bytes, name: str) -> bytes:
        if name == stuck and not data:
            sent.append(subject)
            if len(sent) == 1:
                await asyncio.sleep(7)
        return await send_to_nats(client, subject, data, name)

    try:
        made = await asyncio.to_thread(cluster, "backup", "dev", kept, "--nats", site.nats[0]["url"])
        assert made.returncode == 0, made.stderr
        await everything_lost(site)
        send_to_nats = restoring._send
        monkeypatch.setattr(restoring, "_send", late)
        while not sent:  # servers that have just started take a moment
            with contextlib.suppress(UnavailableError):
                told = await restore(access, kept, None, (), lambda _: None)
        assert len(sent) == len(set(sent)) >= 2
        assert len(told["streams"]) == 9
        await site.start_node(0)
    finally:
        await site.stop()


async def test_a_log_that_was_lost_is_never_begun_empty(tmp_path: Path) -> None:
    """A stream is deleted and made again: its partitions stand still and say so, all others serve."""
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
        doctor = await asyncio.to_thread(cluster, "doctor", "--admin", f"http://{site.nodes[0]['admin']}")
        assert doctor.returncode == 1
        assert "roost cluster restore" in doctor.stdout
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
    finally:
        await site.stop()
