"""A partition with much in its queues goes from node to node: how long what is for it stands still, and what others notice.

Contract: prints figures, asserts nothing about time. Sessions of one partition are away while their queues fill; then the partition moves
around (or is cut in two). At each node a client sends itself a message every few milliseconds. At the end every session is asked for all it was sent.

    PYTHONPATH=tests .venv/bin/python -m cluster.heavy --megabytes 60 --sessions 4 --size 1000
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

from durability.link import Link
from wire import CONNACK, PUBACK, PUBLISH, SUBACK, Packet, packet, text

from cluster.growth import p99, split
from cluster.pauses import Quick, partition_of
from cluster.site import ClusterSite

WINDOW = 500


class Echo:
    """A client that hears itself."""

    def __init__(self, door: tuple[str, int], name: str) -> None:
        self.door, self.name = door, name
        self.trips: list[float] = []
        self.heard = asyncio.Event()

    def _packet(self, p: Packet) -> None:
        if p.kind in (CONNACK, SUBACK, PUBLISH):
            self.heard.set()

    async def run(self) -> None:
        link = Link(4, self._packet, lambda _: None)
        await asyncio.get_running_loop().create_connection(lambda: link, *self.door)
        topic = text(f"echo/{self.name}")
        for said in (packet(0x10, text("MQTT") + b"\4\2\0\0" + text(self.name)), packet(0x82, b"\0\1" + topic + b"\0")):
            await self._say(link, said)
        while True:
            begun = time.monotonic()
            await self._say(link, packet(0x30, topic + b"x"))
            self.trips.append(time.monotonic() - begun)
            await asyncio.sleep(0.003)

    async def _say(self, link: Link, said: bytes) -> None:
        self.heard.clear()
        link.send(said)
        await self.heard.wait()


class Filler:
    """Publishes numbers at QoS 1, some at a time."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s
        self.open = 0
        self.turn = asyncio.Event()

    def _packet(self, p: Packet) -> None:
        self.open -= p.kind == PUBACK
        self.turn.set()

    async def run(self, door: tuple[str, int], topics: list[str], numbers: range, size: int) -> None:
        link = Link(4, self._packet, lambda _: None)
        await asyncio.get_running_loop().create_connection(lambda: link, *door)
        link.send(packet(0x10, text("MQTT") + b"\4\2\0\0" + text("filler")))
        ids = itertools.cycle(range(1, 60_001))
        for n, topic in itertools.product(numbers, topics):
            while self.open >= WINDOW:
                self.turn.clear()
                await self.turn.wait()
            self.open += 1
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
            link.send(packet(0x32, text(topic) + struct.pack(">HI", next(ids), n) + bytes(size)))
        while self.open:
            self.turn.clear()
            await self.turn.wait()
        link.drop()


async def all_of(door: tuple[str, int], name: str, count: int) -> bool:
    """Does the session get every number, in order?"""
    got: list[int] = []
    done = asyncio.Event()

    def on_packet(p: Packet) -> None:
        if p.kind == PUBLISH:
            got.append(int.from_bytes(p.payload[:4], "big"))
            link.send(struct.pack(">BBH", PUBACK << 4, 2, p.id))
            if len(got) >= count:
                done.set()

    link = Link(4, on_packet, lambda _: None)
    await asyncio.get_running_loop().create_connection(lambda: link, *door)
    link.send(packet(0x10, text("MQTT") + b"\4\0\0\0" + text(name)))
    try:
        async with asyncio.timeout(60):
            await done.wait()
    except TimeoutError:
        pass
    link.drop()
    return got == list(range(count))


async def move(site: ClusterSite, partition: int, to: int) -> dict[str, Any]:
    """What is told of the move: longest pause in ms, bytes, how many of them went ahead; and how long it took."""
    since_s, begun, name = time.time(), time.monotonic(), site.nodes[to]["id"]
    site.pin({partition: name})
    while True:
        row = next(r for r in (await asyncio.to_thread(site.told_by, to))["partitions"] if r["partition"] == partition)
        if row["owner"] == name and row["state"] == "serving":
            break
        await asyncio.sleep(0.02)
    took = time.monotonic() - begun
    await asyncio.sleep(0.5)
    found: dict[str, Any] = {"seconds": round(took, 2), "pause_ms": 0}
    for i in range(len(site.nodes)):
        for m in (await asyncio.to_thread(site.told_by, i))["moves"]:
            if m["partition"] == partition and m["at_s"] >= since_s:
                pause_ms = max(found["pause_ms"], m.get("pause_ms", 0))
                found |= m | {"pause_ms": pause_ms}
    return found


async def queues(site: ClusterSite, partition: int, sessions: int) -> list[str]:
    """Sessions of one partition that have subscribed and are away; each has a topic of its own."""
    all_names = (f"s{i}" for i in itertools.count())
    names = list(itertools.islice((n for n in all_names if partition_of(site, n) == partition), sessions))
    for name in names:
        client = Quick(name, clean=False)
        await client.connect(site.doors[0])
        await client.subscribe(f"q/{name}")
        assert client.link is not None
        client.link.drop()
    return names


async def run(a: argparse.Namespace) -> None:
    site = ClusterSite(Path(tempfile.mkdtemp(prefix="roost-heavy-")), 3, 1)
    await site.start()
    try:
        wanted = partition_of(site, "heavy")
        names = await queues(site, wanted, a.sessions)
        count = a.megabytes * 1_000_000 // a.size // a.sessions
        await Filler().run(site.doors[0], [f"q/{name}" for name in names], range(count), a.size)
        print(f"partition {wanted}: {a.sessions} queues of {count} messages")
        echoes = [Echo(door, f"e{i}") for i, door in enumerate(site.doors)]
        tasks = [asyncio.create_task(e.run()) for e in echoes]
        await asyncio.sleep(3)
        calm = [(statistics.median(e.trips) * 1000, p99(e.trips) * 1000, max(e.trips) * 1000) for e in echoes]
        print("calm, echo ms (p50, p99, max):", [tuple(round(t, 1) for t in times) for times in calm])
        for turn in range(a.moves):
            [e.trips.clear() for e in echoes]
            told = await move(site, wanted, (turn + 1) % 3)
            worst = [round(max(e.trips, default=0) * 1000, 1) for e in echoes]
            print(f"to {site.nodes[(turn + 1) % 3]['id']}: {told}; echo max ms {worst}")
        if a.split:
            [e.trips.clear() for e in echoes]
            print(
                f"cut in two: {await split(site)}; echo max ms {[round(max(e.trips, default=0) * 1000, 1) for e in echoes]}"
            )
        [t.cancel() for t in tasks]
        whole = [await all_of(site.doors[0], name, count) for name in names]
        print("every message there, once and in order:", all(whole))
    finally:
        await site.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="cluster.heavy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--size", type=int, default=1000, help="bytes of a message")
    parser.add_argument("--moves", type=int, default=6)
    parser.add_argument("--split", action="store_true", help="then every partition is cut in two")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
