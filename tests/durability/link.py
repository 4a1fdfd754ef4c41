"""A client with a session: its connection, and what it may expect of Session Present.

Contract: asyncio, one process, one clock (`time.monotonic`). A client keeps its session state over connections and
connects with Clean Start 0 unless told otherwise. Session Present must be 1 if a CONNACK for a persistent session was
received and the session cannot have ended since, 0 if there cannot be one; when a CONNECT was never answered, both.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections.abc import Callable
from typing import Any

from wire import CONNACK, DISCONNECT, PINGRESP, Packet, packet, parse, properties, text

from durability.book import Book
from durability.site import Site

ANSWER_S = 15.0
RETRY_S = 0.03
SLICE_S = 0.02
FOREVER_S = 0xFFFFFFFF


class Link(asyncio.Protocol):
    """One connection: bytes in, packets out. After `drop` nothing comes any more."""

    def __init__(self, version: int, on_packet: Callable[[Packet], None], on_lost: Callable[[Link], None]) -> None:
        self.version, self.on_packet, self.on_lost = version, on_packet, on_lost
        self.buffer = b""
        self.open = True
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        at = 0
        while self.open and (end := self._frame_end(at)):
            head, total = end
            p = parse(self.buffer[at], self.buffer[head:total], self.version)
            at = total
            self.on_packet(p)
        self.buffer = self.buffer[at:]

    def _frame_end(self, at: int) -> tuple[int, int] | None:
        """Where the body of the packet at this place begins and ends; None when it is not complete."""
        length = 0
        for i in range(4):
            if len(self.buffer) <= at + 1 + i:
                return None
            low = self.buffer[at + 1 + i]
            length |= (low & 127) << (7 * i)
            if not low & 128:
                head = at + 2 + i
                return (head, head + length) if len(self.buffer) >= head + length else None
        raise ValueError("the broker sent a length of more than four bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self.on_lost(self)

    def send(self, raw: bytes) -> None:
        if self.open and self.transport is not None and not self.transport.is_closing():
            self.transport.write(raw)

    def drop(self) -> None:
        """Vanish without a word."""
        self.open = False
        if self.transport is not None:
            self.transport.abort()


class Client:
    """A session and at most one connection. Subclasses add `run`, `resume` and `received`."""

    def __init__(
        self, site: Site, book: Book, rng: random.Random, name: str, version: int, expiry_s: int = 3600
    ) -> None:
        self.site, self.book, self.rng, self.name, self.version = site, book, rng, name, version
        self.expiry_s = expiry_s if version == 5 else FOREVER_S
        self.link: Link | None = None
        self.connected = False
        self.known: bool | None = False
        self.lost_at = 0.0
        self.unanswered = -1e9
        """When a CONNECT that keeps the session had no answer last."""
        self.clean = False
        self.wanted_present: bool | None = None
        self.answer: asyncio.Future[bool] | None = None
        self.more: dict[str, Any] = {}
        self.draining = False

    # ---- to be filled in

    async def run(self) -> None:
        """Live until cancelled; settle down once `draining` is set."""
        raise NotImplementedError

    def resume(self, present: bool) -> None:
        """CONNACK came: go on, or begin anew."""

    def received(self, p: Packet) -> None:
        """Any packet but CONNACK, PINGRESP and DISCONNECT."""

    def settled(self) -> bool:
        """Nothing is owed to this client."""
        return True

    def owed(self) -> None:
        """The drain is over: report what is still owed."""

    # ---- the connection

    @property
    def persistent(self) -> bool:
        return self.expiry_s > 0 if self.version == 5 else not self.clean

    def expected(self) -> bool | None:
        """Session Present of a CONNECT with Clean Start 0 sent now."""
        return self.known

    def connect_bytes(self, clean: bool) -> bytes:
        body = text("MQTT") + bytes([self.version, 2 if clean else 0]) + struct.pack(">H", 0)
        if self.version == 5:
            kept = {"session_expiry": self.expiry_s} if self.expiry_s else {}
            body += properties(**kept, **self.more)
        return packet(0x10, body + text(self.name))

    async def connect(self, clean: bool = False) -> bool:
        """One try; True when connected."""
        address = self.site.address
        if address is None:
            return False
        loop = asyncio.get_running_loop()
        link = Link(self.version, self._packet, self._lost)
        try:
            async with asyncio.timeout(ANSWER_S):
                await loop.create_connection(lambda: link, *address)
        except (OSError, TimeoutError):
            return False
        if not link.open:
            return False
        self.link, self.clean = link, clean
        self.wanted_present = False if clean else self.expected()
        if clean or self.known is False:
            self.known = None
        self.answer = loop.create_future()
        link.send(self.connect_bytes(clean))
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self.answer
        except TimeoutError:
            self.book.checked["waited too long for CONNACK"] += 1
            if link.open and not self.site.patient:
                self.violate("protocol", f"no CONNACK within {ANSWER_S} s")
            self.drop()
            return False

    def _packet(self, p: Packet) -> None:
        self.site.saw(p.kind)
        if p.kind == CONNACK:
            self._connack(p)
        elif p.kind == DISCONNECT:
            self.told(p.code)
        elif p.kind != PINGRESP:
            self.received(p)

    def told(self, code: int) -> None:
        """The broker says good-bye; a crash says nothing, so this is out of place unless it shuts down."""
        self.drop()
        if code not in self.site.closes:
            self.violate("protocol", f"DISCONNECT 0x{code:02x}")

    def _connack(self, p: Packet) -> None:
        assert self.answer is not None
        if p.code:
            if p.code not in self.site.refuses:
                self.violate("protocol", f"CONNACK 0x{p.code:02x}")
            self.book.checked["refused for now"] += p.code in self.site.refuses
            self.drop()
            return
        waited_s = time.monotonic() - self.lost_at
        if self.site.patient and self.expiry_s < 60 and waited_s > self.expiry_s - 1.5:
            self.wanted_present = None  # it may have ended while this CONNECT waited
        self.book.checked["session present"] += self.wanted_present is not None
        late = p.present and self.site.patient and time.monotonic() < self.unanswered + ANSWER_S + 5
        if late and self.wanted_present is False:
            self.book.checked["an older CONNECT came later, through another door"] += 1
        elif self.wanted_present is not None and p.present != self.wanted_present:
            self.violate("session", f"session present {int(p.present)}, must be {int(self.wanted_present)}")
        self.known = self.persistent
        self.connected = True
        self.resume(p.present)
        if not self.answer.done():
            self.answer.set_result(True)

    def _lost(self, link: Link) -> None:
        if link is not self.link:
            return
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(False)
            self.unanswered = self.unanswered if self.clean else time.monotonic()
        if self.connected:
            self.lost_at = time.monotonic()
        self.link, self.connected = None, False

    def send(self, raw: bytes) -> None:
        if self.link is not None:
            self.link.send(raw)

    def drop(self) -> None:
        """Vanish without a word."""
        if self.link is not None:
            link = self.link
            link.drop()
            self._lost(link)

    def leave(self) -> None:
        """DISCONNECT, then close."""
        link = self.link
        if link is not None and link.transport is not None:
            link.send(b"\xe0\0")
            link.open = False
            link.transport.close()
            self._lost(link)

    async def idle(self, seconds: float) -> None:
        """Let time pass; ends early when the connection is lost."""
        end = time.monotonic() + seconds
        while self.link is not None and time.monotonic() < end:
            await asyncio.sleep(SLICE_S)

    async def away(self, seconds: float) -> None:
        """Stay away; ends early when the drain begins."""
        end = time.monotonic() + seconds
        while not self.draining and time.monotonic() < end:
            await asyncio.sleep(SLICE_S)

    async def reconnect(self, clean: bool = False) -> None:
        """Try until connected."""
        while not await self.connect(clean):
            await asyncio.sleep(RETRY_S)

    def violate(self, kind: str, line: str) -> None:
        self.book.violate(kind, time.monotonic(), f"{self.name}: {line}")


def acknowledgement(kind: int, number: int) -> bytes:
    """PUBACK, PUBREC, PUBREL or PUBCOMP with success, the short form of both versions."""
    return struct.pack(">BBH", kind << 4 | (2 if kind == 6 else 0), 2, number)
