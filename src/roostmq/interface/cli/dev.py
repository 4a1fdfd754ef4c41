"""`roost dev`: a whole cluster on loopback, with its NATS, for development and tests."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from roostmq.adapters.join_token import JoinToken
from roostmq.adapters.nats_server import NatsServers, end_with_parent, free_ports
from roostmq.errors import ConfigError, RoostError
from roostmq.store.access import NatsAccess

NAME = "dev"
START_S = 90.0
NODES_MAX = 16


def parser() -> argparse.ArgumentParser:
    """Options of `roost dev`."""
    p = argparse.ArgumentParser(
        prog="roost dev",
        description="Run a cluster on this machine: NATS servers that sync every write, and nodes, all on loopback. "
        "Ctrl-C ends all of them. Beside one that runs with --data DIR, `roost dev add --data DIR` starts a further "
        "node and moves its share to it; `roost dev remove NODE --data DIR` moves everything away from a node, then "
        "stops it.",
    )
    p.add_argument("--nodes", type=int, default=3, metavar="N", help="nodes of the cluster, 1 to 16 (default 3)")
    p.add_argument("--nats-servers", type=int, choices=(1, 3), default=1, help="servers of NATS (default 1)")
    p.add_argument(
        "--base-port", type=int, metavar="P", help="MQTT at P, P+10, ..., admin and links beside; default: free ports"
    )
    p.add_argument("--data", type=Path, metavar="DIR", help="keep NATS's data, logs and configurations here")
    p.add_argument("--partitions", type=int, default=64, metavar="N", help="partitions of the cluster (default 64)")
    p.add_argument("--lanes", type=int, default=1, metavar="N", help="threads of each node (default 1)")
    p.add_argument("--ack-default", choices=("durable", "replicated"), default="durable", help=argparse.SUPPRESS)
    p.add_argument("--sync", default="always", help=argparse.SUPPRESS)
    p.add_argument(
        "--node-config",
        type=Path,
        metavar="FILE",
        help="more settings for each node, as in a configuration of `roost run`",
    )
    p.add_argument("--json", action="store_true", help="print one JSON object, then `ready`")
    return p


class Dev:
    """The processes of a development cluster."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        base = options.base_port
        count = options.nodes
        ports = free_ports(3 * count) if base is None else [base + 10 * n + k for n in range(count) for k in range(3)]
        self.ports = {n: ports[3 * n : 3 * n + 3] for n in range(count)}
        """MQTT, admin and links, by number of the node."""
        nats = None
        if base is not None:
            first = base + 10 * count
            nats = [first + 2 * n + k for k in range(2) for n in range(options.nats_servers)]
        self.nats = NatsServers(folder, options.nats_servers, nats, options.sync)
        self.nodes: dict[int, subprocess.Popen[str]] = {}
        self.token = ""

    async def start(self) -> None:
        """NATS, the cluster's foundation, then the nodes; returns when all are ready. Raises RoostError."""
        await self.nats.start_all()
        await self._lay_down()
        for n in range(self.options.nodes):
            self.spawn(n)
        await asyncio.gather(*(asyncio.to_thread(self.until_ready, n) for n in range(self.options.nodes)))

    async def add(self) -> str:
        """Start one more node; its name, once it is ready. Raises RoostError."""
        n = next((n for n in range(NODES_MAX) if n not in self.nodes), None)
        if n is None:
            raise ConfigError(f"there are {NODES_MAX} nodes: no more are possible")
        self.ports[n] = free_ports(3)
        self.spawn(n)
        await asyncio.to_thread(self.until_ready, n)
        return f"n{n + 1}"

    async def remove(self, name: str) -> None:
        """Stop a node that owns nothing any more."""
        n = self.number(name)
        process = self.nodes.pop(n)
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(_end, process)
        del self.ports[n]

    def number(self, name: str) -> int:
        """The number of a node of this cluster. Raises ConfigError."""
        for n in self.nodes:
            if f"n{n + 1}" == name:
                return n
        raise ConfigError(f"there is no node `{name}`: {', '.join(f'n{n + 1}' for n in sorted(self.nodes))}")

    def admins(self) -> dict[str, str]:
        """Admin ports, by name of the node."""
        return {f"n{n + 1}": f"http://127.0.0.1:{self.ports[n][1]}" for n in sorted(self.nodes)}

    async def _lay_down(self) -> None:
        from roostmq.runtime.prepare import key_id
        from roostmq.store.foundation import Plot, lay_down, new_key, new_secret

        kept = self.folder / "token"
        o = self.options
        if kept.exists():
            self.token = kept.read_text().strip()
            return
        token = JoinToken(NAME, o.partitions, new_key(), new_secret())
        plot = Plot(NAME, o.partitions, replicas=o.nats_servers)
        await lay_down(NatsAccess(self.nats.urls), plot, token.key, key_id(token))
        self.token = token.pack()
        kept.write_text(self.token + "\n")

    def spawn(self, n: int) -> None:
        """Start a node's process."""
        mqtt, admin, links = self.ports[n]
        o = self.options
        config = self.folder / f"n{n + 1}.toml"
        urls = ", ".join(json.dumps(url) for url in self.nats.urls)
        cache = f"cache_dir = {json.dumps(str(self.folder / f'n{n + 1}.cache'))}\n" if o.data is not None else ""
        config.write_text(
            f"""lanes = {o.lanes}
partitions = {o.partitions}

[listeners.tcp]
port = {mqtt}

[admin]
port = {admin}

[log]
file = {json.dumps(str(self.folder / f"n{n + 1}.log"))}
connection_messages = false

[cluster]
name = "{NAME}"
node = "n{n + 1}"
token = "{self.token}"
links = "127.0.0.1:{links}"
nats = [{urls}]
system_user = "system"
system_password = "system"
ack_default = "{o.ack_default}"
{cache}{o.node_config.read_text() if o.node_config is not None else ""}"""
        )
        with open(self.folder / f"n{n + 1}.err", "a") as errors:
            self.nodes[n] = subprocess.Popen(
                [sys.executable, "-m", "roostmq", "run", "--config", str(config)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                preexec_fn=end_with_parent,
                start_new_session=True,
            )

    def until_ready(self, n: int) -> None:
        """Wait until a node says so. Raises ConfigError with what it said instead."""
        process = self.nodes[n]
        assert process.stdout is not None
        end_s = time.monotonic() + START_S
        for line in process.stdout:
            if line.strip() == "ready":
                return
            if time.monotonic() > end_s:
                break
        said = (self.folder / f"n{n + 1}.err").read_text()[-2000:]
        raise ConfigError(f"node n{n + 1} does not start ({self.folder}): {said.strip() or 'it says nothing'}")

    def describe(self) -> dict[str, Any]:
        """Addresses and pids."""
        nodes = [
            {
                "id": f"n{n + 1}",
                "mqtt": f"127.0.0.1:{self.ports[n][0]}",
                "admin": f"127.0.0.1:{self.ports[n][1]}",
                "pid": process.pid,
            }
            for n, process in sorted(self.nodes.items())
        ]
        running = zip(self.nats.urls, self.nats.processes, strict=True)
        nats = [{"url": url, "pid": process.pid if process else None} for url, process in running]
        return {"nodes": nodes, "nats": nats}

    def stop(self) -> None:
        """End everything."""
        for process in self.nodes.values():
            with contextlib.suppress(OSError):
                process.send_signal(signal.SIGTERM)
        for process in self.nodes.values():
            _end(process)
        self.nats.stop()


def _end(process: subprocess.Popen[str]) -> None:
    """Wait until a process that was told to end has ended, but not for ever."""
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def main(words: list[str]) -> int:
    """Run until told to stop; `add` and `remove` change a cluster that runs."""
    if words and words[0] in ("add", "remove"):
        from roostmq.interface.cli import dev_change

        return dev_change.main(words)
    options = parser().parse_args(words)
    if not 1 <= options.nodes <= NODES_MAX:
        raise ConfigError(f"--nodes: {options.nodes} is not between 1 and {NODES_MAX}")
    if options.node_config is not None and not options.node_config.is_file():
        raise ConfigError(f"--node-config: there is no file {options.node_config}")
    with contextlib.ExitStack() as stack:
        if options.data is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="roost-dev-")))
        else:
            folder = options.data.absolute()
            folder.mkdir(parents=True, exist_ok=True)
        return asyncio.run(_run(Dev(options, folder)))


async def _run(dev: Dev) -> int:
    from roostmq.interface.cli import dev_change, dev_table

    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        starting = asyncio.ensure_future(dev.start())
        ending = asyncio.ensure_future(ended.wait())
        await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not starting.done():
            starting.cancel()
            return 130
        starting.result()
        async with dev_change.listen(dev):
            show(dev)
            drawing = None
            if dev_table.wanted(dev.options.json):
                drawing = asyncio.ensure_future(dev_table.keep_drawing(dev))
            await ended.wait()
            if drawing is not None:
                drawing.cancel()
        return 0
    except RoostError:
        raise
    finally:
        await asyncio.to_thread(dev.stop)


def show(dev: Dev) -> None:
    """Say where everything is."""
    told = dev.describe()
    if dev.options.json:
        print(json.dumps(told), flush=True)
    else:
        for node in told["nodes"]:
            print(f"{node['id']:4} mqtt {node['mqtt']:16} admin http://{node['admin']:16} pid {node['pid']}")
        for server in told["nats"]:
            print(f"nats {server['url']}  pid {server['pid']}")
    print("ready", flush=True)
