"""Publishers that check: pipelined windows, everything unacknowledged repeated after each reconnect.

Contract: a publisher with a persistent session repeats, in order and under the same identifiers, each PUBLISH without
PUBACK or PUBREC with DUP=1 and each PUBREL without PUBCOMP [MQTT-4.4.0-1]. A *fleeting* one (Clean Start 1, no expiry)
forgets what was in flight with its connection. A refused message (0x80 or more) is given up, never repeated.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from dataclasses import dataclass

from wire import PUBACK, PUBCOMP, PUBREC, PUBREL, Packet, packet, text

from durability.book import Book, Message
from durability.link import Client, acknowledgement
from durability.site import Site

BLOB = random.Random(0).randbytes(1 << 18)


@dataclass(slots=True)
class Flight:
    """A message in the window: until PUBACK, or until PUBREC and then (released) until PUBCOMP."""

    message: Message
    payload: bytes
    released: bool = False


@dataclass
class Habits:
    """How a publisher behaves."""

    topics: list[tuple[str, int]]
    window: int = 16
    burst: int = 8
    pause_s: float = 0.05
    fleeting: bool = False
    reuse: bool = False
    retain: bool = False
    clear_share: float = 0.0
    drop_share: float = 0.002
    big_share: float = 0.0


class Publisher(Client):
    """Sends bursts on its topics, one QoS per topic."""

    def __init__(self, site: Site, book: Book, rng: random.Random, name: str, version: int, habits: Habits) -> None:
        super().__init__(site, book, rng, name, version, 0 if habits.fleeting else 3600)
        self.habits = habits
        self.flights: dict[int, Flight] = {}
        self.next_id = 1
        self.queue: list[tuple[str, int]] = []

    def settled(self) -> bool:
        return self.connected and not self.flights and not self.queue

    async def run(self) -> None:
        while True:
            await self.reconnect(self.habits.fleeting)
            while self.link is not None:
                await asyncio.sleep(self.habits.pause_s * self.rng.uniform(0.5, 1.5))
                if self.link is not None and not self.draining:
                    self.burst()
                    if self.rng.random() < self.habits.drop_share:
                        self.book.checked["publisher dropped the socket"] += 1
                        self.drop()
            await asyncio.sleep(self.rng.uniform(0, 0.05))

    # ---- out

    def burst(self) -> None:
        for _ in range(self.rng.randint(1, self.habits.burst)):
            self.queue.append(self.rng.choice(self.habits.topics))
        self.pump()

    def pump(self, probe: bool = False) -> None:
        """Send what waits as far as the window allows."""
        while self.queue and self.connected and len(self.flights) < self.habits.window:
            topic, qos = self.queue.pop(0)
            empty = self.rng.random() < self.habits.clear_share
            m = self.book.publish(
                self.name, topic, qos, time.monotonic(), retain=self.habits.retain, empty=empty, probe=probe
            )
            most = len(BLOB) // 2 if self.rng.random() < self.habits.big_share else 200
            at = self.rng.randrange(len(BLOB) // 2)
            flight = Flight(m, m.payload(BLOB[at : at + self.rng.randint(0, most)]))
            number = self.free_id()
            self.flights[number] = flight
            self.send_publish(number, flight, dup=False)

    def free_id(self) -> int:
        """The lowest free identifier, or the next one in the circle."""
        if self.habits.reuse:
            return next(i for i in range(1, 65536) if i not in self.flights)
        while self.next_id in self.flights:
            self.next_id = self.next_id % 65535 + 1
        number, self.next_id = self.next_id, self.next_id % 65535 + 1
        return number

    def send_publish(self, number: int, flight: Flight, dup: bool) -> None:
        m = flight.message
        body = text(m.topic) + struct.pack(">H", number) + (b"\0" if self.version == 5 else b"")
        self.send(packet(0x30 | dup << 3 | m.qos << 1 | self.habits.retain, body + flight.payload))

    def resume(self, present: bool) -> None:
        if self.habits.fleeting:
            self.flights.clear()
        elif not present:
            self.flights = {i: f for i, f in self.flights.items() if not f.released}
        for number, flight in self.flights.items():
            if flight.released:
                self.send(acknowledgement(PUBREL, number))
            else:
                self.book.checked["repeated by publishers"] += present
                flight.message.repeated = True
                self.send_publish(number, flight, dup=present)
        self.pump()

    # ---- in

    def received(self, p: Packet) -> None:
        flight = self.flights.get(p.id)
        qos = flight.message.qos if flight else 0
        if p.kind == PUBACK and flight and qos == 1:
            self.book.acknowledge(flight.message, p.code, time.monotonic())
            del self.flights[p.id]
        elif p.kind == PUBREC and flight and qos == 2 and not flight.released:
            self.book.acknowledge(flight.message, p.code, time.monotonic())
            if p.code >= 0x80:
                del self.flights[p.id]
            else:
                flight.released = True
                self.release(p.id)
        elif p.kind == PUBCOMP and flight and flight.released:
            self.book.checked["completed at QoS 2"] += 1
            del self.flights[p.id]
        else:
            self.violate("protocol", f"packet type {p.kind} for {p.id}, in flight: {flight}")
        self.pump()

    def release(self, number: int) -> None:
        if not self.draining and self.rng.random() < self.habits.drop_share:
            self.book.checked["publisher dropped before PUBREL"] += 1
            self.drop()
        else:
            self.send(acknowledgement(PUBREL, number))

    async def probe(self, topics: list[tuple[str, int]]) -> None:
        """Send one message on each topic; `settled` tells when all are acknowledged."""
        self.queue.extend(topics)
        self.pump(probe=True)

    def owed(self) -> None:
        """The drain is over: every message still in flight is a broken promise."""
        for number, flight in self.flights.items():
            answer = "PUBCOMP" if flight.released else "PUBACK" if flight.message.qos == 1 else "PUBREC"
            self.violate("unacknowledged", f"no {answer} for identifier {number}: {self.book.describe(flight.message)}")
