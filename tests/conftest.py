"""Fixtures: a real broker process for each need, found by its own `listening` lines, ended by its pid."""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mover import Mover
from spread import Apart, Moving, Nodes
from wire import CONNACK, Client, Closed

from roostmq.adapters.nats_server import free_ports

START_S = 20


@dataclass
class Running:
    """A broker process."""

    process: subprocess.Popen[str]
    listening: list[tuple[str, str]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    data: str | None = None
    others: list[Running] = field(default_factory=list)
    """Further nodes of the same cluster."""
    mover: Mover | None = None
    doors: Iterator[int] = field(default_factory=itertools.count)
    threads: list[threading.Thread] = field(default_factory=list)

    def address(self, kind: str = "mqtt", nth: int = 0) -> tuple[str, int]:
        nodes = [self, *self.others]
        door = nodes[next(self.doors) % len(nodes)]
        found = [a for k, a in door.listening if k == kind]
        host, _, port = found[nth].rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def port(self) -> int:
        return self.address()[1]

    def client(self, version: int = 5, client_id: str | None = None, **more: Any) -> Client:
        """A client of the first listener, closed at the end of the test."""
        return Client(self.address(), version, client_id, made=self.clients, **more)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.mover is not None:
            self.mover.stop()
        codes = [other.stop() for other in self.others]
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(10)
        for thread in self.threads:
            thread.join(10)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return next((c for c in codes if c), code)


def start_as(lanes: int, args: list[str], env: dict[str, str] | None = None) -> Running:
    """Start it in the way that the number of lanes says."""
    if isinstance(lanes, Apart):
        return start(args, env, more={"apart": True})
    if not isinstance(lanes, Nodes):
        return start(args, env)
    members = [
        {"slot": n, "incarnation": 1, "address": f"127.0.0.1:{free_ports(1)[0]}", "lanes": int(lanes)} for n in range(3)
    ]
    owners = [(p % len(members), 1) for p in range(64)]
    orders = [
        {"do": "members", "version": 1, "nodes": members},
        {"do": "table", "version": 1, "partitions": owners},
    ]
    all_of = {"key": secrets.token_hex(16), "partitions": len(owners), "orders": orders}
    site = [{"slot": m["slot"], "incarnation": 1, "links": m["address"]} for m in members]
    mover = Mover(len(owners), len(members)) if isinstance(lanes, Moving) else None
    if mover is not None:
        all_of["control"] = mover.path
    made = []
    for one in site:
        made.append(start(args, env, more=all_of | {"cluster": one}))
        if mover is not None:
            mover.take()
    made[0].others, made[0].mover = made[1:], mover
    try:
        until_joined(made[0])
        if mover is not None:
            mover.begin()
    except BaseException:
        made[0].stop()
        raise
    return made[0]


def until_joined(cluster: Running) -> None:
    """Every node takes clients whose sessions are in other ones: so many in a row are not all of its own."""
    end, well = time.monotonic() + START_S, 0
    while well < 60:
        assert time.monotonic() < end, "the nodes do not find each other"
        probe = Client(cluster.address(), expect=None)
        try:
            well = well + 1 if probe.want(CONNACK).code == 0 else 0
        except (AssertionError, Closed):
            well = 0
        probe.socket.close()


def start(
    args: list[str], env: dict[str, str] | None = None, *, keep: bool = False, more: dict[str, Any] | None = None
) -> Running:
    """Start `roost run` and wait for `ready`; in memory, unless the words name `--data` or `keep` lets it choose."""
    where = [] if keep or "--data" in args or "--memory" in args else ["--memory"]
    program = ["-m", "roostmq"] if more is None else [str(Path(__file__).parent / "spread.py"), json.dumps(more)]
    command = [sys.executable, *program, "run", *args, *where]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )
    running = Running(process)
    assert process.stdout is not None
    assert process.stderr is not None
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    for line in process.stdout:
        if line.strip() == "ready":
            break
        if line.startswith("data "):
            running.data = line.removeprefix("data ").strip()
        if found := re.fullmatch(r"listening (\S+) (\S+)\n", line):
            running.listening.append((found[1], found[2]))
    else:
        timer.cancel()
        error = process.stderr.read()
        process.wait()
        process.stdout.close()
        process.stderr.close()
        raise AssertionError(f"the broker did not start: {error}")
    timer.cancel()
    for work in (lambda: running.log.extend(process.stderr or ()), lambda: list(process.stdout or ())):
        running.threads.append(threading.Thread(target=work, daemon=True))
        running.threads[-1].start()
    return running


@pytest.fixture(
    scope="session",
    params=[1, 3, Apart(3), Nodes(1), Moving(1)],
    ids=["one-lane", "three-lanes", "apart", "nodes", "moving"],
)
def lanes(request: pytest.FixtureRequest) -> int:
    """Everything runs with one lane and with several, protocol scenarios also spread over lanes and nodes."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def shared_broker(lanes: int) -> Iterator[Running]:
    running = start_as(lanes, ["--port", "0", "--no-admin", "--lanes", str(int(lanes))])
    yield running
    assert running.process.poll() is None, f"the broker died: {running.log[-20:]}"
    mover = running.mover
    assert running.stop() == 0
    assert not [line for line in running.log if "a lane has failed" in line]
    if mover is not None:
        assert mover.failed == []
        assert mover.moved > 100


@pytest.fixture
def broker(shared_broker: Running) -> Iterator[Running]:
    """A broker with default settings, shared; use unique ids and topics."""
    yield shared_broker
    while shared_broker.clients:
        shared_broker.clients.pop().socket.close()
    assert shared_broker.process.poll() is None, f"the broker died: {shared_broker.log[-20:]}"


@pytest.fixture
def make_broker(tmp_path: Path, lanes: int) -> Iterator[Callable[..., Running]]:
    """Start brokers with a configuration of the test's own."""
    made: list[Running] = []

    def make(config: str = "", *args: str, name: str = "roost.toml", env: dict[str, str] | None = None) -> Running:
        path = tmp_path / name
        path.write_text(config)
        words = ["--config", str(path), "--lanes", str(int(lanes)), *args]
        if not any(a.startswith("--admin-port") for a in args):
            words.append("--no-admin")
        running = start_as(lanes, words, env)
        made.append(running)
        return running

    yield make
    for running in made:
        for client in running.clients:
            client.socket.close()
        code = running.stop()
        assert code == 0, f"exit code {code}: {running.log[-20:]}"
        assert not [line for line in running.log if "a lane has failed" in line]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def unwanted(item: pytest.Item) -> bool:
        call = getattr(item, "callspec", None)
        lanes = call.params.get("lanes") if call is not None else None
        if not isinstance(lanes, Apart | Nodes):
            return False
        # a cluster is one of default settings, shared by all tests that are content with those
        names = set(getattr(item, "fixturenames", ()))
        own = isinstance(lanes, Nodes) and ("make_broker" in names or "shared_broker" not in names)
        return item.path.parent.name != "protocol" or own

    gone = [item for item in items if unwanted(item)]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if not unwanted(item)]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hostile-seconds", type=float, default=5.0, help="how long hostile bytes are sent")
