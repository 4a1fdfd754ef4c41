"""A small MQTT client for tests: bytes in, packets out, for 3.1, 3.1.1 and 5.0. It checks nothing on its own."""

from __future__ import annotations

import itertools
import os
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field
from typing import Any

(CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ,
 PINGRESP, DISCONNECT, AUTH) = range(1, 16)  # fmt: skip

# property: (identifier, type)
PROPERTIES = {
    "format": (1, "B"), "expiry": (2, "I"), "content_type": (3, "s"), "response_topic": (8, "s"),
    "correlation": (9, "b"), "subscription_id": (11, "v"), "session_expiry": (17, "I"), "assigned_id": (18, "s"),
    "server_keep_alive": (19, "H"), "auth_method": (21, "s"), "auth_data": (22, "b"), "request_problem": (23, "B"),
    "will_delay": (24, "I"), "request_response": (25, "B"), "response_information": (26, "s"),
    "server_reference": (28, "s"), "reason": (31, "s"), "receive_maximum": (33, "H"), "alias_maximum": (34, "H"),
    "alias": (35, "H"), "maximum_qos": (36, "B"), "retain_available": (37, "B"), "user": (38, "p"),
    "maximum_packet": (39, "I"), "wildcard": (40, "B"), "subscription_ids": (41, "B"), "shared": (42, "B"),
}  # fmt: skip
NAMES = {number: (name, kind) for name, (number, kind) in PROPERTIES.items()}
WAIT_S = 10.0
QUIET_S = 0.4
_serial = itertools.count(1)


def unique(prefix: str = "t") -> str:
    """A client id or topic that no other test uses."""
    return f"{prefix}-{os.getpid()}-{next(_serial)}"


def varint(n: int) -> bytes:
    out = b""
    while True:
        n, low = n >> 7, n & 127
        out += bytes([low | (128 if n else 0)])
        if not n:
            return out


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(raw)) + raw


def properties(**values: Any) -> bytes:
    """A property section; a list repeats a property, `user` takes a list of pairs."""
    out = b""
    for name, value in values.items():
        number, kind = PROPERTIES[name]
        for item in value if isinstance(value, list) else [value]:
            out += bytes([number])
            if kind in "BHI":
                out += struct.pack(f">{kind}", item)
            elif kind == "v":
                out += varint(item)
            elif kind == "p":
                out += text(item[0]) + text(item[1])
            else:
                out += text(item)
    return varint(len(out)) + out


@dataclass
class Packet:
    """A packet from the broker."""

    kind: int
    flags: int
    raw: bytes
    id: int = 0
    code: int = 0
    codes: list[int] = field(default_factory=list)
    topic: str = ""
    payload: bytes = b""
    present: bool = False
    properties: dict[str, Any] = field(default_factory=dict)

    @property
    def qos(self) -> int:
        return (self.flags >> 1) & 3

    @property
    def retain(self) -> bool:
        return bool(self.flags & 1)

    @property
    def dup(self) -> bool:
        return bool(self.flags & 8)


class Cursor:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def take(self, n: int) -> bytes:
        assert len(self.raw) >= n, f"the broker's packet is too short: {self.raw.hex()}"
        head, self.raw = self.raw[:n], self.raw[n:]
        return head

    def number(self, n: int) -> int:
        return int.from_bytes(self.take(n), "big")

    def varint(self) -> int:
        value = shift = 0
        while True:
            low = self.number(1)
            value |= (low & 127) << shift
            shift += 7
            if not low & 128:
                return value

    def properties(self) -> dict[str, Any]:
        inner = Cursor(self.take(self.varint()))
        found: dict[str, Any] = {}
        while inner.raw:
            name, kind = NAMES[inner.varint()]
            if kind in "BHI":
                value: Any = inner.number({"B": 1, "H": 2, "I": 4}[kind])
            elif kind == "v":
                value = inner.varint()
            elif kind == "p":
                value = (inner.take(inner.number(2)).decode(), inner.take(inner.number(2)).decode())
            else:
                value = inner.take(inner.number(2))
                value = value if kind == "b" else value.decode()
            if name in ("user", "subscription_id"):
                found.setdefault(name, []).append(value)
            else:
                assert name not in found, f"{name} given twice by the broker"
                found[name] = value
        return found


