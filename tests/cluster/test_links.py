"""Links to other machines are encrypted, and nobody without the cluster's secret comes in (30-cluster section 4)."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import struct
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from wire import Client, packet, text

from cluster.returned import gone
from cluster.site import ClusterSite
from cluster.test_cluster import ask, connected, roost
from cluster.weather import both

MUCH = 1_500
"""Messages of 64 KiB; a slow way carries 20 of them in a second."""
pytestmark = [pytest.mark.xdist_group("nats"), pytest.mark.timeout(120)]


def answer(address: tuple[str, int], said: bytes) -> bytes:
    """What a node says to a stranger before it closes."""
    with socket.create_connection(address, timeout=10) as stranger:
        stranger.sendall(said)
        got = b""
        try:
            while part := stranger.recv(4096):
                got += part
        except ConnectionResetError:
            pass
        return got


async def test_links_speak_only_to_who_has_the_secret(tmp_path: Path) -> None:
    """As between machines: messages of every QoS cross encrypted links; strangers hear nothing, with TLS or without."""
    site = ClusterSite(tmp_path)
    site.link_tls = "always"
    await site.start()
    try:
        got: list[int] = []
        there = threading.Event()
        reader = connected(site.nodes[0]["mqtt"], "reader")
        reader.on_subscribe = lambda *_: there.set()
        reader.on_message = lambda _c, _u, m: got.append(int(m.payload))
        reader.subscribe("secret/#", 2)
        assert there.wait(20)
        writers = [connected(node["mqtt"], f"writer-{n}") for n, node in enumerate(site.nodes)]
        for n in range(30):
            writers[n % 3].publish("secret/x", str(n), qos=n % 3).wait_for_publish(20)
        await until(lambda: len(got) == 30, 10)
        for client in (reader, *writers):
            gone(client)
        assert sorted(got) == list(range(30))

        members = ask(site.nodes[0]["admin"], "/api/v1/cluster")["members"]
        for one in members:
            host, _, port = one["links"].rpartition(":")
            address = (host, int(port))
            greeting = b"ROOSTLNK" + struct.pack("<HHQQQQQ", 1, 1, 1, 0, 1, 0, 0)
            alert = answer(address, greeting + bytes(400))
            assert alert[:1] == b"\x15", "a record of TLS that refuses, nothing else"
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with socket.create_connection(address, timeout=10) as raw, context.wrap_socket(raw) as stranger:
                with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
                    stranger.recv(4096)
    finally:
        await site.stop()


async def test_a_pair_that_is_cut_talks_through_a_third(tmp_path: Path) -> None:
    """Nobody waits: SUBACKs, publishes of every QoS and new sessions cross a cut that only a third node can see around."""
    site = ClusterSite(tmp_path)
    await site.start()
    try:
        await site.stand_in_the_rain()
        got: list[int] = []
        reader = await asyncio.to_thread(connected, site.nodes[0]["mqtt"], "reader", False)
        reader.on_message = lambda _c, _u, m: got.append(int(m.payload))
        granted = threading.Event()
        reader.on_subscribe = lambda *_: granted.set()
        site.weather.cut |= both([(site.slots[0], site.slots[1])])
        await until(lambda: around(site, 0, "n2") == around(site, 1, "n1") == "n3", 10)
        version = ask(site.nodes[2]["admin"], "/api/v1/cluster")["members_version"]
        reader.subscribe("across/#", 2)
        await until(granted.is_set, 10)
        writers = [await asyncio.to_thread(connected, site.nodes[1]["mqtt"], f"writer-{n}") for n in range(8)]
        for n in range(48):
            told = writers[n % 8].publish("across/x", str(n), qos=n % 3)
            await until(told.is_published, 10)
        await until(lambda: len(got) == 48, 10)
        assert sorted(got) == list(range(48))
        doctor = ask(site.nodes[0]["admin"], "/api/v1/cluster")
        assert any("goes through n3" in f["what"] for f in doctor["findings"]), doctor["findings"]
        site.weather.clear()
        await until(lambda: around(site, 0, "n2") is None and around(site, 1, "n1") is None, 10)
        assert ask(site.nodes[2]["admin"], "/api/v1/cluster")["members_version"] == version, "nobody was voted out"
        site.weather.slow |= dict.fromkeys(both([(site.slots[0], site.slots[1])]), 0.15)
        await until(lambda: any("the way from n1 to it" in w for w in found(site, 0, "n2")), 10)
        assert found(site, 0, "n3") == [], "only the slow one is named, within ten seconds"
        # now it is the node's own network, and it is allowed to leave
        allowed = await asyncio.to_thread(
            roost, "cluster", "apply", "--leave-slow", "on", "--no-wait", "--admin", f"http://{site.nodes[1]['admin']}"
        )
        assert allowed.returncode == 0, allowed.stderr
        site.weather.slow |= dict.fromkeys(both([(site.slots[0], site.slots[2])]), 0.15)
        await until(lambda: any("the way to every other node" in w for w in found(site, 0, "n1")), 10)
        # to halt takes longer now than a first try may
        site.weather.slow |= dict.fromkeys(both((site.slots[0], site.slots[n]) for n in (1, 2)), 0.28)
        await until(lambda: share(site, "n1") == 0, 60)
        site.weather.clear()
        # a machine that stands still for a moment, too short for a vote
        site.halt_node(2)
        await asyncio.sleep(1.2)
        site.go_on(2)
        await until(lambda: any("a lane was" in w for w in found(site, 2, "n3")), 10)
        for client in (reader, *writers):
            gone(client)
    finally:
        await site.stop()


async def test_what_waits_for_slow_links_holds_up_nobody_else(tmp_path: Path) -> None:
    """Far more than all links together may keep, for a node behind a slow one: only the client that publishes it is not
    read. And the node is heard and answered all the while, so it acknowledges and is voted out by nobody."""
    site = ClusterSite(tmp_path)
    await site.start()
    try:
        await site.stand_in_the_rain()
        doors = [n["mqtt"] for n in site.nodes]
        await site.until_balanced()
        readers = [await asyncio.to_thread(connected, doors[n], owned(site, f"n{n + 1}")) for n in (1, 2)]
        got: list[int] = []
        readers[1].on_message = lambda _c, _u, m: got.append(int(m.payload))
        for reader, topic in zip(readers, ("much/#", "little/#"), strict=True):
            granted = threading.Event()
            reader.on_subscribe = lambda *_, granted=granted: granted.set()
            reader.subscribe(topic, 2)
            await until(granted.is_set, 20)
        writer = await asyncio.to_thread(connected, doors[0], owned(site, "n1"))
        closed: list[object] = []
        writer.on_disconnect = lambda *told: closed.append(told)
        version = ask(site.nodes[1]["admin"], "/api/v1/cluster")["members_version"]
        ways = [(site.slots[0], site.slots[n]) for n in (1, 2)]
        site.weather.slow |= dict.fromkeys(ways, 0.05)
        said: list[int] = []
        flood = threading.Thread(target=pour, args=(doors[0], "much/x", MUCH, said), daemon=True)
        flood.start()
        await until(lambda: slowed(site, 0) == 1, 20)
        for n in range(20):
            told = writer.publish("nobody/x", str(n), qos=1)
            await until(told.is_published, 10)
            await asyncio.sleep(0.2)
        del site.weather.slow[ways[1]]
        for n in range(30):
            told = writer.publish("little/x", str(n), qos=n % 3)
            await until(told.is_published, 10)
        await until(lambda: len(got) == 30, 10)
        assert sorted(got) == list(range(30))
        assert slowed(site, 0) == 1 and len(said) < MUCH / 2, "it waits meanwhile"
        assert closed == []
        assert ask(site.nodes[1]["admin"], "/api/v1/cluster")["members_version"] == version, "nobody was voted out"
        site.weather.clear()
        await until(lambda: not flood.is_alive() and slowed(site, 0) == 0, 60)
        assert len(said) == MUCH
        for client in (*readers, writer):
            gone(client)
    finally:
        await site.stop()


def pour(door: str, topic: str, count: int, said: list[int]) -> None:
    """Publish so many messages of 64 KiB at QoS 0, as fast as they are taken."""
    host, _, port = door.rpartition(":")
    client = Client((host, int(port)))
    message = packet(0x30, text(topic) + b"\0" + bytes(65_536))
    client.socket.settimeout(120)
    for n in range(count):
        client.socket.sendall(message)
        said.append(n)
    client.socket.close()


def slowed(site: ClusterSite, i: int) -> int:
    """How many clients a node does not read."""
    with urllib.request.urlopen(f"http://{site.nodes[i]['admin']}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("roostmq_connections_slowed"))


def owned(site: ClusterSite, node: str) -> str:
    """A client id whose session is there."""
    name = (f"reader-{n}" for n in itertools.count())
    return next(n for n in name if ask(site.nodes[0]["admin"], f"/api/v1/cluster/why?client={n}")["owner"] == node)


def share(site: ClusterSite, node: str) -> int:
    """How many partitions a node has."""
    members = ask(site.nodes[1]["admin"], "/api/v1/cluster")["members"]
    held: int = next(m["partitions"] for m in members if m["node"] == node)
    return held


def around(site: ClusterSite, i: int, other: str) -> str | None:
    """Through whom a node talks to another."""
    members = ask(site.nodes[i]["admin"], "/api/v1/cluster")["members"]
    found: str | None = next(m["around"] for m in members if m["node"] == other)
    return found


def found(site: ClusterSite, i: int, where: str) -> list[str]:
    """What a node's doctor says of some place."""
    findings = ask(site.nodes[i]["admin"], "/api/v1/cluster")["findings"]
    return [f["what"] for f in findings if f["where"] == where]


async def until(true: Callable[[], bool], at_most_s: float) -> None:
    """Wait for something. The proxies run in this loop: nothing may block it for long."""
    end = time.monotonic() + at_most_s
    while not await asyncio.to_thread(true):
        assert time.monotonic() < end, "it has not happened"
        await asyncio.sleep(0.02)
