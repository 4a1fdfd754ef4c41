"""A real broker inside this process: `Broker`, sync and async.

    with Broker() as broker:
        client.connect(broker.host, broker.port)

    async with Broker() as broker:
        ...

The engine runs on threads of its own; nothing here touches the event loop or the root logger.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
import time
from types import TracebackType
from typing import Any

from roostmq.config import Access, Config, Listener, Reader
from roostmq.engine import Engine, Event
from roostmq.errors import ClosedError, TimedOut
from roostmq.testing.observer import Message, Observer, matches

__all__ = ["Broker", "Message"]


class Broker:
    """A broker on a free port of loopback, one lane; everything in memory, or in the directory `data`.

    `options` are tables as in roost.toml: `Broker(limits={"receive_maximum": 10}, mqtt={"qos_max": 1})`.
    Raises ConfigError for options that do not exist and EngineError if the broker cannot start (a directory in use).
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        lanes: int = 1,
        data: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        config = Reader().read({"lanes": lanes, **options})
        if data is not None:
            durability = dataclasses.replace(config.durability, data_dir=os.path.abspath(data), memory=False)
            config = dataclasses.replace(config, durability=durability)
        if not config.listeners:
            config = dataclasses.replace(config, listeners={"tcp": Listener(host=host, port=port)})
        if not config.access:
            config = dataclasses.replace(config, access={"default": Access(allow_anonymous=True)})
        self._config: Config = config
        self._engine: Engine | None = None
        self._observer: Observer | None = None
        self._ids = itertools.count(1)
        self._events: list[Event] = []
        self._lock = threading.Lock()
        self.host, self.port = host, port
        self.addresses: dict[str, str] = {}

    # ---- life

    def start(self) -> Broker:
        """Start it; every listener is bound when this returns."""
        if self._engine is not None:
            return self
        self._engine = Engine.start(self._config.engine_settings())
        for event in self._engine.events():
            if event.name == "listening":
                self.addresses[event["name"]] = event["address"]
        first = next(iter(self.addresses.values()))
        if ":" in first:
            host, _, port = first.rpartition(":")
            self.host, self.port = host.strip("[]"), int(port)
        return self

    def stop(self) -> None:
        """Stop it; clients are told. A second call does nothing."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.close()
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.submit({"do": "stop", "grace_ms": 1})
            engine.wait(1)
            engine.stop()

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> Broker:
        import asyncio

        return await asyncio.to_thread(self.start)

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import asyncio

        await asyncio.to_thread(self.stop)

    @property
    def url(self) -> str:
        """`mqtt://HOST:PORT`."""
        return f"mqtt://{self.host}:{self.port}"

    @property
    def engine(self) -> Engine:
        """The engine, for what is not offered here."""
        if self._engine is None:
            raise ClosedError("the broker is not running; use `with Broker() as broker:`")
        return self._engine

    # ---- looking

    def observe(self) -> Observer:
        """Begin to watch all messages; what was published before is seen only if it was retained."""
        if self._observer is None:
            self._observer = Observer(self.host, self.port, f"roostmq-observer-{next(self._ids)}")
        return self._observer

    def published(self, filter_: str = "#") -> list[Message]:
        """Messages published so far whose topic matches; all that a client had acknowledged are among them."""
        observer = self.observe()
        observer.barrier()
        return [m for m in observer.messages if matches(filter_, m.topic)]

    def wait_for(self, filter_: str, timeout: float = 5.0) -> Message:
        """The first message whose topic matches; raises TimedOut if none comes in time."""
        return self.observe().wait_for(filter_, timeout)

    def stats(self, timeout: float = 5.0) -> dict[str, Any]:
        """Counters and gauges of the engine (docs/formats/door.md)."""
        number = next(self._ids)
        self.engine.submit({"do": "stats", "id": number})
        return self._answer("stats", number, timeout).fields

    def drops(self, client_id: str | None = None, timeout: float = 5.0) -> list[dict[str, Any]]:
        """The drop ledger: why messages did not reach a client."""
        number = next(self._ids)
        self.engine.submit({"do": "drops", "id": number, "client_id": client_id})
        entries: list[dict[str, Any]] = self._answer("drops", number, timeout)["entries"]
        return entries

    def why(self, client_id: str, topic: str | None = None, timeout: float = 5.0) -> dict[str, Any]:
        """What became of a client's messages: the fields of the `why` event (docs/formats/door.md)."""
        number = next(self._ids)
        self.engine.submit({"do": "why", "id": number, "client_id": client_id, "topic": topic})
        return self._answer("why", number, timeout).fields

    def _answer(self, name: str, number: int, timeout: float) -> Event:
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            with self._lock:
                self._events = [*self._events[-1000:], *self.engine.events()]
                for event in self._events:
                    if event.name == name and event.fields.get("id") == number:
                        return event
            time.sleep(0.002)
        raise TimedOut(f"no answer to `{name}`")

    # ---- faults

    def drop(self, client_id: str, *, will: bool = True) -> None:
        """Cut a client's connection without a word, as a broken network does."""
        self.engine.submit({"do": "disconnect", "client_id": client_id, "silent": True, "drop_will": not will})

    def disconnect(self, client_id: str, reason: int = 0x98) -> None:
        """End a client's connection with a reason code."""
        self.engine.submit({"do": "disconnect", "client_id": client_id, "reason": reason})

    def refuse(self, what: str, match: str = "*", *, reason: int = 0x87, times: int | None = None) -> None:
        """Refuse `connect` (match: client id), `publish` (topic filter) or `subscribe` (filter), so many times."""
        self.engine.submit({"do": "refuse", "what": what, "match": match, "reason": reason, "times": times})

    def delay(self, client_id: str, seconds: float) -> None:
        """Hold back everything towards a client for a while."""
        self.engine.submit({"do": "delay", "match": client_id, "ms": int(seconds * 1000)})

    def advance(self, seconds: float) -> None:
        """Let the broker's clock jump forward: expiry, wills and keep alive happen without waiting."""
        self.engine.submit({"do": "advance", "ms": int(seconds * 1000)})

    def clear(self) -> None:
        """Forget faults and messages seen so far."""
        self.engine.submit({"do": "clear_faults"})
        if self._observer is not None:
            self._observer.barrier()
            self._observer.messages.clear()
