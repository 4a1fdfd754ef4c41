"""Streams that one real NATS server leads alone are handed over until nobody leads too many; what is written meanwhile is kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from policy.world import member

from roostmq.adapters.join_token import JoinToken
from roostmq.adapters.nats_server import NatsServers
from roostmq.config import Cluster as Options
from roostmq.errors import StoreError
from roostmq.model import Members, PartitionState, Version
from roostmq.policy.leaders import crowded
from roostmq.policy.table import empty_table
from roostmq.runtime import spreading
from roostmq.runtime.cluster import Cluster
from roostmq.store.access import NatsAccess
from roostmq.store.foundation import Plot, lay_down
from roostmq.store.nats_kv import NatsRegistry
from roostmq.store.streams import leaders, step_down

pytestmark = [pytest.mark.xdist_group("nats"), pytest.mark.timeout(180)]


async def test_one_leads_all_and_then_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "LOOK_S", 0.0)
    monkeypatch.setattr(spreading, "CALM_S", 0.0)
    servers = NatsServers(tmp_path, 3)
    await servers.start_all()
    try:
        access = NatsAccess(servers.urls)
        await lay_down(access, Plot("fleet"), "00" * 16, "k")
        token = JoinToken("fleet", 64, "00" * 16)
        mine = Cluster(Options(name="fleet", node="a", token=token.pack()), token, structlog.get_logger(), print)
        mine.registry = registry = await NatsRegistry.open(access, "fleet")
        for _ in range(100):
            found = await leaders(registry.client, "fleet", 8)
            apart = [led for led in found if led.leader != "n0"]
            if len(found) == 9 and len(apart) < 3:
                break
            for led in apart:
                await step_down(registry.client, led.stream, "n0")
            await asyncio.sleep(0.3)
        full = crowded(found)
        assert full is not None
        assert full[0] == "n0"

        mine.streams, mine.joined, mine.log_state = 8, True, {"state": "ready", "why": []}
        mine.members = Members(Version(1), (member("a"),))
        mine.table = table = empty_table(64, "k")
        spreader = spreading.Spreader(mine)
        for _ in range(3):
            await spreader.look()
        assert mine.crowded == full, "partitions do not serve: nothing is moved about now"
        mine.table = replace(
            table, partitions=tuple(replace(a, state=PartitionState.SERVING) for a in table.partitions)
        )
        for n in range(200):
            await spreader.look()
            if mine.crowded is None:
                break
            await written(registry, n)
        counts = Counter(led.leader for led in await leaders(registry.client, "fleet", 8))
        assert max(counts.values()) <= 4, counts
        await registry.close()
    finally:
        servers.stop()


async def written(registry: NatsRegistry, n: int) -> None:
    """The registry's own stream may be the one that is handed over: it takes something again within moments."""
    for _ in range(100):
        try:
            entry = await registry.get("test")
            if entry is None or entry.value != b"%d" % n:
                await registry.replace("test", b"%d" % n, entry.revision if entry is not None else 0)
            return
        except StoreError:
            await asyncio.sleep(0.1)
    raise AssertionError("the registry takes nothing")
