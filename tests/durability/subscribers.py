"""Subscribers that check, with sessions that outlive connections.

Contract: a receiver of section 4.3.3: the identifiers of QoS 2 messages are kept from the first PUBLISH to PUBREL, over
reconnects, as long as the session is present; a PUBLISH under a kept identifier is not handed over again. Applications
are handed a message at once. Sockets are dropped without a word before PUBACK or PUBREC, between PUBREC and PUBCOMP,
and after PUBREL. A SUBSCRIBE or UNSUBSCRIBE without answer is repeated; an answered one never is.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from dataclasses import dataclass

from wire import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, SUBACK, UNSUBACK, Packet, packet, properties, text

from durability.book import Book, Message, Reader, Sub
from durability.link import RETRY_S, SLICE_S, Client, acknowledgement
from durability.site import Site


@dataclass
class Habits:
    """How a subscriber behaves: times in seconds, shares of 1."""

    online_s: tuple[float, float] = (1e9, 1e9)
    offline_s: tuple[float, float] = (0.0, 0.1)
    drop_share: float = 0.0
    lag_s: float = 0.0
    receive_maximum: int = 0


class Subscriber(Client):
    """Subscribes once, then receives for ever."""

    def __init__(
        self, site: Site, book: Book, rng: random.Random, name: str, version: int, filters: list[tuple[str, int]],
        habits: Habits,
    ) -> None:  # fmt: skip
        super().__init__(site, book, rng, name, version, rng.choice((3600, 86400, 0xFFFFFFFF)))
        self.habits = habits
        if habits.receive_maximum:
            self.more["receive_maximum"] = habits.receive_maximum
        self.reader = Reader(name, version == 5)
        book.readers.append(self.reader)
        self.wanted = filters
        self.next_id = 1
        self.next_number = 1
        self.asking: dict[int, Sub] = {}
        self.held: dict[int, Message | None] = {}
        self.acks: list[bytes] = []

    def settled(self) -> bool:
        idle = self.connected and not self.asking and not self.acks and not self.held
        return idle and all(s.acked is not None for s in self.current())

    def current(self) -> list[Sub]:
        return [s for s in self.reader.subs if s.left is None]

    async def run(self) -> None:
        for pattern, qos in self.wanted:
            self.want(pattern, qos)
        while True:
            await self.reconnect()
            await self.stay()
            if self.link is not None:
                self.book.checked["subscriber went offline"] += 1
                self.rng.choice((self.drop, self.leave))()
            await self.away(self.rng.uniform(*self.habits.offline_s))
            await asyncio.sleep(RETRY_S)

    async def stay(self) -> None:
        """Be online for a stretch; until the end once the drain has begun."""
        end = time.monotonic() + self.rng.uniform(*self.habits.online_s)
        while self.link is not None and (self.draining or time.monotonic() < end):
            self.flush()
            await asyncio.sleep(self.rng.uniform(0, 2 * self.habits.lag_s) or SLICE_S)
            self.ask()

    def resume(self, present: bool) -> None:
        self.asking.clear()
        self.acks.clear()
        if not present:
            self.held.clear()
            self.begin_anew()
        self.ask()

    def begin_anew(self) -> None:
        """The session is gone. What was granted in it stays demanded, and is asked for once more."""
        gone = [s for s in self.current() if s.acked is not None]
        for sub in gone:
            sub.wiped = True
        for pattern, qos in {s.filter: s.qos for s in gone if s.leaving is None}.items():
            self.want(pattern, qos)

    # ---- subscriptions

    def want(self, pattern: str, qos: int) -> Sub:
        """Note a subscription; `ask` sends it."""
        sub = Sub(pattern, qos, self.next_number if self.version == 5 else 0, 0.0)
        self.next_number += 1
        self.reader.subs.append(sub)
        return sub

    def ask(self) -> None:
        """Send each SUBSCRIBE and UNSUBSCRIBE that has no answer and was not sent on this connection."""
        if not self.connected:
            return
        under_way = {id(s) for s in self.asking.values()}
        for sub in self.reader.subs:
            open_end = sub.leaving is not None and sub.left is None
            if id(sub) in under_way or sub.wiped or not (sub.acked is None or open_end):
                continue
            number, self.next_id = self.next_id, self.next_id % 65535 + 1
            self.asking[number] = sub
            head = struct.pack(">H", number)
            if open_end:
                sub.tries += 1
                self.send(packet(0xA2, head + (b"\0" if self.version == 5 else b"") + text(sub.filter)))
            else:
                sub.asked = sub.asked or time.monotonic()
                head += properties(subscription_id=sub.number) if self.version == 5 else b""
                self.send(packet(0x82, head + text(sub.filter) + bytes([sub.qos])))

    def answered(self, p: Packet) -> None:
        """SUBACK or UNSUBACK."""
        sub = self.asking.pop(p.id, None)
        if sub is None:
            self.violate("protocol", f"packet type {p.kind} for {p.id}, which nobody asked")
        elif p.kind == SUBACK:
            self.book.checked["SUBACK"] += 1
            sub.acked = time.monotonic()
            if p.codes != [sub.qos]:
                self.violate("subscription", f"SUBACK {p.codes} for {sub.filter} at QoS {sub.qos}")
        else:
            self.book.checked["UNSUBACK"] += 1
            sub.left = time.monotonic()

    # ---- messages

    def received(self, p: Packet) -> None:
        if p.kind == PUBLISH:
            self.message(p)
        elif p.kind == PUBREL:
            self.held.pop(p.id, None)
            self.reply(PUBCOMP, p.id, "PUBCOMP")
        elif p.kind in (SUBACK, UNSUBACK):
            self.answered(p)
        else:
            self.violate("protocol", f"unexpected packet type {p.kind}")

    def message(self, p: Packet) -> None:
        now = time.monotonic()
        m = self.book.identify(self.name, p.topic, p.payload, now)
        if p.qos == 2 and p.id in self.held:
            kept = self.held[p.id]
            self.book.checked["repeated at QoS 2, held back"] += 1
            if m is not kept and kept is not None:
                self.violate("identifier", f"{p.id} is {kept.topic} #{kept.number} but came with {m}")
        else:
            if p.qos == 2:
                self.held[p.id] = m
            if m is not None:
                self.book.hand_over(self.reader, m, p.qos, p.properties.get("subscription_id", []), now)
        if p.qos:
            self.reply(PUBACK if p.qos == 1 else PUBREC, p.id, "PUBACK" if p.qos == 1 else "PUBREC")

    def reply(self, kind: int, number: int, word: str) -> None:
        """Acknowledge, perhaps later; now and then vanish before or after it."""
        if not self.draining and self.rng.random() < self.habits.drop_share:
            after = self.rng.random() < 0.5
            self.book.checked[f"subscriber dropped {'after' if after else 'before'} {word}"] += 1
            if after:
                self.acks.append(acknowledgement(kind, number))
                self.flush()
            self.drop()
            return
        self.acks.append(acknowledgement(kind, number))
        if not self.habits.lag_s:
            self.flush()

    def flush(self) -> None:
        if self.acks:
            self.send(b"".join(self.acks))
            self.acks.clear()

    def owed(self) -> None:
        """The drain is over: what was asked must have been answered."""
        for sub in self.asking.values():
            self.violate("unacknowledged", f"no answer for {sub}")
        for number, m in self.held.items():
            what = self.book.describe(m) if m else "an unknown message"
            self.violate("unacknowledged", f"no PUBREL for identifier {number}: {what}")


class Churner(Subscriber):
    """Subscribes, unsubscribes and now and then begins a new session; each answer must last."""

    def __init__(self, site: Site, book: Book, rng: random.Random, name: str, version: int,
                 filters: list[tuple[str, int]], pause_s: float) -> None:  # fmt: skip
        super().__init__(site, book, rng, name, version, filters, Habits(drop_share=0.002))
        self.pause_s = pause_s

    async def run(self) -> None:
        while True:
            await self.reconnect()
            while self.link is not None:
                await self.idle(self.pause_s * self.rng.uniform(0.5, 1.5))
                if self.link is None or self.asking or self.draining:
                    continue
                if self.rng.random() < 0.05:
                    await self.renew()
                else:
                    self.change()
            await asyncio.sleep(self.rng.uniform(0, 0.1))

    def change(self) -> None:
        pattern, qos = self.rng.choice(self.wanted)
        mine = [s for s in self.current() if s.filter == pattern]
        for sub in mine:
            sub.leaving = sub.leaving or time.monotonic()
        if all(s.wiped for s in mine):
            self.want(pattern, qos)
        self.ask()

    async def renew(self) -> None:
        """Clean Start 1: the old session ends with the CONNACK, and nothing of it comes back."""
        self.book.checked["session ended by clean start"] += 1
        self.drop()
        for sub in self.current():
            sub.leaving = sub.leaving or time.monotonic()
        while not await self.connect(clean=True):
            await asyncio.sleep(RETRY_S)
        if self.version == 4:
            self.leave()

    def resume(self, present: bool) -> None:
        if self.clean:
            now = time.monotonic()
            for sub in self.reader.subs:
                sub.left, sub.wiped = sub.left or now, True
        super().resume(present)

    def answered(self, p: Packet) -> None:
        sub = self.asking.get(p.id)
        if p.kind == UNSUBACK and self.version == 5 and sub is not None and sub.tries == 1 and p.codes == [0x11]:
            self.violate("subscription", f"UNSUBACK: there is no {sub.filter}, which was granted")
        super().answered(p)


class Passer(Client):
    """Comes with a new client id, goes, comes back: the session is there, or has expired, or either."""

    MARGIN_S = 1.5

    async def run(self) -> None:
        turn, name = 0, self.name
        while True:
            turn += 1
            self.name, self.known = f"{name}-{turn}", False
            self.expiry_s = self.rng.choice((3, 3, 3600)) if self.version == 5 else self.expiry_s
            await self.reconnect()
            await self.idle(self.rng.uniform(0, 0.2))
            self.rng.choice((self.drop, self.leave))()
            await asyncio.sleep(self.rng.choice((0.05, 0.5, 6.5 if self.expiry_s == 3 else 2.0)))
            await self.reconnect()
            self.leave()
            await asyncio.sleep(RETRY_S)

    def expected(self) -> bool | None:
        now = time.monotonic()
        if not self.known or self.expiry_s > 60 or now - self.lost_at < self.expiry_s - self.MARGIN_S:
            return self.known
        since = max(self.lost_at, self.site.starts[-1])
        return False if now - since > self.expiry_s + self.site.late_s else None
