"""A cluster under test: `roost dev` with its nodes and servers, each killed, stopped and started again by its pid.

Contract: knows the command line and what `--json` prints. It never touches a process that is not the cluster's. Clients find
it behind any door: `address` is another living node each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

from durability.site import BrokerFailed, Site

from cluster.cut import Traced
from cluster.weather import Weather
from roostmq.adapters.nats_server import end_with_parent

READY_S = 60.0


class ClusterSite(Site):
    """Where the clients find the cluster, and the hand that harms it."""

    # shutting down, busy (a partition has moved: repeat), taken over (the client came through another door)
    closes = frozenset({0x8B, 0x89, 0x8E})
    # 3.1.1: server unavailable; 5.0: the same
    refuses = frozenset({0x88, 3})
    patient = True
    late_s = 15.0

    def __init__(self, folder: Path, nodes: int = 3, servers: int = 1, rng: random.Random | None = None) -> None:
        super().__init__(folder, None, 1)
        self.count, self.servers, self.rng = nodes, servers, rng or random.Random(1)
        self.data = folder / "cluster"
        self.nodes: list[dict[str, Any]] = []
        self.nats: list[dict[str, Any]] = []
        self.down: set[int] = set()
        """Nodes that are killed or stopped now."""
        self.pids: dict[int, int] = {}
        self.own: dict[int, subprocess.Popen[bytes]] = {}
        """Nodes that were started again here."""
        self.own_nats: dict[int, subprocess.Popen[bytes]] = {}
        self.cuts = False
        """Servers are traced, so that what they have not synced can be cut off."""
        self.traced: dict[int, Traced] = {}
        self.weather = Weather()
        self.slots: list[int] = []
        self.link_tls = "auto"
        self.sync: tuple[str, ...] = ()
        """More words for `roost dev`."""
        self.python = sys.executable
        """What nodes that are started from now on run with: another release has another one."""

    @property
    def doors(self) -> list[tuple[str, int]]:
        """Addresses of living nodes."""
        found = [n["mqtt"].rpartition(":") for i, n in enumerate(self.nodes) if i not in self.down]
        return [(host, int(port)) for host, _, port in found]

    @property
    def address(self) -> tuple[str, int] | None:
        """Some door."""
        doors = self.doors
        return self.rng.choice(doors) if doors else None

    @address.setter
    def address(self, value: object) -> None:
        """Doors are found, not set."""

    @property
    def log(self) -> str:
        """What all nodes have said."""
        files = [*self.data.glob("n*.log"), *self.data.glob("n*.err")]
        return "\n".join(path.read_text(errors="replace") for path in sorted(files))

    async def start(self, lanes: int = 0, kill_after_s: float | None = None) -> bool:
        """Start the cluster and wait until all nodes are ready."""
        out = self.folder / "out"
        settings = self.folder / "nodes.toml"
        settings.write_text(
            f'link_tls = "{self.link_tls}"\n'
            "[sys]\ninterval_s = 1\n[limits]\nqueue_messages_max = 10000000\nqueue_bytes_max = 10000000000\n"
        )
        words = ["dev", "--nodes", str(self.count), "--nats-servers", str(self.servers), "--data", str(self.data)]
        words += ["--node-config", str(settings), *self.sync]
        with out.open("wb") as stdout, (self.folder / "dev.err").open("ab") as stderr:
            self.process = subprocess.Popen(
                [self.python, "-m", "roostmq", *words, "--json"], stdout=stdout, stderr=stderr
            )
        begun = time.monotonic()
        while "ready\n" not in out.read_text():
            if self.process.poll() is not None or time.monotonic() > begun + READY_S:
                said = (self.folder / "dev.err").read_text()[-2000:]
                await self.stop()
                raise BrokerFailed(f"no `ready`: {said} {self.log[-2000:]}")
            await asyncio.sleep(0.02)
        told = json.loads(out.read_text().splitlines()[0])
        self.nodes, self.nats = told["nodes"], told["nats"]
        self.pids = {i: n["pid"] for i, n in enumerate(self.nodes)}
        self.starts.append(time.monotonic())
        return True

    # ---- harm

    def note(self) -> None:
        """Another life begins: what nobody was asked to keep may come late from now on."""
        self.starts.append(time.monotonic())

    def kill_node(self, i: int) -> None:
        """kill -9."""
        self.down.add(i)
        self.kills += 1
        self._signal(i, signal.SIGKILL)
        if i in self.own:
            self.own.pop(i).wait()

    def halt_node(self, i: int) -> None:
        """SIGSTOP: it hangs."""
        self.down.add(i)
        self._signal(i, signal.SIGSTOP)

    def go_on(self, i: int) -> None:
        """SIGCONT."""
        self._signal(i, signal.SIGCONT)
        self.down.discard(i)
        self.note()

    def _signal(self, i: int, number: signal.Signals) -> None:
        process = self.own.get(i)
        if process is not None:
            process.send_signal(number)
        else:
            os.kill(self.pids[i], number)

    def spawn_node(self, i: int, **environment: str) -> Path:
        """Start a killed node again, perhaps with more in its environment; where it says `ready`."""
        out = self.folder / f"n{i + 1}-{time.monotonic_ns()}"
        with out.open("wb") as stdout, (self.data / f"n{i + 1}.err").open("ab") as stderr:
            process = subprocess.Popen(
                [self.python, "-m", "roostmq", "run", "--config", str(self.data / f"n{i + 1}.toml")],
                stdout=stdout,
                stderr=stderr,
                preexec_fn=end_with_parent,
                env=os.environ | environment,
            )
        self.own[i] = process
        return out

    async def start_node(self, i: int) -> float:
        """Start a killed node again; seconds until it says `ready`."""
        out = self.spawn_node(i)
        process = self.own[i]
        begun = time.monotonic()
        while "ready\n" not in out.read_text():
            if process.poll() is not None or time.monotonic() > begun + READY_S:
                raise BrokerFailed(f"n{i + 1} does not start again: {self.log[-3000:]}")
            await asyncio.sleep(0.02)
        self.down.discard(i)
        self.note()
        return time.monotonic() - begun

    async def stand_in_the_rain(self) -> None:
        """From now on the links of all nodes lead through proxies: see `weather`."""
        self.weather = Weather()
        told = await asyncio.to_thread(self._members)
        self.slots = [told[n["id"]]["slot"] for n in self.nodes]
        for i, slot in enumerate(self.slots):
            port = int(told[self.nodes[i]["id"]]["links"].rpartition(":")[2])
            proxy = await self.weather.stand_before(slot, port)
            config = self.data / f"n{i + 1}.toml"
            config.write_text(config.read_text().replace("links = ", f'advertise = "127.0.0.1:{proxy}"\nlinks = ', 1))
            await self.restart_node(i)
            await self.until_served(READY_S)

    def told_by(self, i: int) -> dict[str, Any]:
        """What a node says of the cluster."""
        return _got(f"http://{self.nodes[i]['admin']}/api/v1/cluster")

    def _members(self) -> dict[str, Any]:
        return {m["node"]: m for m in self.told_by(0)["members"]}

    def slots_now(self) -> list[int]:
        """By node."""
        told = self._members()
        return [told[n["id"]]["slot"] for n in self.nodes]

    def move_some(self, i: int, role: str) -> None:
        """Begin moves in which a node is owner, target or neither, if it can be asked for now."""
        names = [n["id"] for n in self.nodes]
        door = self.nodes[(i + 1) % len(names)]["admin"]
        with contextlib.suppress(OSError, ValueError):
            rows = _got(f"http://{door}/api/v1/cluster")["partitions"]
            if any(r["state"] != "serving" for r in rows):
                return
            others = [n for n in names if n != names[i]]
            source, target = {"owner": (names[i], others[0]), "target": (others[0], names[i])}.get(role, tuple(others))
            mine = [r["partition"] for r in rows if r["owner"] == source]
            self._wish(door, pin=dict.fromkeys(self.rng.sample(mine, min(4, len(mine))), target))

    def pin(self, wanted: dict[int, str]) -> None:
        """These partitions shall go to these nodes."""
        self._wish(self.nodes[0]["admin"], pin=wanted)

    def split(self, i: int, most: int) -> None:
        """All partitions are cut in two, if a node can be asked for that now and they do not become more than these."""
        door = self.nodes[i]["admin"]
        with contextlib.suppress(OSError, ValueError):
            count = len(_got(f"http://{door}/api/v1/cluster")["partitions"])
            asked = int(_got(f"http://{door}/api/v1/cluster/moves")["split_to"])
            if max(asked, count) == count and 2 * count <= most and count & (count - 1) == 0:
                self._wish(door, split_to=2 * count)

    async def until_split(self, at_most_s: float) -> int:
        """Wait until everything is cut that shall be; how many partitions there are then."""
        door, end = self.nodes[0]["admin"], time.monotonic() + at_most_s
        while True:
            with contextlib.suppress(OSError, ValueError):
                rows = (await asyncio.to_thread(_got, f"http://{door}/api/v1/cluster"))["partitions"]
                asked = (await asyncio.to_thread(_got, f"http://{door}/api/v1/cluster/moves"))["split_to"]
                if len(rows) >= int(asked) and all(r["state"] == "serving" for r in rows):
                    return len(rows)
            if time.monotonic() > end:
                raise BrokerFailed(f"not every partition is cut after {at_most_s} s: {self.log[-3000:]}")
            await asyncio.sleep(0.2)

    def unpin(self) -> None:
        """Balance decides again."""
        self._wish(self.nodes[0]["admin"], unpin=True)

    def _wish(self, door: str, **wish: Any) -> None:
        head = {"Content-Type": "application/json"}
        url = f"http://{door}/api/v1/cluster/moves"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(wish).encode(), head), timeout=10):
            pass

    # ---- change

    async def grow(self) -> None:
        """A node more, and its share of the partitions."""
        told = await self.change("add")
        self.nodes.append({"id": told["node"], "mqtt": told["mqtt"], "admin": told["admin"], "pid": told["pid"]})

    async def shrink(self) -> None:
        """The last node goes again."""
        gone = self.nodes[-1]
        self.down.add(len(self.nodes) - 1)
        await self.change("remove", gone["id"])
        self.nodes.pop()
        self.down.discard(len(self.nodes))

    async def change(self, *words: str) -> dict[str, Any]:
        """`roost dev add` or `remove`: what it printed."""
        command = [sys.executable, "-m", "roostmq", "dev", *words, "--data", str(self.data), "--json"]
        process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
        try:
            out, said = await asyncio.wait_for(process.communicate(), 300)
        except TimeoutError:
            process.kill()
            raise BrokerFailed(f"roost dev {' '.join(words)} does not end") from None
        if process.returncode != 0:
            raise BrokerFailed(f"roost dev {' '.join(words)}: {out.decode()} {said.decode()}")
        told: dict[str, Any] = json.loads(out)
        return told

    async def drain(self, i: int, draining: bool) -> None:
        """A node shall hand over everything, or may have its share again. Asked for until NATS can be asked."""
        node = self.nodes[i]
        url = f"http://{node['admin']}/api/v1/cluster/members/{node['id']}"
        body = json.dumps({"draining": draining}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        end = time.monotonic() + READY_S
        while True:
            try:
                return await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=30).close())
            except OSError as problem:
                if time.monotonic() > end:
                    raise BrokerFailed(f"{node['id']} does not take a drain: {problem}") from None
                await asyncio.sleep(0.2)

    async def restart_node(self, i: int) -> None:
        """As an upgrade does it: told to stop, and started again."""
        self.down.add(i)
        process = self.own.pop(i, None)
        if process is not None:
            process.terminate()
            await asyncio.to_thread(process.wait, 60)
        else:
            os.kill(self.pids[i], signal.SIGTERM)
            end = time.monotonic() + 60
            while is_running(self.pids[i]) and time.monotonic() < end:
                await asyncio.sleep(0.02)
        self.note()
        await self.start_node(i)

    def kill_server(self, i: int) -> None:
        """kill -9 of a NATS server."""
        if i in self.traced:
            return self.traced[i].kill()
        process = self.own_nats.pop(i, None)
        if process is not None:
            process.kill()
            process.wait()
        else:
            os.kill(self.nats[i]["pid"], signal.SIGKILL)

    def start_server(self, i: int) -> None:
        """Start it again."""
        from roostmq.adapters.nats_server import find_server

        folder = self.data / f"nats-{i}"
        command = [find_server(), "--config", str(folder / "server.conf")]
        with open(folder / "log", "ab") as log:
            if self.cuts:
                self.traced[i] = Traced(command, folder / "trace", log)
                return
            self.own_nats[i] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent,
            )

    def weights(self) -> tuple[list[int], int]:
        """Resident memory of each node that runs, and what all of NATS's data is, MB."""
        found = []
        for i in range(self.count):
            pid = self.own[i].pid if i in self.own else self.pids[i]
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{pid}/status").read_text()
                found.append(int(status.split("VmRSS:")[1].split()[0]) // 1024)
        stores = (path for store in self.data.glob("nats-*/store") for path in store.rglob("*"))
        return found, sum(_size(path) for path in stores) >> 20

    async def fill(self, full: bool) -> None:
        """The streams of the log have room for nothing more, or for a gigabyte again. Asked for until NATS can be asked."""
        end = time.monotonic() + READY_S
        while True:
            try:
                return await self._fill(full)
            except Exception as problem:  # whatever a client says of servers that hold an election
                if time.monotonic() > end:
                    raise BrokerFailed(f"NATS does not change its streams: {problem!r}") from None
                await asyncio.sleep(0.5)

    async def _fill(self, full: bool) -> None:
        from roostmq.store.access import NatsAccess
        from roostmq.store.nats_kv import connect

        client = await connect(NatsAccess(tuple(n["url"] for n in self.nats)), "chaos")
        try:
            js = client.jetstream(timeout=10)
            for info in await js.streams_info():
                if "_LOG_" in (info.config.name or ""):
                    bound = max(1, info.state.bytes) if full else 1 << 30
                    await js.update_stream(replace(info.config, max_bytes=bound))
        finally:
            await client.close()

    async def until_served(self, at_most_s: float) -> float:
        """Wait until every node says that it is ready; how long it took."""
        begun = time.monotonic()
        while time.monotonic() < begun + at_most_s:
            ready = await asyncio.gather(*(asyncio.to_thread(is_ready, n["admin"]) for n in self.nodes))
            if all(ready):
                return time.monotonic() - begun
            await asyncio.sleep(0.1)
        raise BrokerFailed(f"not all nodes are ready after {at_most_s} s: {self.log[-3000:]}")

    async def until_balanced(self) -> None:
        """Wait until nothing has to move: a node that started late gets its share first."""
        url = f"http://{self.nodes[0]['admin']}/api/v1/cluster/plan"
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):  # it reads the registry, which may be busy
                if not (await asyncio.to_thread(_got, url))["moves"]:
                    await self.until_served(READY_S)
                    return
            await asyncio.sleep(0.2)
        await self.stop()
        raise BrokerFailed(f"it does not balance itself: {self.log[-3000:]}")

    async def stop(self) -> int:
        """End everything that was started here; 0."""
        await self.weather.close()
        for process in [*self.own.values()]:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for i in self.down - self.own.keys():
            try:
                self._signal(i, signal.SIGCONT)
            except ProcessLookupError:
                pass
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(self.process.wait, 60)
            self.process = None
        for process in [*self.own.values(), *self.own_nats.values()]:
            process.kill()
            process.wait()
        for traced in self.traced.values():
            if traced.process.poll() is None:
                traced.kill()
        self.own.clear()
        self.own_nats.clear()
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def is_running(pid: int) -> bool:
    """Is it there, and not only waiting for its parent?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def is_ready(address: str) -> bool:
    """Does /readyz say so?"""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 2) as s:
            s.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            return b" 200 " in s.recv(200)
    except OSError:
        return False


def _got(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        told: dict[str, Any] = json.load(answer)
        return told
