"""A running engine in an event loop: events are dispatched, questions are answered.

The engine never waits for this: if the loop is blocked for seconds, no client notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable

from roostmq.engine import Engine, Event, Settings

Listener = Callable[[Event], None]


async def start(settings: Settings) -> Engine:
    """Start an engine on a thread of its own: reading the log may take seconds.

    Raises EngineError. A cancelled wait leaves the thread behind; it never keeps the process alive.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Engine] = loop.create_future()

    def finish(engine: Engine | None, error: Exception | None) -> None:
        if done.cancelled():
            if engine is not None:
                engine.stop()
        elif engine is not None:
            done.set_result(engine)
        elif error is not None:
            done.set_exception(error)

    def work() -> None:
        engine: Engine | None = None
        error: Exception | None = None
        try:
            engine = Engine.start(settings)
        except Exception as problem:
            error = problem
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(finish, engine, error)

    threading.Thread(target=work, name="roost-start", daemon=True).start()
    return await done


class Link:
    """An engine whose events arrive in the running loop."""

    def __init__(self, engine: Engine, on_event: Listener) -> None:
        self.engine = engine
        self._on_event = on_event
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Event]] = {}
        self._loop = asyncio.get_running_loop()
        self._fd = self.engine.fd
        self._loop.add_reader(self._fd, self.drain)
        self.stopped = asyncio.Event()
        self._reload: asyncio.Future[Event] | None = None

    def drain(self) -> int:
        """Take the events that wait, a batch of them at most; how many it were."""
        events = self.engine.events()
        for event in events:
            answer = self._waiting.pop(event.fields.get("id", 0), None)
            if answer is not None:
                if not answer.done():
                    answer.set_result(event)
                continue
            if event.name == "stopped":
                self.stopped.set()
            if event.name == "reloaded" and self._reload is not None and not self._reload.done():
                self._reload.set_result(event)
            self._on_event(event)
        return len(events)

    async def ask(self, what: str, *, at_most_s: float = 10, **fields: object) -> Event:
        """Ask for `stats`, `drops`, `why` or `export` and wait for the answer. Raises TimeoutError."""
        number = next(self._ids)
        answer: asyncio.Future[Event] = self._loop.create_future()
        self._waiting[number] = answer
        self.engine.submit({"do": what, "id": number, **fields})
        try:
            return await asyncio.wait_for(answer, at_most_s)
        finally:
            self._waiting.pop(number, None)

    async def reload(self, settings: Settings) -> str | None:
        """Read access rules, certificates and limits anew; the text of what went wrong, or None."""
        self._reload = self._loop.create_future()
        self.engine.submit({"do": "reload", "settings": settings})
        event = await asyncio.wait_for(self._reload, 30)
        return None if event["ok"] else str(event["error"])

    async def stop(self, grace_s: float) -> None:
        """Say goodbye to the clients, then end."""
        self.engine.submit({"do": "stop", "grace_ms": int(grace_s * 1000)})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopped.wait(), grace_s + 2)
        self.engine.wait(grace_s + 1)
        self._loop.remove_reader(self._fd)
        self.engine.stop()
