"""How long clients wait when a node dies, when a machine dies, when a node hangs (issue 6, "What must show" 2 and 3).

Contract: prints figures, asserts nothing about time. Every session that the dead node owned asks at living doors until it has its
CONNACK; publishers whose topics need no partition of that node go on and record each round trip.

    PYTHONPATH=tests .venv/bin/python -m cluster.pauses --rounds 5 --servers 3 --what kill,machine,hang
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import operator
import random
import statistics
import struct
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from durability.link import Link
from wire import CONNACK, PUBACK, SUBACK, Packet, packet, text

from cluster.site import ClusterSite

SESSIONS = 300
ANSWER_S = 30.0


class Quick:
    """A client of version 3.1.1 that waits for one answer at a time."""

    def __init__(self, name: str, clean: bool) -> None:
        self.name, self.clean = name, clean
        self.link: Link | None = None
        self.answer: asyncio.Future[Packet] | None = None
        self.wanted = 0
        self.lost = False

    def _packet(self, p: Packet) -> None:
        if p.kind == self.wanted and self.answer is not None and not self.answer.done():
            self.answer.set_result(p)

    def _lost(self, link: Link) -> None:
        self.lost = True
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionError("lost"))

    async def ask(self, raw: bytes, wanted: int, at_most_s: float = ANSWER_S) -> Packet:
        assert self.link is not None
        self.wanted = wanted
        self.answer = asyncio.get_running_loop().create_future()
        self.link.send(raw)
        async with asyncio.timeout(at_most_s):
            return await self.answer

    async def connect(self, door: tuple[str, int], at_most_s: float = ANSWER_S) -> bool:
        loop = asyncio.get_running_loop()
        link = Link(4, self._packet, self._lost)
        try:
            await loop.create_connection(lambda: link, *door)
            self.link, self.lost = link, False
            body = text("MQTT") + bytes([4, 2 if self.clean else 0]) + struct.pack(">H", 0) + text(self.name)
            return (await self.ask(packet(0x10, body), CONNACK, at_most_s)).code == 0
        except (OSError, TimeoutError):
            link.drop()
            return False

    async def subscribe(self, pattern: str) -> float:
        """Seconds until SUBACK."""
        begun = time.monotonic()
        await self.ask(packet(0x82, b"\0\1" + text(pattern) + b"\1"), SUBACK)
        return time.monotonic() - begun

    async def publish(self, topic: str) -> float:
        """Seconds until PUBACK."""
        begun = time.monotonic()
        await self.ask(packet(0x32, text(topic) + b"\0\1" + b"x" * 64), PUBACK, 120)
        return time.monotonic() - begun


def owners(site: ClusterSite) -> list[str]:
    """Owner by partition."""
    admin = next(n["admin"] for i, n in enumerate(site.nodes) if i not in site.down)
    with urllib.request.urlopen(f"http://{admin}/api/v1/cluster", timeout=5) as answer:
        told = json.load(answer)
    return [p["owner"] for p in told["partitions"]]


def partition_of(site: ClusterSite, name: str) -> int:
    from roostmq import engine
    from roostmq.adapters.join_token import read_token
    from roostmq.policy import ring

    token = read_token((site.data / "token").read_text())
    point = engine.hash_ids(token.key_pair, [name.encode()])[0]
    return ring.partition_of(point, token.partitions, len(owners(site)))


async def usable_again(site: ClusterSite, names: list[str], since: float) -> list[float]:
    async def one(name: str) -> float:
        client = Quick(name, clean=False)
        while not await client.connect(random.choice(site.doors), 15):
            await asyncio.sleep(0.05)
        took = time.monotonic() - since
        assert client.link is not None
        client.link.drop()
        return took

    return sorted(await asyncio.gather(*(one(n) for n in names)))


class Bystander:
    """A publisher and a subscriber at one living node, in partitions of that node: what happens elsewhere is not their business."""

    def __init__(self, site: ClusterSite, node: int, mine: list[str]) -> None:
        self.site, self.node, self.names = site, node, mine
        self.trips: list[float] = []
        self.subacks: list[float] = []
        """Of a filter that every node knows already: nobody has to be asked for it."""
        self.closed = 0

    async def run(self) -> None:
        host, _, port = self.site.nodes[self.node]["mqtt"].rpartition(":")
        door = host, int(port)
        subscriber, publisher = Quick(self.names[0], False), Quick(self.names[1], True)
        await subscriber.connect(door)
        await subscriber.subscribe(f"by/{self.node}")
        await publisher.connect(door)
        while True:
            try:
                self.trips.append(await publisher.publish(f"by/{self.node}"))
                self.subacks.append(await subscriber.subscribe(f"by/{self.node}"))
            except OSError:
                self.closed += 1
                await publisher.connect(door)
            if subscriber.lost:
                self.closed += 1
                await subscriber.connect(door)
            await asyncio.sleep(0.005)

    def take(self) -> tuple[list[float], list[float]]:
        """Round trips and SUBACKs since the last call."""
        found = self.trips, self.subacks
        self.trips, self.subacks = [], []
        return found


def taken(bystanders: list[Bystander]) -> tuple[list[float], list[float]]:
    """Those of all, sorted."""
    trips, subacks = zip(*(b.take() for b in bystanders), strict=True)
    return sorted(functools.reduce(operator.iadd, trips, [])), sorted(functools.reduce(operator.iadd, subacks, []))


def shown(name: str, times: list[float]) -> str:
    if not times:
        return f"{name}: none"
    p99 = times[min(len(times) - 1, int(len(times) * 0.99))]
    return f"{name}: n {len(times)}, p50 {statistics.median(times):.3f} s, p99 {p99:.3f} s, most {times[-1]:.3f} s"


async def round_of(site: ClusterSite, what: str, rng: random.Random) -> list[float]:
    victim = rng.randrange(site.count)
    owned = owners(site)
    names = [f"vin-{i}" for i in range(SESSIONS)]
    theirs = [n for n in names if owned[partition_of(site, n)] == f"n{victim + 1}"]
    by = [i for i in range(site.count) if i != victim]
    pool = [f"by-{i}" for i in range(400)]
    bystanders = [Bystander(site, i, [n for n in pool if owned[partition_of(site, n)] == f"n{i + 1}"][:2]) for i in by]
    for n in names:
        client = Quick(n, clean=False)
        assert await client.connect(random.choice(site.doors))
        await client.subscribe(f"own/{n}")
        assert client.link is not None
        client.link.drop()
    tasks = [asyncio.create_task(b.run()) for b in bystanders]
    await asyncio.sleep(3)
    before = taken(bystanders)
    since = time.monotonic()
    if what == "hang":
        site.halt_node(victim)
    else:
        site.kill_node(victim)
        if what == "machine":
            site.kill_server(victim % site.servers)
    times = await usable_again(site, theirs, since)
    await asyncio.sleep(1)
    after = taken(bystanders)
    print(f"{what} n{victim + 1}: {shown('sessions usable elsewhere', times)}")
    for name, old, new in zip(("round trips", "SUBACKs"), before, after, strict=True):
        print(f"   bystanders, {shown(name + ' before', old)}; {shown('meanwhile', new)}")
    print(f"   bystanders closed: {sum(b.closed for b in bystanders)}")
    for t in tasks:
        t.cancel()
    if what == "hang":
        site.go_on(victim)
    else:
        if what == "machine":
            site.start_server(victim % site.servers)
        await site.start_node(victim)
    await site.until_served(60)
    await asyncio.sleep(8 + 2 * (what == "machine"))
    return times


async def main_async(a: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="roost-pauses-"))
    site, rng = ClusterSite(folder, 3, a.servers), random.Random(a.seed)
    await site.start()
    every: dict[str, list[float]] = {}
    try:
        for _ in range(a.rounds):
            for what in a.what.split(","):
                every.setdefault(what, []).extend(await round_of(site, what, rng))
    finally:
        await site.stop()
    for what, times in every.items():
        print(f"ALL {shown(what, sorted(times))}")


def main() -> Any:
    parser = argparse.ArgumentParser(prog="cluster.pauses", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", type=int, default=3, choices=(1, 3))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--what", default="kill,hang,machine")
    asyncio.run(main_async(parser.parse_args()))


if __name__ == "__main__":
    main()
