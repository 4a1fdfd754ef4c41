"""A broker process: engine, signals, `$SYS`, log lines, the admin port.

Start order: `data DIR` is printed, the engine reads its log, every socket is bound and printed, then `ready`, then the
web stack is imported in a thread, so that the broker serves before it can be looked at. Only if reading the log takes
longer than a second the web stack comes first, so that `/readyz` can say why.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from roostmq import engine
from roostmq.adapters.join_token import read_token
from roostmq.config import Cluster as ClusterOptions
from roostmq.config import Config, address_of
from roostmq.engine import Event, Settings
from roostmq.errors import ConfigError, EngineError, RoostError, UnsuitableError
from roostmq.model import Member
from roostmq.runtime.appends import SAMPLE_S
from roostmq.runtime.leaving import Leaver
from roostmq.runtime.link import Link, start
from roostmq.runtime.standstill import Standstill
from roostmq.runtime.sys_topics import SysTopics

GRACE_S = 0.2
EXPORT_S = 3600
CONNECTION_LINES_MAX = 200  # each second; a storm is summed up in one line

if TYPE_CHECKING:
    from roostmq.runtime.cluster import Cluster

Say = Callable[[str], None]
Write = Callable[..., Any]
Serve = Callable[[socket.socket, "Node"], Awaitable[None]]


class Node:
    """One broker process."""

    def __init__(self, config: Config, reread: Callable[[], Config], log: Any, say: Say, serve: Serve | None) -> None:
        self.config, self._reread, self.log, self._say, self._serve = config, reread, log, say, serve
        self.link: Link | None = None
        self.not_ready: str | None = "starting"
        self.disk_error: str | None = None
        self.started_s = time.monotonic()
        self._end = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._second, self._lines, self._hidden = 0, 0, 0
        self.cluster: Cluster | None = None
        self.address = ""
        """host:port of the first listener."""
        self.again = False
        """It was voted out: the process has to begin anew."""
        self._failure: BaseException | None = None

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises ConfigError or EngineError if it cannot start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self.reload()))
        admin = self._bind_admin()
        folder = None if self.config.cluster is not None else self.config.durability.data_dir
        settings = self.config.engine_settings()
        if self.config.cluster is not None:
            self._say(f"data cluster {self.config.cluster.name}")
            site = await self._prepare(self.config.cluster, admin)
            if site is None:
                return
            settings |= site
        else:
            self._say("data memory" if folder is None else f"data {folder}")
        link = self.link = await self._open(settings, admin)
        if link is None:
            return
        while link.drain():  # `listening` comes after what was found damaged
            pass
        if admin is not None:
            host, port = admin.getsockname()[:2]
            self._say(f"listening http {f'[{host}]' if ':' in host else host}:{port}")
        with self._pid_file():
            become_user(self.config.user, folder)
            if self.cluster is not None:
                self._serve_admin(admin)  # it says why it is not ready
                await self._join(self.cluster, admin)
            self._serve_admin(admin)
            if not self._end.is_set():
                self.not_ready = None
                self._say("ready")
                notify("READY=1")
            if self.cluster is not None:
                self._spawn(self._watch(self.cluster))
            if self.config.sys.interval_s:
                self._spawn(self._publish_sys())
            await self._end.wait()
            notify("STOPPING=1")
            self.not_ready = "stopping"
            if self.cluster is not None and not self.again:
                await self.cluster.drain()
                await self.cluster.leave()
            for task in self._tasks:
                task.cancel()
            await link.stop(GRACE_S)
            if self._failure is not None:
                raise self._failure

    async def _prepare(self, options: ClusterOptions, admin: socket.socket | None) -> Settings | None:
        """Reach NATS and take a place in the cluster; None if told to end meanwhile."""
        from roostmq.runtime.cluster import Cluster  # brings the client of NATS, which a single machine has not

        options.check()
        token = read_token(options.token)
        self.cluster = Cluster(options, token, self.log, self._say)
        self.not_ready = "waiting for NATS"
        waiting = asyncio.ensure_future(self.cluster.prepare(self._end))
        done, _ = await asyncio.wait({waiting}, timeout=1)
        if not done:
            self._serve_admin(admin)  # it says why it is not ready
        return await waiting

    async def _join(self, cluster: Cluster, admin: socket.socket | None) -> None:
        """Become a member, and wait until this node serves what it shall; or until it is told to end."""
        options = cluster.options
        shown = f"{admin.getsockname()[0]}:{admin.getsockname()[1]}" if admin is not None else ""
        me = Member(
            cluster.node,
            cluster.incarnation,
            await resolved(options.advertise or options.links),
            options.zone,
            options.weight,
            slot=cluster.slot,
            lanes=lanes_of(self.config),
            mqtt=options.advertise_mqtt or self.address,
            admin=shown,
        )
        self._spawn(self._keep(cluster.run(self._running().engine.submit, me)))
        self.not_ready = "joining the cluster"
        while not self._end.is_set():
            self.not_ready = cluster.not_ready()
            if self.not_ready is None:
                return
            if cluster.log_state["state"] == "unsuitable":
                self._failure = UnsuitableError("; ".join(cluster.log_state["why"]))
                self._end.set()
            notify(f"STATUS={self.not_ready}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), 0.1)

    async def _keep(self, loop: Coroutine[Any, Any, None]) -> None:
        """The cluster's loop: when it ends, so does this process, to begin anew if it was only voted out."""
        from roostmq.runtime.cluster import Resigned

        try:
            await loop
        except Resigned:
            self.log.warning("voted out of the cluster: begins anew")
            self.again = True
        except Exception as problem:
            self._failure = problem
        self._end.set()

    async def _open(self, settings: Settings, admin: socket.socket | None) -> Link | None:
        """Start the engine, saying once a second that it still reads its log; None if told to end meanwhile."""
        begin_s = time.monotonic()
        starting = asyncio.ensure_future(start(settings))
        ending = asyncio.ensure_future(self._end.wait())
        try:
            while not starting.done():
                await asyncio.wait({starting, ending}, timeout=1, return_when=asyncio.FIRST_COMPLETED)
                if starting.done():
                    break
                if ending.done():
                    return None
                elapsed_s = int(time.monotonic() - begin_s)
                self.not_ready = f"recovering, {elapsed_s} s so far"
                self.log.info("recovering", elapsed_s=elapsed_s)
                notify(f"STATUS={self.not_ready}\nEXTEND_TIMEOUT_USEC=30000000")
                self._serve_admin(admin)
            return Link(starting.result(), self._on_event)
        finally:
            starting.cancel()
            ending.cancel()

    async def reload(self) -> None:
        """SIGHUP: the configuration is read anew; if it is wrong, the old one stays."""
        try:
            config = self._reread()
            error = await self._running().reload(config.engine_settings())
        except RoostError as problem:
            error = str(problem)
        if error is None:
            self.config = config
            self.log.info("reloaded")
        else:
            self.log.error("reload failed, the old configuration stays", error=error)

    async def stats(self) -> dict[str, Any]:
        """Counters and gauges of the engine. Raises EngineError before it has started."""
        return (await self._running().ask("stats")).fields

    async def counters(self) -> dict[str, Any]:
        """Counters alone, which cost nothing to read."""
        found: dict[str, Any] = (await self._running().ask("stats", light=True)).fields["counters"]
        return found

    async def why(self, client_id: str, topic: str | None) -> dict[str, Any]:
        """What became of a client's messages: the `why` event of docs/formats/door.md."""
        return (await self._running().ask("why", client_id=client_id, topic=topic)).fields

    async def export(self, file: str) -> dict[str, Any]:
        """Write everything that is kept to a file while the broker runs: the `exported` event."""
        return (await self._running().ask("export", at_most_s=EXPORT_S, file=file)).fields

    def _running(self) -> Link:
        if self.link is None:
            raise EngineError(f"the engine has not started: {self.not_ready}")
        return self.link

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        if not task.cancelled() and (error := task.exception()):
            self.log.error("a task has failed", error=repr(error))

    def _serve_admin(self, admin: socket.socket | None) -> None:
        """Begin to serve HTTP; a second call does nothing."""
        serve, self._serve = self._serve, None
        if admin is not None and serve is not None:
            self._spawn(serve(admin, self))

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

    async def _watch(self, cluster: Cluster) -> None:
        from roostmq.runtime.spreading import Spreader  # brings the client of NATS

        leaver, spreader, standstill = Leaver(cluster), Spreader(cluster), Standstill(self.log)
        while True:
            standstill.look(cluster.turned_s, time.monotonic())
            with contextlib.suppress(TimeoutError):
                cluster.appends.note(await self.counters())
            await leaver.look()
            await spreader.look()
            await asyncio.sleep(SAMPLE_S)

    async def _publish_sys(self) -> None:
        node = self.cluster.node if self.cluster is not None else None
        topics = SysTopics(engine.version(), node)
        interval_s = self.config.sys.interval_s
        last_s = time.monotonic() - interval_s
        while True:
            now_s = time.monotonic()
            changed = topics.update(await self.stats(), now_s - last_s)
            last_s = now_s
            if self.cluster is not None and self.cluster.acts():
                changed |= topics.changed(self.cluster.sys_topics())
            commands = [engine.publish_command(t, v.encode(), retain=True) for t, v in changed.items()]
            self._running().engine.submit(*commands)
            await asyncio.sleep(interval_s)

    def _on_event(self, event: Event) -> None:
        if self.cluster is not None and self.cluster.on_event(event):
            return
        match event.name:
            case "listening":
                self.address = self.address or event["address"]
                self._say(f"listening {event['kind']} {event['address']}")
            case "connected" | "disconnected" | "refused":
                self._connection_line(event)
            case "lane_failed":
                self.log.error("a lane has failed and was restarted", **event.fields)
            case "recovered":
                self.log.info("recovered", **event.fields)
            case "damaged":
                self.log.warning("damaged", **event.fields)
            case "disk":
                self._disk(event)
            case "suppressed":
                self.log.warning("events were suppressed", **event.fields)
            case "socket_closed":
                self.log.debug("socket closed before CONNECT", **event.fields)
            case "expired":
                self.log.debug("session expired", **event.fields)
            case _:
                pass

    def _disk(self, event: Event) -> None:
        self.disk_error = None if event["ok"] else str(event["error"])
        if event["ok"]:
            self.log.info("disk", ok=True)
        else:
            self.log.error("disk", ok=False, error=self.disk_error)

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


