"""Who inherits a partition reads its log append by append: a log of many small ones stays short, across restarts as well."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from wire import Client

from cluster.site import ClusterSite
from cluster.test_cluster import ask
from roostmq.store.access import NatsAccess
from roostmq.store.nats_kv import connect

pytestmark = [pytest.mark.xdist_group("nats"), pytest.mark.timeout(180)]
EACH, STARTS = 280, 3
APPENDS_MAX = 600


async def test_appends_behind_a_checkpoint_are_counted_by_every_owner(tmp_path: Path) -> None:
    """840 acknowledged messages by three starts of the owner, none of which has written enough for a checkpoint."""
    site = ClusterSite(tmp_path, nodes=1)
    await site.start()
    try:
        door = door_of(site)
        kept = Client(door, 4, "kept", clean=False)
        kept.subscribe(("k/#", 1))
        kept.drop()
        for start in range(STARTS):
            with Client(door, 4, "sender") as sender:
                for n in range(EACH):
                    await asyncio.to_thread(sender.deliver, "k/x", f"{start * EACH + n}", 1)
            site.kill_node(0)
            await site.start_node(0)
        partition = ask(site.nodes[0]["admin"], "/api/v1/cluster/why?client=kept")["partition"]
        left = await appends_of(site, partition)
        assert 0 < left < APPENDS_MAX, left
        with Client(door, 4, "kept", clean=False) as back:
            got = [int(back.message().payload) for _ in range(STARTS * EACH)]
        assert got == list(range(STARTS * EACH))
    finally:
        await site.stop()


def door_of(site: ClusterSite) -> tuple[str, int]:
    host, _, port = site.nodes[0]["mqtt"].rpartition(":")
    return host, int(port)


async def appends_of(site: ClusterSite, partition: int) -> int:
    """Messages of a partition's log."""
    client = await connect(NatsAccess((site.nats[0]["url"],)), "test")
    try:
        wish = json.dumps({"subjects_filter": ">"}).encode()
        told = await client.request(f"$JS.API.STREAM.INFO.ROOST_dev_LOG_{partition % 8}", wish, timeout=10)
        found: dict[str, int] = json.loads(told.data)["state"]["subjects"]
        return found[f"roost.dev.log.{partition % 8}.{partition}"]
    finally:
        await client.close()
