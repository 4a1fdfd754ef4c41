"""Fixtures: a real broker process for each need, found by its own `listening` lines, ended by its pid."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from wire import Client

START_S = 20


@dataclass
class Running:
    """A broker process."""

    process: subprocess.Popen[str]
    listening: list[tuple[str, str]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    data: str | None = None
    threads: list[threading.Thread] = field(default_factory=list)

    def address(self, kind: str = "mqtt", nth: int = 0) -> tuple[str, int]:
        found = [a for k, a in self.listening if k == kind]
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
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(10)
        for thread in self.threads:
            thread.join(10)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return code


def start(args: list[str], env: dict[str, str] | None = None, *, keep: bool = False) -> Running:
    """Start `roost run` and wait for `ready`; in memory, unless the words name `--data` or `keep` lets it choose."""
    where = [] if keep or "--data" in args or "--memory" in args else ["--memory"]
    command = [sys.executable, "-m", "roostmq", "run", *args, *where]
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


@pytest.fixture(scope="session", params=[1, 3], ids=["one-lane", "three-lanes"])
def lanes(request: pytest.FixtureRequest) -> int:
    """Everything runs with one lane and with several."""
    return int(request.param)


@pytest.fixture(scope="session")
def shared_broker(lanes: int) -> Iterator[Running]:
    running = start(["--port", "0", "--no-admin", "--lanes", str(lanes)])
    yield running
    assert running.process.poll() is None, f"the broker died: {running.log[-20:]}"
    assert running.stop() == 0
    assert not [line for line in running.log if "a lane has failed" in line]


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
        words = ["--config", str(path), "--lanes", str(lanes), *args]
        if not any(a.startswith("--admin-port") for a in args):
            words.append("--no-admin")
        running = start(words, env)
        made.append(running)
        return running

    yield make
    for running in made:
        for client in running.clients:
            client.socket.close()
        code = running.stop()
        assert code == 0, f"exit code {code}: {running.log[-20:]}"
        assert not [line for line in running.log if "a lane has failed" in line]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hostile-seconds", type=float, default=5.0, help="how long hostile bytes are sent")
