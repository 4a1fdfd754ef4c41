"""A small MQTT broker (3.1.1 and 5.0, QoS 0 to 2, sessions, retained, shared) that does one kind of wrong thing on purpose.

It exists to show that `roost bench` sees each of them, and it shares no line with the broker or the generator. One thread,
one event loop; `did` counts how often it did wrong, so that a report can be compared with it to the number.

    with FaultyBroker("lose", every=10) as broker:
        ...  # broker.port
    assert report["faults"]["lost"] == broker.did
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from wire import text, varint

FAULTS = {
    "": "none",
    "drip": "none, but each byte leaves alone",
    # a message on its way to a subscriber
    "lose": "it does not leave",
    "double": "it leaves twice",
    "again": "QoS 2: it leaves twice with one identifier, the second not marked as that",
    "swap": "it leaves after the next one",
    "misroute": "it leaves to another client",
    "flip": "one bit of its payload is another",
    "cut": "its payload has no last byte",
    "rename": "it leaves on another topic",
    "other-qos": "it leaves at another QoS",
    "other-retain": "its RETAIN is another",
    "close-subscriber": "the connection ends instead, once",
    "rubbish": "bytes that are no packet leave instead, once",
    "endless": "a packet whose length is no number leaves instead, once",
    # a message from a publisher
    "withhold": "it is delivered and not acknowledged",
    "disorder": "it is acknowledged after the next one",
    "stranger": "an identifier that is not out is acknowledged instead, once",
    "wrong-ack": "it is acknowledged by the packet of another QoS, once",
    "refuse-message": "it is refused and not delivered (5.0)",
    "close-publisher": "the connection ends instead, once",
    "goodbye": "the connection ends with a DISCONNECT instead, once (5.0)",
    # a subscription
    "refuse-filter": "it is refused",
    "no-suback": "it is not answered",
    "short-suback": "its answer has a code too few",
    "second-suback": "it is answered twice",
    # a connection
    "refuse-client": "it is refused",
    "close-client": "it ends at the CONNECT",
    "silent": "nothing is ever said",
    "rubbish-client": "the CONNECT is answered by no packet",
    "second-connack": "the CONNECT is answered twice",
    "forget-session": "its older session is gone",
}
CLEAN = 0x02


@dataclass
class Message:
    topic: str
    payload: bytes
    qos: int
    retain: bool = False
    times: int = 1
    """How often it leaves with one identifier."""


@dataclass
class Session:
    name: str
    persistent: bool
    filters: dict[str, int] = field(default_factory=dict)
    link: Link | None = None
    waiting: deque[Message] = field(default_factory=deque)
    out: dict[int, Message | None] = field(default_factory=dict)
    """Sent and not acknowledged; None: the PUBREC has come, the PUBCOMP has not."""
    came: set[int] = field(default_factory=set)
    """Identifiers of QoS 2 that came and are not released."""
    last_id: int = 0
    kept: Message | None = None
    """Waits for its next neighbour, to leave after it."""

    def send(self, m: Message) -> None:
        if self.link is None:
            if m.qos and self.persistent:
                self.waiting.append(m)
            return
        number = 0
        if m.qos:
            self.last_id = number = self.last_id % 65535 + 1
            self.out[number] = m
        for _ in range(m.times):
            self.link.write_message(m, number)

    def resume(self) -> None:
        """What was under way, then what came meanwhile."""
        assert self.link is not None
        for number, m in self.out.items():
            if m is None:
                self.link.write(0x62, struct.pack(">H", number))
            else:
                self.link.write_message(m, number, dup=True)
        waiting, self.waiting = self.waiting, deque()
        for m in waiting:
            self.send(m)


class Link(asyncio.Protocol):
    """One connection."""

    def __init__(self, broker: FaultyBroker) -> None:
        self.broker = broker
        self.buffer = b""
        self.version = 4
        self.session: Session | None = None
        self.will_ack: tuple[int, int] | None = None
        self.under_way: set[int] = set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.broker.peers.append(transport.get_extra_info("peername")[0])

    def connection_lost(self, exc: Exception | None) -> None:
        self.leave()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (packet := self.take()) is not None and not self.transport.is_closing():
            first, body = packet
            handler = {1: self.connect, 3: self.publish, 6: self.pubrel, 8: self.subscribe}.get(first >> 4)
            if self.broker.fault == "silent":
                continue
            if handler is not None:
                handler(first, body)
            elif first >> 4 in (4, 5, 7):
                self.acknowledged(first >> 4, struct.unpack(">H", body[:2])[0])
            elif first >> 4 == 12:
                self.broker.pings += 1
                self.write(0xD0, b"")
            else:
                self.leave()

    def leave(self) -> None:
        self.transport.close()
        if self.session is not None and self.session.link is self:
            self.broker.leave(self.session)

    def take(self) -> tuple[int, bytes] | None:
        length, data = 0, self.buffer
        for place in range(1, min(5, len(data))):
            length |= (data[place] & 127) << 7 * (place - 1)
            if data[place] < 128:
                end = place + 1 + length
                if len(data) < end:
                    return None
                self.buffer = data[end:]
                return data[0], data[place + 1 : end]
        return None

    def write(self, first: int, body: bytes, *, times: int = 1) -> None:
        packet = (bytes([first]) + varint(len(body)) + body) * times
        if self.transport.is_closing():
            return
        if self.broker.fault != "drip":
            self.transport.write(packet)
            return
        for place in range(len(packet)):
            self.transport.write(packet[place : place + 1])

    def write_message(self, m: Message, number: int, *, dup: bool = False) -> None:
        body = text(m.topic) + (struct.pack(">H", number) if m.qos else b"") + (b"\0" if self.version == 5 else b"")
        self.write(0x30 | m.qos << 1 | m.retain | dup << 3, body + m.payload)

    def connect(self, first: int, body: bytes) -> None:
        b = self.broker
        self.version, flags = body[6], body[7]
        expiry, at = 0, 10
        if self.version == 5:
            if body[10]:
                expiry = struct.unpack(">I", body[12:16])[0]
            at = 11 + body[10]
        name = body[at + 2 : at + 2 + struct.unpack(">H", body[at : at + 2])[0]].decode()
        if b.turn("refuse-client"):
            return self.write(0x20, bytes([0, 0x87 if self.version == 5 else 5] + [0] * (self.version == 5)))
        if b.turn("close-client"):
            return self.transport.close()
        if b.turn("rubbish-client"):
            return self.write(0x20, b"")
        clean = bool(flags & CLEAN)
        present, self.session = b.enter(name, clean, bool(expiry) if self.version == 5 else not clean)
        self.session.link = self
        values = b"\x21" + struct.pack(">H", b.receive_maximum) if b.receive_maximum else b""
        values += b"\x13" + struct.pack(">H", b.keep_alive_s) if b.keep_alive_s else b""
        answer = bytes([present, 0]) + (varint(len(values)) + values if self.version == 5 else b"")
        self.write(0x20, answer, times=2 if b.turn("second-connack") else 1)
        self.session.resume()

    def subscribe(self, first: int, body: bytes) -> None:
        assert self.session is not None
        b, at, codes, found = self.broker, 2, b"", []
        if self.version == 5:
            at += 1 + body[2]
        while at < len(body):
            length = struct.unpack(">H", body[at : at + 2])[0]
            name, qos = body[at + 2 : at + 2 + length].decode(), body[at + 2 + length] & 3
            at += 3 + length
            if b.turn("refuse-filter"):
                codes += b"\x80"
                continue
            codes += bytes([qos])
            b.subscribe(self.session, name, qos)
            found += [] if name.startswith("$share/") else b.found(name, qos)
        answer = body[:2] + (b"\0" if self.version == 5 else b"") + codes
        if b.turn("short-suback"):
            answer = answer[:-1]
        if not b.turn("no-suback"):
            self.write(0x90, answer, times=2 if b.turn("second-suback") else 1)
        for m in found:
            b.deliver(self.session, m)

    def publish(self, first: int, body: bytes) -> None:
        assert self.session is not None
        b, qos, length = self.broker, first >> 1 & 3, struct.unpack(">H", body[:2])[0]
        m = Message(body[2 : 2 + length].decode(), b"", qos, bool(first & 1))
        at, number = 2 + length, 0
        if qos:
            number = struct.unpack(">H", body[at : at + 2])[0]
            at += 2
            self.under_way.add(number)
            b.most_under_way = max(b.most_under_way, len(self.under_way))
        if self.version == 5:
            at += 1 + body[at]
        m.payload = body[at:]
        if b.once("close-publisher"):
            return self.transport.close()
        if b.once("goodbye"):
            self.write(0xE0, b"\x83\0")
            return self.transport.close()
        if qos and b.turn("refuse-message"):
            self.under_way.discard(number)
            return self.write(0x40 if qos == 1 else 0x50, struct.pack(">HB", number, 0x97))
        if qos < 2 or number not in self.session.came:
            b.route(m)
        if qos == 2:
            self.session.came.add(number)
        if qos:
            self.answer(0x40 if qos == 1 else 0x50, number)

    def answer(self, first: int, number: int) -> None:
        b = self.broker
        if b.turn("withhold"):
            return
        if b.once("stranger"):
            number = (number + 30_000) % 65535 + 1
        if b.once("wrong-ack"):
            first = 0x50 if first == 0x40 else 0x40
        if self.will_ack is None and b.turn("disorder", count=False):
            self.will_ack = (first, number)
            b.later(0.5, self.catch_up)
            return
        self.acknowledge(first, number)
        if self.will_ack is not None:
            b.did += 1
            self.catch_up()

    def catch_up(self) -> None:
        if self.will_ack is not None:
            late, self.will_ack = self.will_ack, None
            self.acknowledge(*late)

    def acknowledge(self, first: int, number: int) -> None:
        def now() -> None:
            if first == 0x40:
                self.under_way.discard(number)
            self.write(first, struct.pack(">H", number))

        if self.broker.ack_delay_s:
            self.broker.later(self.broker.ack_delay_s, now)
        else:
            now()

    def pubrel(self, first: int, body: bytes) -> None:
        assert self.session is not None
        number = struct.unpack(">H", body[:2])[0]
        self.session.came.discard(number)
        self.under_way.discard(number)
        self.write(0x70, body[:2])

    def acknowledged(self, kind: int, number: int) -> None:
        assert self.session is not None
        if kind == 5:
            self.session.out[number] = None
            self.write(0x62, struct.pack(">H", number))
        else:
            self.session.out.pop(number, None)


class FaultyBroker:
    """Listens on a port of its own from `with` to its end."""

    def __init__(
        self, fault: str = "", every: int = 10, receive_maximum: int = 0, ack_delay_s: float = 0, keep_alive_s: int = 0
    ) -> None:
        assert fault in FAULTS
        self.fault, self.every, self.receive_maximum, self.ack_delay_s = fault, every, receive_maximum, ack_delay_s
        self.keep_alive_s, self.pings = keep_alive_s, 0
        self.did = self.seen = self.routed = self.most_under_way = self.turns = 0
        self.sessions: dict[str, Session] = {}
        self.plain: dict[str, dict[str, int]] = {}
        self.wild: dict[str, dict[str, int]] = {}
        self.groups: dict[str, dict[str, int]] = {}
        self.retained: dict[str, Message] = {}
        self.peers: list[str] = []
        """Where connections came from, in order."""

    def __enter__(self) -> FaultyBroker:
        self.loop = asyncio.new_event_loop()
        server = self.loop.run_until_complete(self.loop.create_server(lambda: Link(self), "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self.server = server
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            self.server.close()
            for session in list(self.sessions.values()):
                if session.link is not None:
                    session.link.transport.abort()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    def turn(self, fault: str, *, count: bool = True) -> bool:
        """Is it time to do this wrong? Each `every`-th chance of the one fault."""
        if self.fault != fault:
            return False
        self.seen += 1
        now = self.seen % self.every == 0
        self.did += now and count
        return now

    def once(self, fault: str) -> bool:
        return self.fault == fault and not self.did and self.turn(fault)

    def later(self, seconds: float, call: Any) -> None:
        self.loop.call_later(seconds, call)

    def later_threadsafe(self, seconds: float, call: Any) -> None:
        self.loop.call_soon_threadsafe(self.later, seconds, call)

    def drop_all(self) -> None:
        """Ends every connection."""
        for session in list(self.sessions.values()):
            if session.link is not None:
                session.link.transport.close()

    def enter(self, name: str, clean: bool, persistent: bool) -> tuple[bool, Session]:
        old = self.sessions.get(name)
        if old is not None and old.link is not None:
            old.link.transport.close()
        if old is not None and (clean or self.turn("forget-session")):
            self.forget(old)
            old = None
        session = old or Session(name, persistent)
        self.sessions[name] = session
        return old is not None, session

    def leave(self, session: Session) -> None:
        session.link = None
        if not session.persistent:
            self.forget(session)

    def forget(self, session: Session) -> None:
        self.sessions.pop(session.name, None)
        for name in session.filters:
            for index in (self.plain, self.wild, self.groups):
                index.get(name, {}).pop(session.name, None)

    def subscribe(self, session: Session, name: str, qos: int) -> None:
        session.filters[name] = qos
        index = self.groups if name.startswith("$share/") else self.wild if set("+#") & set(name) else self.plain
        index.setdefault(name, {})[session.name] = qos

    def found(self, name: str, qos: int) -> list[Message]:
        fits = [m for m in self.retained.values() if matches(name, m.topic)]
        return [Message(m.topic, m.payload, min(qos, m.qos), True) for m in fits]

    def route(self, m: Message) -> None:
        self.routed += 1
        if m.retain and m.payload:
            self.retained[m.topic] = m
        elif m.retain:
            self.retained.pop(m.topic, None)
        to = dict(self.plain.get(m.topic, {}))
        for name, members in self.wild.items():
            if matches(name, m.topic):
                to |= members
        for name, members in self.groups.items():
            if members and matches(name.split("/", 2)[2], m.topic):
                self.turns += 1
                chosen = list(members)[self.turns % len(members)]
                to[chosen] = members[chosen]
        for client, qos in to.items():
            self.deliver(self.sessions[client], Message(m.topic, m.payload, min(qos, m.qos)))

    def deliver(self, session: Session, m: Message) -> None:
        """On its way to one subscriber, rightly or wrongly."""
        if session.kept is not None and session.kept.topic == m.topic:
            late, session.kept = session.kept, None
            self.did += 1
            session.send(m)
            return session.send(late)
        if self.turn("swap", count=False) and session.kept is None:
            session.kept = m
            return self.later(0.5, lambda: self.catch_up(session))
        if self.turn("lose"):
            return None
        if self.turn("misroute"):
            others = [s for s in self.sessions.values() if s is not session and s.filters and s.link]
            session = others[0]
        if session.link is not None and self.end(session.link):
            return None
        m.times = 2 if self.turn("again") else 1
        session.send(self.changed(m))
        if self.turn("double"):
            session.send(m)
        return None

    def catch_up(self, session: Session) -> None:
        if session.kept is not None:
            late, session.kept = session.kept, None
            session.send(late)

    def end(self, link: Link) -> bool:
        """Ends the connection of a subscriber in one of three ways?"""
        if self.once("close-subscriber"):
            link.transport.close()
        elif self.once("rubbish"):
            link.write(0xF0, b"what is this?")
        elif self.once("endless"):
            link.transport.write(b"\x30\xff\xff\xff\xff\xff")
        else:
            return False
        return True

    def changed(self, m: Message) -> Message:
        if self.turn("flip"):
            place = self.did * 7 % len(m.payload)
            payload = bytearray(m.payload)
            payload[place] ^= 1 << self.did % 8
            return Message(m.topic, bytes(payload), m.qos, m.retain)
        if self.turn("cut"):
            return Message(m.topic, m.payload[:-1], m.qos, m.retain)
        if self.turn("rename"):
            return Message(f"{m.topic}x", m.payload, m.qos, m.retain)
        if self.turn("other-qos"):
            return Message(m.topic, m.payload, 0 if m.qos else 1, m.retain)
        if self.turn("other-retain"):
            return Message(m.topic, m.payload, m.qos, not m.retain)
        return m


def matches(name: str, topic: str) -> bool:
    wanted, levels = name.split("/"), topic.split("/")
    for place, level in enumerate(wanted):
        if level == "#":
            return True
        if place >= len(levels) or level not in ("+", levels[place]):
            return False
    return len(wanted) == len(levels)
