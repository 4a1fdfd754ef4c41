"""Sockets spread when an operator wants it, and only then; sessions stay (30-cluster section 6)."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cluster.returned import gone
from cluster.site import ClusterSite
from cluster.test_cluster import ask, connected, roost
from roostmq import engine
from roostmq.adapters.join_token import read_token
from roostmq.interface.api.balance import costs
from roostmq.interface.cli.cluster_rebalance import excess, shares

pytestmark = [pytest.mark.xdist_group("nats"), pytest.mark.timeout(180)]


class Guest:
    """A client of MQTT 5 that goes where it is sent."""

    def __init__(self, door: str, name: str) -> None:
        self.present: list[bool] = []
        self.codes: list[int] = []
        self.got: list[bytes] = []
        self.connected = threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv5)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = lambda _c, _u, m: self.got.append(m.payload)
        self.client.will_set("wills", name, qos=1)
        self.topic = f"guest/{name}"
        self._go(door)
        self.client.loop_start()
        assert self.connected.wait(20)

    def _go(self, door: str) -> None:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        host, _, port = door.rpartition(":")
        self.client.connect(host, int(port), clean_start=False, properties=properties)

    def _on_connect(self, client: Any, _data: Any, flags: Any, _code: Any, _props: Any) -> None:
        self.present.append(flags.session_present)
        if not flags.session_present:
            client.subscribe(self.topic, 1)
        self.connected.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, code: Any, properties: Any) -> None:
        self.codes.append(code.value)
        if properties is not None and getattr(properties, "ServerReference", None):
            threading.Thread(target=self._go, args=(properties.ServerReference,)).start()

    def stop(self) -> None:
        self.client.on_disconnect = None
        gone(self.client)


def connections(site: ClusterSite) -> list[int]:
    return [ask(n["admin"], "/api/v1/info")["connections"] for n in site.nodes]


async def test_sockets_spread_and_sessions_stay(tmp_path: Path) -> None:
    """All clients came through one door; afterwards none has more than 1.10 of its share, and nobody lost anything."""
    site = ClusterSite(tmp_path)
    await site.start()
    guests = [Guest(site.nodes[0]["mqtt"], f"g{n}") for n in range(60)]
    watcher = Guest(site.nodes[1]["mqtt"], "watcher")
    watcher.client.subscribe("wills", 1)
    try:
        assert connections(site) == [60, 1, 0]
        url = f"http://{site.nodes[2]['admin']}"
        done = await asyncio.to_thread(roost, "cluster", "rebalance", "--connections", "20", "--admin", url, "--json")
        assert done.returncode == 0, done
        told = json.loads(done.stdout)
        after = connections(site)
        assert sum(after) == 61
        assert max(after) <= 1.10 * 61 / 3, after
        assert told["closed"] >= 39
        moved = [g for g in guests if g.codes]
        assert {code for g in moved for code in g.codes} == {0x9C}
        assert all(g.present[1:] == [True] * len(g.present[1:]) for g in moved), "sessions are kept"
        for g in guests:
            watcher.client.publish(g.topic, b"still there", qos=1).wait_for_publish(20)
        for _ in range(200):
            if all(g.got for g in guests):
                break
            await asyncio.sleep(0.05)
        assert all(g.got == [b"still there"] for g in guests)
        assert watcher.got == [], "nobody was declared dead"
    finally:
        for g in (*guests, watcher):
            g.stop()
        await site.stop()


def ids_of(site: ClusterSite, partitions: list[int], count: int) -> list[str]:
    """Client ids whose sessions are in these partitions."""
    token = next(line for line in (site.data / "n1.toml").read_text().splitlines() if line.startswith("token"))
    known = read_token(json.loads(token.partition("=")[2]))
    names = [f"busy-{n}" for n in range(4_000)]
    points = engine.hash_ids(known.key_pair, [n.encode() for n in names])
    return [n for n, point in zip(names, points, strict=True) if point >> 58 in partitions][:count]


async def test_what_costs_most_is_spread(tmp_path: Path) -> None:
    """All work is in four partitions of one node: a pass moves some of it, and no socket closes."""
    site = ClusterSite(tmp_path)
    await site.start()
    await site.until_balanced()
    url = f"http://{site.nodes[0]['admin']}"
    rows = ask(site.nodes[0]["admin"], "/api/v1/cluster")["partitions"]
    hot = [r["partition"] for r in rows if r["owner"] == "n1"][:12]
    busy = [connected(site.nodes[0]["mqtt"], name) for name in ids_of(site, hot, 36)]
    lost: list[object] = []
    ending = threading.Event()

    def talk() -> None:
        while not ending.is_set():
            for n, client in enumerate(busy):
                client.publish(f"hot/{n}", b"x" * 100, qos=1)
            time.sleep(0.01)

    talker = threading.Thread(target=talk)
    try:
        for n, client in enumerate(busy):
            client.on_disconnect = lambda *_: lost.append(1)
            client.subscribe(f"hot/{n}", 1)
        talker.start()
        shown = await asyncio.to_thread(
            roost, "cluster", "rebalance", "--dry-run", "--seconds", "2", "--json", "--admin", url
        )
        assert shown.returncode == 0, shown
        assert [r["owner"] for r in ask(site.nodes[0]["admin"], "/api/v1/cluster")["partitions"]] == [
            r["owner"] for r in rows
        ]
        done = await asyncio.to_thread(roost, "cluster", "rebalance", "--seconds", "2", "--json", "--admin", url)
        assert done.returncode == 0, done
        told = json.loads(done.stdout)
        assert told["cpu"]["before"] > told["cpu"]["after"] >= 1.0, told
        assert any(m["partition"] in hot for m in told["moves"]), told
        after = ask(site.nodes[0]["admin"], "/api/v1/cluster")["partitions"]
        assert all(after[m["partition"]]["owner"] == m["to"] for m in told["moves"])
        assert ask(site.nodes[0]["admin"], "/api/v1/cluster/moves")["pins"] == {}
        counts = [sum(r["owner"] == n["id"] for r in after) for n in site.nodes]
        assert max(counts) <= 22, "it is an exchange: every node owns as many as before"
        assert lost == []
    finally:
        ending.set()
        talker.join()
        for client in busy:
            client.on_disconnect = None
            gone(client)
        await site.stop()


def test_a_lane_s_time_is_divided_by_what_its_partitions_did() -> None:
    before = {"lanes": [{"busy_ns": 0}, {"busy_ns": 5}], "loads": [[[1, 10, 0, None], [2, 10, 0, None]], []]}
    after = {
        "lanes": [{"busy_ns": 3_000_000_000}, {"busy_ns": 5}],
        "loads": [[[1, 30, 7, ["car", 6]], [2, 20, 9, None]], [[5, 100, 1, None]]],
    }
    assert costs(before, after, 2.0) == {1: (1.0, 7, ["car", 6]), 2: (0.5, 9, None), 5: (0.0, 1, None)}


def test_shares_go_by_weight_and_a_draining_node_has_none() -> None:
    def member(node: str, weight: float = 1.0, draining: bool = False) -> dict[str, Any]:
        return {"node": node, "weight": weight, "draining": draining}

    members = [member("a"), member("b", 2.0), member("c", draining=True)]
    counts = {"a": 10, "b": 10, "c": 10}
    fair = shares(members, counts)
    assert fair == {"a": 10.0, "b": 20.0, "c": 0.0}
    assert excess(counts, fair) == {"a": 0, "b": 0, "c": 10}
    assert excess({"a": 105, "b": 95}, {"a": 100.0, "b": 100.0}) == {"a": 0, "b": 0}, "that is near enough"
    assert excess({"a": 0, "b": 0}, {"a": 0.0, "b": 0.0}) == {"a": 0, "b": 0}
