"""Who takes part in a run: publishers, keepers of retained messages, subscribers, churners, passers.

Contract: names, topics and filters are fixed; the random numbers of each client come from the run's.
Each publisher owns its topics, `d/NAME/K` for messages and `r/NAME/K` for retained ones, one QoS per topic.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time

from wire import PUBACK, PUBLISH, SUBACK, Packet, packet, text

from durability import publishers
from durability.book import Book
from durability.link import RETRY_S, SLICE_S, Client, acknowledgement
from durability.publishers import Publisher
from durability.site import Site
from durability.subscribers import Churner, Habits, Passer, Subscriber

PUBLISHERS: dict[str, tuple[int, ...]] = {
    "p0": (1, 1, 1),
    "p1": (1, 1, 1),
    "p2": (2, 2, 2),
    "p3": (2, 2, 2),
    "p4": (1, 2, 2),
    "p5": (2, 1, 2),
}
KEEPERS: dict[str, tuple[int, ...]] = {"k0": (1, 2, 1, 2), "k1": (2, 1, 2, 1)}
DATA_TOPICS = [f"d/{name}/{k}" for name, all_qos in PUBLISHERS.items() for k, _ in enumerate(all_qos)]
KEPT_TOPICS = [f"r/{name}/{k}" for name, all_qos in KEEPERS.items() for k, _ in enumerate(all_qos)]
LOOK_S = 8.0

STEADY = Habits()
COMES_AND_GOES = Habits(online_s=(0.3, 2.0), offline_s=(0.1, 1.0))
MOSTLY_AWAY = Habits(online_s=(0.2, 0.6), offline_s=(1.0, 4.0))
CRASHES = Habits(drop_share=0.01)
CRASHES_OFTEN = Habits(drop_share=0.03, offline_s=(0.0, 0.3))
SLOW = Habits(lag_s=0.03, drop_share=0.003, receive_maximum=20)

# name: (version, filters, habits)
SUBSCRIBERS: dict[str, tuple[int, list[tuple[str, int]], Habits]] = {
    "exact": (5, [("d/p0/0", 2), ("d/p2/1", 2), ("d/p3/0", 1), ("d/p5/0", 2)], STEADY),
    "wild4": (4, [("d/+/1", 2)], COMES_AND_GOES),
    "all": (5, [("d/#", 2)], STEADY),
    "all-slow": (5, [("d/#", 2)], SLOW),
    "all4-qos1": (4, [("d/#", 1)], Habits(lag_s=0.02, drop_share=0.003)),
    "overlap": (5, [("d/#", 1), ("d/p2/+", 2), ("d/p0/0", 2)], CRASHES),
    "overlap4": (4, [("d/+/0", 1), ("d/p3/#", 2), ("d/p3/0", 2)], COMES_AND_GOES),
    "crash": (5, [("d/p2/#", 2), ("d/p4/#", 2), ("d/p5/+", 2)], CRASHES_OFTEN),
    "crash4": (4, [("d/p3/#", 2), ("d/p1/0", 1)], CRASHES_OFTEN),
    "away": (5, [("d/#", 2)], MOSTLY_AWAY),
    "away4": (4, [("d/+/2", 2)], MOSTLY_AWAY),
    "g1-a": (5, [("$share/g1/d/#", 2)], STEADY),
    "g1-b": (5, [("$share/g1/d/#", 2)], CRASHES),
    "g1-c": (4, [("$share/g1/d/#", 2)], COMES_AND_GOES),
    "g2-a": (5, [("$share/g2/d/+/1", 1)], CRASHES),
    "g2-b": (5, [("$share/g2/d/+/1", 1)], MOSTLY_AWAY),
}
CHURNERS = {"churn": (5, 2), "churn4": (4, 1), "churn5": (5, 1)}
PASSERS = {"pass": 5, "pass-b": 5, "pass4": 4}


def population(site: Site, book: Book, rng: random.Random, rate: float) -> list[Client]:
    """Everybody, about `rate` messages per second together."""

    def own() -> random.Random:
        return random.Random(rng.getrandbits(64))

    made: list[Client] = []
    burst = 8
    pause_s = len(PUBLISHERS) * (1 + burst) / 2 / rate
    for i, (name, all_qos) in enumerate(PUBLISHERS.items()):
        habits = publishers.Habits(
            [(f"d/{name}/{k}", qos) for k, qos in enumerate(all_qos)], window=(16, 40)[i % 2], burst=burst,
            pause_s=pause_s, fleeting=name == "p5", reuse=name in ("p2", "p1"), big_share=0.02 * (name == "p4"),
        )  # fmt: skip
        made.append(Publisher(site, book, own(), name, 4 if name in ("p1", "p3") else 5, habits))
    for name, all_qos in KEEPERS.items():
        topics = [(f"r/{name}/{k}", qos) for k, qos in enumerate(all_qos)]
        habits = publishers.Habits(topics, burst=4, pause_s=4 * pause_s, retain=True, clear_share=0.25)
        made.append(Publisher(site, book, own(), name, 5 if name == "k0" else 4, habits))
    for name, (version, filters, manner) in SUBSCRIBERS.items():
        made.append(Subscriber(site, book, own(), f"s-{name}", version, filters, manner))
    pool = [*DATA_TOPICS[::2], "d/+/2"]
    for name, (version, qos) in CHURNERS.items():
        made.append(Churner(site, book, own(), name, version, [(t, qos) for t in pool], pause_s=0.05))
    made += [Passer(site, book, own(), name, version, 3600) for name, version in PASSERS.items()]
    return made


class Looker(Client):
    """A stranger without a session who reads the retained messages."""

    def __init__(self, site: Site, book: Book, rng: random.Random, name: str, version: int, expiry_s: int) -> None:
        super().__init__(site, book, rng, name, version, expiry_s)
        self.found: dict[str, bytes] = {}
        self.live: set[str] = set()
        self.granted = False

    def resume(self, present: bool) -> None:
        self.found.clear()
        self.live.clear()
        self.granted = False
        self.since = {t: self.book.retained_from(t) for t in KEPT_TOPICS}
        self.send(packet(0x82, struct.pack(">H", 1) + b"\0" + text("r/#") + b"\1"))

    def received(self, p: Packet) -> None:
        if p.kind == SUBACK:
            self.granted = True
        elif p.kind == PUBLISH:
            if p.retain:
                self.found[p.topic] = p.payload
            else:
                self.live.add(p.topic)
            if p.qos == 1:
                self.send(acknowledgement(PUBACK, p.id))

    async def look(self) -> None:
        """Compare what is retained now with what the keepers know."""
        while not await self.connect(clean=True):
            await asyncio.sleep(RETRY_S)
        end = time.monotonic() + LOOK_S
        while self.link is not None and time.monotonic() < end:
            due = self.book.retained_due(self.since)
            if self.granted and due <= self.found.keys() | self.live:
                break
            await asyncio.sleep(SLICE_S)
        await self.idle(0.2)
        if self.link is None:
            return
        self.book.check_retained(self.found, self.since, self.live, time.monotonic())
        self.leave()
