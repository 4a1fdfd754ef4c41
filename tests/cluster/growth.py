"""A node more, a node less and twice the partitions under thousands of clients: what moves, what closes, how long anybody waits.

Contract: prints figures, asserts nothing about time. Half of the clients have sessions that are kept, half end with their connection;
each has a topic of its own, and publishers at QoS 0, 1 and 2 send numbers to all topics in turn. Every number must arrive,
once and in order.

    PYTHONPATH=tests .venv/bin/python -m cluster.growth --clients 10000 --rate 2000
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from durability.link import Link
from wire import CONNACK, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, SUBACK, Packet, packet, text

from cluster.site import ClusterSite

QOS = 3


class Reader:
    """One client: what it got on its topic at each QoS, by number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.link: Link | None = None
        self.ready = asyncio.Event()
        self.got: list[list[int]] = [[] for _ in range(QOS)]
        self.closed = False

    async def connect(self, door: tuple[str, int]) -> None:
        link = Link(4, self._packet, self._lost)
        await asyncio.get_running_loop().create_connection(lambda: link, *door)
        self.link = link
        clean = 2 if self.number % 2 else 0
        link.send(packet(0x10, text("MQTT") + bytes([4, clean]) + b"\0\0" + text(f"client-{self.number}")))
        await self.ready.wait()

    def _packet(self, p: Packet) -> None:
        assert self.link is not None
        if p.kind == CONNACK:
            self.link.send(packet(0x82, b"\0\1" + text(f"g/{self.number}") + b"\2"))
        elif p.kind == SUBACK:
            self.ready.set()
        elif p.kind == PUBLISH:
            self.got[p.qos].append(int(p.payload))
            if p.qos:
                self.link.send(struct.pack(">BBH", (PUBACK if p.qos == 1 else PUBREC) << 4, 2, p.id))
        elif p.kind == PUBREL:
            self.link.send(struct.pack(">BBH", PUBCOMP << 4, 2, p.id))

    def _lost(self, link: Link) -> None:
        self.closed = True


class Writer:
    """Sends numbers to all topics in turn at one QoS, with at most so many under way."""

    WINDOW = 200

    def __init__(self, qos: int, clients: int, rate: float) -> None:
        self.qos, self.clients, self.rate = qos, clients, rate
        self.link: Link | None = None
        self.ids = itertools.cycle(range(1, 60_001))
        self.open: dict[int, float] = {}
        self.sent = [0] * clients
        self.trips: list[float] = []
        self.closed = False
        self.there = asyncio.Event()

    async def run(self, door: tuple[str, int], until: asyncio.Event) -> None:
        link = self.link = Link(4, self._packet, self._lost)
        await asyncio.get_running_loop().create_connection(lambda: link, *door)
        link.send(packet(0x10, text("MQTT") + bytes([4, 2]) + b"\0\0" + text(f"writer-{self.qos}")))
        await self.there.wait()
        begun, count = time.monotonic(), 0
        while not until.is_set():
            due = int((time.monotonic() - begun) * self.rate) - count
            for _ in range(min(due, self.WINDOW - len(self.open))):
                self._send(count % self.clients)
                count += 1
            await asyncio.sleep(0.005)

    def _send(self, to: int) -> None:
        assert self.link is not None
        body = text(f"g/{to}")
        if self.qos:
            number = next(self.ids)
            self.open[number] = time.monotonic()
            body += struct.pack(">H", number)
        self.link.send(packet(0x30 | self.qos << 1, body + str(self.sent[to]).encode()))
        self.sent[to] += 1

    def _packet(self, p: Packet) -> None:
        assert self.link is not None
        if p.kind == CONNACK:
            self.there.set()
        elif p.kind == PUBREC:
            self.link.send(struct.pack(">BBH", PUBREL << 4 | 2, 2, p.id))
        elif p.kind in (PUBACK, PUBCOMP):
            self.trips.append(time.monotonic() - self.open.pop(p.id))

    def _lost(self, link: Link) -> None:
        self.closed = True


def p99(times: list[float]) -> float:
    ordered = sorted(times)
    return ordered[len(ordered) * 99 // 100] if ordered else 0.0


async def split(site: ClusterSite) -> dict[str, Any]:
    """`roost cluster split`, and how long it took."""
    words = ["cluster", "split", "--json", "--admin", f"http://{site.nodes[0]['admin']}"]
    begun = time.monotonic()
    made = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "roostmq", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await made.communicate()
    told: dict[str, Any] = json.loads(out)
    return told | {"seconds": round(time.monotonic() - begun, 1)}


async def run(a: argparse.Namespace) -> None:
    site = ClusterSite(Path(tempfile.mkdtemp(prefix="roost-growth-")), 3, a.servers)
    await site.start()
    try:
        doors = site.doors
        readers = [Reader(n) for n in range(a.clients)]
        for some in range(0, a.clients, 500):
            await asyncio.gather(*(r.connect(doors[r.number % 3]) for r in readers[some : some + 500]))
        print(f"{a.clients} clients are connected and subscribed")
        end = asyncio.Event()
        writers = [Writer(qos, a.clients, a.rate / QOS) for qos in range(QOS)]
        tasks = [asyncio.create_task(w.run(doors[w.qos], end)) for w in writers]
        await asyncio.sleep(5)
        before = [p99(w.trips) for w in writers]
        for words in (["add"], ["remove", "n4"], ["split"]):
            [w.trips.clear() for w in writers]
            told = await (split(site) if words == ["split"] else site.change(*words))
            print(json.dumps(told))
            print("   p99 of acknowledgements, ms, before / meanwhile, at QoS 1 and 2:",
                  [(round(b * 1000, 1), round(p99(w.trips) * 1000, 1)) for b, w in zip(before, writers, strict=True)][1:])  # fmt: skip
            await asyncio.sleep(2)
        end.set()
        await asyncio.gather(*tasks)
        await asyncio.sleep(3)
        wrong = [(r.number, w.qos) for w in writers for r in readers if r.got[w.qos] != list(range(w.sent[r.number]))]
        total = sum(sum(w.sent) for w in writers)
        closed = sum(r.closed for r in readers) + sum(w.closed for w in writers)
        print(
            f"{total} messages: {len(wrong)} streams with a loss, a double or a wrong order {wrong[:5]}; {closed} sockets closed"
        )
    finally:
        await site.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="cluster.growth", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=2_000, help="messages per second of all")
    parser.add_argument("--servers", type=int, default=1, choices=(1, 3))
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