def parse(first: int, body: bytes, version: int) -> Packet:
    p, c = Packet(first >> 4, first & 15, bytes([first]) + body), Cursor(body)
    v5 = version == 5
    if p.kind == CONNACK:
        p.present, p.code = bool(c.number(1)), c.number(1)
        p.properties = c.properties() if v5 and c.raw else {}
    elif p.kind == PUBLISH:
        p.topic = c.take(c.number(2)).decode()
        p.id = c.number(2) if p.qos else 0
        p.properties = c.properties() if v5 else {}
        p.payload = c.raw
    elif p.kind in (PUBACK, PUBREC, PUBREL, PUBCOMP):
        p.id = c.number(2)
        p.code = c.number(1) if c.raw else 0
        p.properties = c.properties() if c.raw else {}
    elif p.kind in (SUBACK, UNSUBACK):
        p.id = c.number(2)
        p.properties = c.properties() if v5 else {}
        p.codes = list(c.raw)
    elif p.kind in (DISCONNECT, AUTH):
        p.code = c.number(1) if c.raw else 0
        p.properties = c.properties() if c.raw else {}
    return p


class Closed(AssertionError):
    """The broker has closed the connection."""


class Client:
    """One connection. `connect=False` leaves the CONNECT to the test."""

    def __init__(
        self, address: tuple[str, int] | str, version: int = 5, client_id: str | None = None, *, clean: bool = True,
        keep_alive: int = 60, will: dict[str, Any] | None = None, username: str | None = None,
        password: str | bytes | None = None, connect: bool = True, expect: int | None = 0,
        tls: ssl.SSLContext | None = None, before: bytes = b"", source: str | None = None,
        made: list[Client] | None = None, **props: Any,
    ) -> None:  # fmt: skip
        self.version, self.buffer, self.ids = version, b"", itertools.count(1)
        self.stash: list[Packet] = []
        self.id = unique("c") if client_id is None else client_id
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(WAIT_S)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, WAIT_S, source_address=(source, 0) if source else None)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if made is not None:
            made.append(self)
        if before:
            self.socket.sendall(before)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost", do_handshake_on_connect=False)
            self.socket.do_handshake()
        self.connack: Packet | None = None
        if connect:
            self.send(self.connect_bytes(clean, keep_alive, will, username, password, **props))
            if expect is not None:
                self.connack = self.want(CONNACK)
                assert self.connack.code == expect, f"CONNACK 0x{self.connack.code:02x}, expected 0x{expect:02x}"

    def connect_bytes(
        self, clean: bool = True, keep_alive: int = 60, will: dict[str, Any] | None = None,
        username: str | None = None, password: str | bytes | None = None, flags: int | None = None, **props: Any,
    ) -> bytes:  # fmt: skip
        bits, tail = 2 if clean else 0, b""
        v5 = self.version == 5
        if will:
            rest = {k: v for k, v in will.items() if k not in ("topic", "payload", "qos", "retain")}
            bits |= 4 | will.get("qos", 0) << 3 | will.get("retain", 0) << 5
            tail = (properties(**rest) if v5 else b"") + text(will["topic"]) + text(will.get("payload", b"gone"))
        if username is not None:
            bits, tail = bits | 0x80, tail + text(username)
        if password is not None:
            bits, tail = bits | 0x40, tail + text(password)
        name = "MQIsdp" if self.version == 3 else "MQTT"
        body = text(name) + bytes([self.version, bits if flags is None else flags]) + struct.pack(">H", keep_alive)
        return packet(0x10, body + (properties(**props) if v5 else b"") + text(self.id) + tail)

    # ---- bytes

    def send(self, raw: bytes) -> None:
        self.socket.sendall(raw)

    def read(self, wait: float) -> Packet | None:
        """The next packet; None when nothing comes; Closed when the broker closed."""
        if self.stash:
            return self.stash.pop(0)
        return self._read(wait)

    def pick(self, kind: int, number: int, wait: float = WAIT_S) -> Packet:
        """The answer with this identifier; what comes before it is kept for later."""
        kept: list[Packet] = []
        try:
            while True:
                p = self.read(wait)
                assert p is not None, f"packet type {kind} for {number} did not come"
                if p.kind == kind and p.id == number:
                    return p
                assert p.kind == PUBLISH or p.kind == PUBREL, f"packet type {kind} expected, got {p}"
                kept.append(p)
        finally:
            self.stash = kept + self.stash

    def _read(self, wait: float) -> Packet | None:
        end = time.monotonic() + wait
        while True:
            if len(self.buffer) > 1:
                length = shift = 0
                for i, low in enumerate(self.buffer[1:5], 2):
                    length |= (low & 127) << shift
                    shift += 7
                    if not low & 128:
                        if len(self.buffer) >= i + length:
                            body = self.buffer[i : i + length]
                            first, self.buffer = self.buffer[0], self.buffer[i + length :]
                            return parse(first, body, self.version)
                        break
            left = end - time.monotonic()
            if left <= 0:
                return None
            self.socket.settimeout(left)
            try:
                more = self.socket.recv(65536)
            except TimeoutError:
                return None
            except (ConnectionError, ssl.SSLError) as error:
                raise Closed(str(error)) from None
            if not more:
                raise Closed("closed")
            self.buffer += more

    def want(self, kind: int, wait: float = WAIT_S) -> Packet:
        p = self.read(wait)
        assert p is not None, f"packet type {kind} did not come"
        assert p.kind == kind, f"packet type {kind} expected, got {p}"
        return p

    def quiet(self, wait: float = QUIET_S) -> None:
        """Nothing comes."""
        p = self.read(wait)
        assert p is None, f"unexpected {p}"

    def refused(self, *codes: int) -> None:
        """The broker closes; version 5 says why with one of these codes."""
        try:
            p = self.read(WAIT_S)
        except Closed:
            assert self.version != 5 or not codes, "closed without a reason"
            return
        assert p is not None, "neither an answer nor a close"
        assert p.kind in (DISCONNECT, CONNACK), f"unexpected {p}"
        assert not codes or p.code in codes, f"code 0x{p.code:02x}, expected one of {[hex(c) for c in codes]}"
        self.closed()

    def closed(self, wait: float = WAIT_S) -> None:
        try:
            p = self.read(wait)
        except Closed:
            return
        raise AssertionError(f"the connection stays open: {p}")

    # ---- exchanges

    def subscribe(self, *filters: str | tuple[str, int], **props: Any) -> Packet:
        """Subscribe; a filter alone means QoS 2. Messages that come before the SUBACK are kept."""
        number = next(self.ids)
        body = struct.pack(">H", number) + (properties(**props) if self.version == 5 else b"")
        for item in filters:
            name, options = (item, 2) if isinstance(item, str) else item
            body += text(name) + bytes([options])
        self.send(packet(0x82, body))
        return self.pick(SUBACK, number)

    def unsubscribe(self, *filters: str) -> Packet:
        number = next(self.ids)
        body = struct.pack(">H", number) + (b"\0" if self.version == 5 else b"")
        self.send(packet(0xA2, body + b"".join(text(f) for f in filters)))
        ack = self.want(UNSUBACK)
        assert ack.id == number
        return ack

    def publish_bytes(
        self, topic: str | bytes, payload: bytes | str = b"", qos: int = 0, retain: bool = False, dup: bool = False,
        number: int = 0, **props: Any,
    ) -> bytes:  # fmt: skip
        body = text(topic) + (struct.pack(">H", number) if qos else b"")
        body += properties(**props) if self.version == 5 else b""
        body += payload.encode() if isinstance(payload, str) else payload
        return packet(0x30 | dup << 3 | qos << 1 | retain, body)

    def publish(self, topic: str | bytes, payload: bytes | str = b"", qos: int = 0, **more: Any) -> int:
        """Send a PUBLISH and do not wait."""
        number = more.pop("number", 0) or (next(self.ids) if qos else 0)
        self.send(self.publish_bytes(topic, payload, qos, number=number, **more))
        return number

    def deliver(self, topic: str, payload: bytes | str = b"", qos: int = 0, **more: Any) -> Packet | None:
        """Publish and finish the exchange; returns PUBACK or PUBREC."""
        number = self.publish(topic, payload, qos, **more)
        if qos == 0:
            return None
        first = self.pick(PUBACK if qos == 1 else PUBREC, number)
        if qos == 2 and first.code < 0x80:
            self.ack(PUBREL, number)
            self.pick(PUBCOMP, number)
        return first

    def ack(self, kind: int, number: int, code: int | None = None) -> None:
        body = struct.pack(">H", number) + (b"" if code is None else bytes([code]))
        self.send(packet(kind << 4 | (2 if kind == PUBREL else 0), body))

    def message(self, topic: str | None = None, payload: bytes | str | None = None, finish: bool = True) -> Packet:
        """The next message, acknowledged in full unless told otherwise."""
        p = self.want(PUBLISH)
        if topic is not None:
            assert p.topic == topic
        if payload is not None:
            assert p.payload == (payload.encode() if isinstance(payload, str) else payload)
        if finish and p.qos == 1:
            self.ack(PUBACK, p.id)
        elif finish and p.qos == 2:
            self.ack(PUBREC, p.id)
            self.pick(PUBREL, p.id)
            self.ack(PUBCOMP, p.id)
        return p

    def ping(self) -> None:
        self.send(b"\xc0\0")
        self.want(PINGRESP)

    def disconnect(self, code: int | None = None, **props: Any) -> None:
        body = b"" if code is None else bytes([code]) + (properties(**props) if props else b"")
        """And wait for the broker's close: from then on the session is without a connection."""
        self.send(packet(0xE0, body))
        try:
            while self.read(WAIT_S) is not None:
                pass
        except Closed:
            pass
        self.socket.close()

    def drop(self) -> None:
        """Vanish without a word."""
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + varint(len(body)) + body
