"""A small MQTT 3.1.1 client that sees everything: what the testing tools know about messages.

It subscribes to `#` with QoS 2 on a thread of its own. A sentinel message that it publishes to itself comes back after
everything that the broker had acknowledged before, so `barrier` makes what was published visible.
"""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from dataclasses import dataclass

from roostmq.errors import ClosedError, TimedOut

SENTINEL = "$roostmq-testing/"


@dataclass(frozen=True)
class Message:
    """A message as a subscriber got it."""

    topic: str
    payload: bytes
    qos: int
    retain: bool

    @property
    def text(self) -> str:
        """The payload as UTF-8."""
        return self.payload.decode()


def matches(filter_: str, topic: str) -> bool:
    """MQTT matching (section 4.7), wildcards never match a first level with `$`."""
    if topic.startswith("$") and filter_[:1] in ("+", "#"):
        return False
    filters, names = filter_.split("/"), topic.split("/")
    for i, level in enumerate(filters):
        if level == "#":
            return True
        if i >= len(names) or level not in ("+", names[i]):
            return False
    return len(filters) == len(names)


def _packet(first: int, body: bytes) -> bytes:
    head, n = bytes([first]), len(body)
    while True:
        n, low = n >> 7, n & 127
        head += bytes([low | (128 if n else 0)])
        if not n:
            return head + body


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack(">H", len(raw)) + raw


class Observer:
    """Connected from construction to `close`."""

    def __init__(self, host: str, port: int, client_id: str, login: tuple[str, str] | None = None) -> None:
        self.messages: list[Message] = []
        self._news = threading.Condition()
        self._sentinels: set[str] = set()
        self._numbers = itertools.count(1)
        self._closed = False
        self._socket = socket.create_connection((host, port), 10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self._socket.makefile("rb")
        self._held: dict[int, Message] = {}
        flags, tail = 2, b""
        if login is not None:
            flags, tail = 0xC2, _text(login[0]) + _text(login[1])
        connect = _text("MQTT") + bytes([4, flags]) + struct.pack(">H", 0) + _text(client_id) + tail
        self._socket.sendall(_packet(0x10, connect))
        first, body = self._read()
        if first != 0x20 or body[1] != 0:
            raise ClosedError(f"the broker refuses its observer (code {body[1] if len(body) > 1 else '?'})")
        subscribe = struct.pack(">H", 1) + _text("#") + b"\x02" + _text(SENTINEL + "+") + b"\x00"
        self._socket.sendall(_packet(0x82, subscribe))
        while self._read()[0] != 0x90:
            pass
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._run, name="roostmq-observer", daemon=True)
        self._thread.start()

    def _read(self) -> tuple[int, bytes]:
        first = self._stream.read(1)
        length, shift = 0, 0
        while first:
            low = self._stream.read(1)
            if not low:
                break
            length |= (low[0] & 127) << shift
            shift += 7
            if not low[0] & 128:
                return first[0], self._stream.read(length)
        raise ClosedError("the broker has closed its observer's connection")

    def _run(self) -> None:
        try:
            while True:
                self._handle(*self._read())
        except (ClosedError, OSError, ValueError):
            with self._news:
                self._closed = True
                self._news.notify_all()

    def _handle(self, first: int, body: bytes) -> None:
        kind, qos = first >> 4, (first >> 1) & 3
        if kind == 3:
            n = struct.unpack(">H", body[:2])[0]
            topic, rest = body[2 : 2 + n].decode(), body[2 + n :]
            number = 0
            if qos:
                number, rest = struct.unpack(">H", rest[:2])[0], rest[2:]
            message = Message(topic, rest, qos, bool(first & 1))
            if qos == 2:
                self._held.setdefault(number, message)
                self._socket.sendall(_packet(0x50, struct.pack(">H", number)))
                self._add(message)
            else:
                if qos == 1:
                    self._socket.sendall(_packet(0x40, struct.pack(">H", number)))
                self._add(message)
        elif kind == 6:
            self._held.pop(struct.unpack(">H", body[:2])[0], None)
            self._socket.sendall(_packet(0x70, body[:2]))

    def _add(self, message: Message) -> None:
        with self._news:
            if message.topic.startswith(SENTINEL):
                self._sentinels.add(message.topic)
            else:
                self.messages.append(message)
            self._news.notify_all()

    def barrier(self, timeout: float = 10.0) -> None:
        """Return when everything that the broker had acknowledged before is in `messages`."""
        topic = f"{SENTINEL}{next(self._numbers)}"
        self._socket.sendall(_packet(0x30, _text(topic)))
        with self._news:
            if not self._news.wait_for(lambda: topic in self._sentinels or self._closed, timeout):
                raise TimedOut("the broker does not answer its observer")
            self._sentinels.discard(topic)

    def wait_for(self, filter_: str, timeout: float, after: int = 0) -> Message:
        """The first message that matches, counted from position `after`."""

        def found() -> Message | None:
            return next((m for m in self.messages[after:] if matches(filter_, m.topic)), None)

        with self._news:
            self._news.wait_for(lambda: found() is not None or self._closed, timeout)
            message = found()
        if message is None:
            raise TimedOut(f"no message for `{filter_}` within {timeout:g} s; there were {len(self.messages)} others")
        return message

    def close(self) -> None:
        """End the connection and the thread."""
        try:
            self._socket.sendall(b"\xe0\x00")
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join(5)
        self._stream.close()
        self._socket.close()
