"""A broker process: engine, signals, `$SYS`, log lines, the admin port.

Start order: every socket is bound and printed, then `ready`, then the web stack is imported in a thread, so that the
broker serves before it can be looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from roostmq import engine
from roostmq.config import Config
from roostmq.engine import Event
from roostmq.errors import ConfigError, EngineError, RoostError
from roostmq.runtime.link import Link
from roostmq.runtime.sys_topics import SysTopics

GRACE_S = 0.2
CONNECTION_LINES_MAX = 200  # each second; a storm is summed up in one line

Say = Callable[[str], None]
Write = Callable[..., Any]
Serve = Callable[[socket.socket, "Node"], Awaitable[None]]


class Node:
    """One broker process."""

    def __init__(self, config: Config, reread: Callable[[], Config], log: Any, say: Say, serve: Serve | None) -> None:
        self.config, self._reread, self.log, self._say, self._serve = config, reread, log, say, serve
        self.link: Link | None = None
        self.ready = False
        self.started_s = time.monotonic()
        self._end = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._second, self._lines, self._hidden = 0, 0, 0

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises ConfigError or EngineError if it cannot start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self.reload()))
        admin = self._bind_admin()
        self.link = Link(self.config.engine_settings(), self._on_event)
        self.link.drain()
        if admin is not None:
            host, port = admin.getsockname()[:2]
            self._say(f"listening http {f'[{host}]' if ':' in host else host}:{port}")
        with self._pid_file():
            self._become_user()
            self.ready = True
            self._say("ready")
            notify("READY=1")
            if admin is not None and self._serve is not None:
                self._spawn(self._serving(self._serve, admin))
            if self.config.sys.interval_s:
                self._spawn(self._publish_sys())
            await self._end.wait()
            notify("STOPPING=1")
            self.ready = False
            for task in self._tasks:
                task.cancel()
            await self.link.stop(GRACE_S)

    async def reload(self) -> None:
        """SIGHUP: the configuration is read anew; if it is wrong, the old one stays."""
        try:
            config = self._reread()
            assert self.link is not None
            error = await self.link.reload(config.engine_settings())
        except RoostError as problem:
            error = str(problem)
        if error is None:
            self.config = config
            self.log.info("reloaded")
        else:
            self.log.error("reload failed, the old configuration stays", error=error)

    async def stats(self) -> dict[str, Any]:
        """Counters and gauges of the engine."""
        if self.link is None:
            raise EngineError("the engine has not started")
        return (await self.link.ask("stats")).fields

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        if not task.cancelled() and (error := task.exception()):
            self.log.error("a task has failed", error=repr(error))

    async def _serving(self, serve: Serve, admin: socket.socket) -> None:
        await serve(admin, self)

    def _bind_admin(self) -> socket.socket | None:
        admin = self.config.admin
        if not admin.enabled:
            return None
        family = socket.AF_INET6 if ":" in admin.host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((admin.host, admin.port))
        except OSError as error:
            bound.close()
            place = f"admin port {admin.host}:{admin.port}"
            raise ConfigError(f"{place}: {error.strerror}; choose another with --admin-port, or --no-admin") from None
        bound.listen(128)
        bound.setblocking(False)
        return bound

    @contextlib.contextmanager
    def _pid_file(self) -> Any:
        path = self.config.pid_file
        if path is None:
            yield
            return
        try:
            with open(path, "w") as file:
                file.write(f"{os.getpid()}\n")
        except OSError as error:
            self.log.warning("the pid file cannot be written", file=path, error=error.strerror)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _become_user(self) -> None:
        if self.config.user and os.geteuid() == 0 and self.config.user != "root":
            import pwd

            try:
                entry = pwd.getpwnam(self.config.user)
            except KeyError:
                raise ConfigError(f"user: there is no user `{self.config.user}`", option="user") from None
            os.initgroups(self.config.user, entry.pw_gid)
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)

    async def _publish_sys(self) -> None:
        topics = SysTopics(engine.version())
        interval_s = self.config.sys.interval_s
        last_s = time.monotonic() - interval_s
        while True:
            now_s = time.monotonic()
            changed = topics.update(await self.stats(), now_s - last_s)
            last_s = now_s
            commands = [engine.publish_command(t, v.encode(), retain=True) for t, v in changed.items()]
            if self.link is not None:
                self.link.engine.submit(*commands)
            await asyncio.sleep(interval_s)

    def _on_event(self, event: Event) -> None:
        match event.name:
            case "listening":
                self._say(f"listening {event['kind']} {event['address']}")
            case "connected" | "disconnected" | "refused":
                self._connection_line(event)
            case "lane_failed":
                self.log.error("a lane has failed and was restarted", **event.fields)
            case "suppressed":
                self.log.warning("events were suppressed", **event.fields)
            case "socket_closed":
                self.log.debug("socket closed before CONNECT", **event.fields)
            case "expired":
                self.log.debug("session expired", **event.fields)
            case _:
                pass

    def _connection_line(self, event: Event) -> None:
        if not self.config.log.connection_messages:
            return
        second = int(time.monotonic())
        if second != self._second:
            if self._hidden:
                self.log.info("connection lines left out", count=self._hidden)
            self._second, self._lines, self._hidden = second, 0, 0
        self._lines += 1
        if self._lines > CONNECTION_LINES_MAX:
            self._hidden += 1
        else:
            self.log.info(event.name, **{k: v for k, v in event.fields.items() if v is not None})


def notify(state: str) -> None:
    """Tell systemd, if it started us (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.connect("\0" + address[1:] if address.startswith("@") else address)
        bell.send(state.encode())