def lanes_of(config: Config) -> int:
    """How many lanes the engine will have."""
    return config.lanes or len(os.sched_getaffinity(0))


async def resolved(address: str) -> str:
    """The address with its host as a number, as engines dial it. Raises ConfigError."""
    host, port = address_of(address, "cluster.advertise")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        text = f"cluster.advertise: `{host}` cannot be looked up: {error.strerror}"
        raise ConfigError(text, option="cluster.advertise") from None
    number = found[0][4][0]
    return f"[{number}]:{port}" if ":" in str(number) else f"{number}:{port}"


def become_user(name: str | None, folder: str | None) -> None:
    """Stop being root, if a user is configured and we are; the data directory is given to that user.

    Raises ConfigError if there is no such user.
    """
    if not name or name == "root" or os.geteuid() != 0:
        return
    import pwd

    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"user: there is no user `{name}`", option="user") from None
    if folder is not None:
        for place, folders, files in os.walk(folder):
            for path in (place, *(os.path.join(place, one) for one in (*folders, *files))):
                with contextlib.suppress(FileNotFoundError):  # a segment that was given back meanwhile
                    os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
    os.initgroups(name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def notify(state: str) -> None:
    """Tell systemd, if it started us (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.connect("\0" + address[1:] if address.startswith("@") else address)
        bell.send(state.encode())
