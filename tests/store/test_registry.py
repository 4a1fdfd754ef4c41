"""The registry's contract, over memory and over a real nats-server (30-cluster section 2: compare-and-set decides all)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from roostmq.adapters.nats_server import NatsServers, find_server
from roostmq.errors import StaleError, UnavailableError, UnsuitableError
from roostmq.store.access import NatsAccess
from roostmq.store.memory import MemoryRegistry, Shelf
from roostmq.store.nats_kv import NatsRegistry
from roostmq.store.registry import Registry

Make = Callable[[], Awaitable[Registry]]
pytestmark = pytest.mark.xdist_group("nats")


def server_or_skip() -> None:
    try:
        find_server()
    except UnsuitableError as missing:
        assert os.environ.get("ROOST_REQUIRE_NATS") != "1", str(missing)
        pytest.skip(str(missing))


@pytest.fixture(params=["memory", "nats"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    """Registries that see the same entries."""
    made: list[Registry] = []
    servers = None
    shelf = Shelf()
    if request.param == "nats":
        server_or_skip()
        servers = NatsServers(tmp_path, 1)
        await servers.start_all()
        made.append(await NatsRegistry.make(NatsAccess(servers.urls), "test", 1))

    async def one() -> Registry:
        registry: Registry = (
            MemoryRegistry(shelf) if servers is None else await NatsRegistry.open(NatsAccess(servers.urls), "test")
        )
        made.append(registry)
        return registry

    yield one
    for registry in made:
        await registry.close()
    if servers is not None:
        servers.stop()


async def test_compare_and_set(make: Make) -> None:
    a, b = await make(), await make()
    assert await a.get("table") is None
    first = await a.create("table", b"1")
    with pytest.raises(StaleError):
        await b.create("table", b"2")
    second = await b.replace("table", b"2", first)
    assert second > first
    with pytest.raises(StaleError):
        await a.replace("table", b"3", first)
    found = await a.get("table")
    assert found is not None
    assert (found.value, found.revision) == (b"2", second)


async def test_of_ten_writers_one_wins_each_round(make: Make) -> None:
    registries = [await make() for _ in range(10)]
    revision = await registries[0].create("n", b"")
    for n in range(5):

        async def attempt(r: Registry, who: int, against: int = revision, n: int = n) -> int:
            try:
                return await r.replace("n", b"%d %d" % (n, who), against)
            except StaleError:
                return 0

        won = [got for got in await asyncio.gather(*(attempt(r, i) for i, r in enumerate(registries))) if got]
        assert len(won) == 1
        revision = won[0]


async def test_a_change_is_hinted_and_read(make: Make) -> None:
    a, b = await make(), await make()
    await b.changed(0.05)
    waiting = asyncio.ensure_future(b.changed(10))
    await asyncio.sleep(0.05)
    await a.create("members", b"x")
    assert await waiting
    found = await b.get("members")
    assert found is not None
    assert found.value == b"x"
    await b.changed(0.3)
    assert not await b.changed(0.05)


async def test_a_change_without_an_answer_is_unknown_not_done_nor_undone() -> None:
    registry = MemoryRegistry()
    registry.shelf.unknown = 1
    with pytest.raises(UnavailableError):
        await registry.create("k", b"v")
    found = await registry.get("k")
    assert found is not None
    registry.shelf.away = True
    with pytest.raises(UnavailableError):
        await registry.get("k")


async def test_servers_that_are_away_at_the_start_or_later(tmp_path: Path) -> None:
    server_or_skip()
    servers = NatsServers(tmp_path, 1)
    access = NatsAccess(servers.urls)
    with pytest.raises(UnavailableError):
        await NatsRegistry.open(access, "later")
    await servers.start_all()
    try:
        with pytest.raises(UnsuitableError, match="roost cluster init later"):
            await NatsRegistry.open(access, "later")
        registry = await NatsRegistry.make(access, "later", 1)
        revision = await registry.create("k", b"1")
        servers.kill(0)
        with pytest.raises(UnavailableError):
            await registry.replace("k", b"2", revision)
        servers.start(0)
        await servers.until_ready()
        for _ in range(50):
            try:
                found = await registry.get("k")
                break
            except UnavailableError:
                await asyncio.sleep(0.2)
        assert found is not None
        assert found.value in (b"1", b"2"), "unknown means: either"
        await registry.close()
    finally:
        servers.stop()
