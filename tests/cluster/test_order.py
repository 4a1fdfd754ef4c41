"""Order of one publisher's messages while a partition changes hands (30-cluster.md, section 5)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import threading
import urllib.request
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from cluster.returned import gone
from cluster.site import ClusterSite
from cluster.test_cluster import connected
from roostmq import engine
from roostmq.adapters.join_token import read_token
from roostmq.errors import StaleError
from roostmq.model import Epoch, NodeId, PartitionState, PartitionTable, Version
from roostmq.store import codec
from roostmq.store.access import NatsAccess
from roostmq.store.nats_kv import NatsRegistry

pytestmark = [pytest.mark.xdist_group("nats"), pytest.mark.timeout(300)]


def moved(table: PartitionTable, partition: int, owner: str) -> PartitionTable:
    """The next table: this partition has another owner."""
    a = table.partitions[partition]
    new = dataclasses.replace(
        a, owner=NodeId(owner), epoch=Epoch(a.epoch + 1), state=PartitionState.RECOVERING, standbys=()
    )
    rows = tuple(new if p == partition else row for p, row in enumerate(table.partitions))
    return dataclasses.replace(table, version=Version(table.version + 1), partitions=rows)


async def hand_over(registry: NatsRegistry, partition: int, owner: str) -> None:
    """Write the next table over whatever is there."""
    while True:
        entry = await registry.get("table")
        assert entry is not None
        made = moved(codec.unpack_table(entry.value), partition, owner)
        with contextlib.suppress(StaleError):
            await registry.replace("table", codec.pack_table(made), entry.revision)
            return


def waits(site: ClusterSite, node: int) -> Any:
    with urllib.request.urlopen(f"http://{site.nodes[node]['admin']}/api/v1/cluster", timeout=10) as answer:
        return json.load(answer)["waits"]


@pytest.mark.parametrize("heir", ["n2", "n3"])
async def test_what_a_dead_owner_was_asked_goes_before_what_came_later(tmp_path: Path, heir: str) -> None:
    """The owner dies, and its partition is moved before anybody knows: what it was asked and never answered comes first.

    The next owner speaks for the partition while the publisher's node still waits for the dead one's answers.
    """
    site = ClusterSite(tmp_path)
    await site.start()
    await site.until_balanced()
    try:
        token = read_token((site.data / "token").read_text())
        registry = await NatsRegistry.open(NatsAccess((site.nats[0]["url"],)), token.cluster)
        entry = await registry.get("table")
        assert entry is not None
        table = codec.unpack_table(entry.value)

        def named(owner: str, prefix: str) -> tuple[str, int]:
            for i in itertools.count():
                point = engine.hash_ids(token.key_pair, [f"{prefix}{i}".encode()])[0]
                partition = point * token.partitions >> 64
                if table.partitions[partition].owner == owner:
                    return f"{prefix}{i}", partition
            raise AssertionError

        name, partition = named("n1", "sub")
        publisher = connected(site.nodes[1]["mqtt"], named("n2", "pub")[0])
        subscriber = connected(site.nodes[2]["mqtt"], name, clean=False)
        granted = threading.Event()
        subscriber.on_subscribe = lambda *_: granted.set()
        subscriber.subscribe("order", 2)
        assert granted.wait(20)
        gone(subscriber)

        site.kill_node(0)
        early = [publisher.publish("order", str(n), qos=n % 2 + 1) for n in range(10)]
        await asyncio.sleep(0.2)
        await hand_over(registry, partition, heir)
        await registry.close()
        for _ in range(400):  # until the heir speaks for it, as the publisher's node knows
            if all(partition not in w["unspoken"] for w in waits(site, 1) if w):
                break
            await asyncio.sleep(0.005)
        late = [publisher.publish("order", str(n), qos=n % 2 + 1) for n in range(10, 20)]
        for sent in early + late:
            await asyncio.to_thread(sent.wait_for_publish, 30)

        got: list[int] = []
        again = connected_to(site.nodes[1]["mqtt"], name, got)
        for _ in range(200):
            if len(got) >= 20:
                break
            await asyncio.sleep(0.05)
        assert [[n for n in got if n % 2 == odd] for odd in (0, 1)] == [list(range(odd, 20, 2)) for odd in (0, 1)]
        again.loop_stop()
        publisher.loop_stop()
    finally:
        await site.stop()


def connected_to(door: str, name: str, got: list[int]) -> mqtt.Client:
    """A session that is there already: what it brings goes into the list from the first moment on."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name, clean_session=False)
    client.on_message = lambda _c, _u, m: got.append(int(m.payload))
    host, _, port = door.rpartition(":")
    client.connect(host, int(port))
    client.loop_start()
    return client
