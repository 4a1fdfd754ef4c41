"""The broker under test: one process at a time on one data directory, started, killed by its pid, started again.

Contract: knows the command line (`roost run`) and two lines of its output, `listening mqtt HOST:PORT` and `ready`.
It never touches a process that it did not start. Output goes to files in the folder of the run, so nothing blocks and
nothing is lost in a pipe.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from wire import CONNACK

START_S = 30.0
STOP_S = 20.0
POLL_S = 0.01
CONFIG = "[log]\nconnection_messages = false\n[limits]\nqueue_messages_max = 10000000\n"


class BrokerFailed(Exception):
    """The broker did not do what a broker does: it did not start, or did not end."""


class Site:
    """Where the clients find the broker, and the hand that kills it."""

    closes: frozenset[int] = frozenset({0x8B})
    """Reasons with which it may end a connection."""
    refuses: frozenset[int] = frozenset()
    """Codes with which it may refuse one for a while."""
    patient: bool = False
    """A CONNECT may wait as long as nothing can be kept."""
    late_s: float = 3.0
    """A session may outlive its expiry by this after a restart."""

    def __init__(self, folder: Path, data: Path | None, lanes: int, config: str = CONFIG) -> None:
        self.folder, self.data, self.lanes = folder, data, lanes
        self.config = folder / "roost.toml"
        self.config.write_text(config)
        self.process: subprocess.Popen[bytes] | None = None
        self.address: tuple[str, int] | None = None
        self.starts: list[float] = []
        self.kills = 0
        self.start_s = 0.5
        self.heard = 0.0
        self.trap: tuple[int, int] | None = None
        self.env: dict[str, str] | None = None

    @property
    def log(self) -> str:
        path = self.folder / "broker.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def command(self, lanes: int) -> list[str]:
        where = ["--memory"] if self.data is None else ["--data", str(self.data)]
        words = ["run", "--config", str(self.config), "--port", "0", "--no-admin", "--lanes", str(lanes), *where]
        return [sys.executable, "-m", "roostmq", *words]

    async def start(self, lanes: int = 0, kill_after_s: float | None = None) -> bool:
        """Start it and wait for `ready`; False when it was killed on the way, as asked."""
        assert self.process is None, "one at a time"
        out = self.folder / f"out-{len(list(self.folder.glob('out-*')))}"
        with out.open("wb") as stdout, (self.folder / "broker.log").open("ab") as stderr:
            command = self.command(lanes or self.lanes)
            self.process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=self.env)
        begun = time.monotonic()
        while "ready\n" not in (text := out.read_text()):
            passed = time.monotonic() - begun
            if kill_after_s is not None and passed > kill_after_s:
                self.kill()
                return False
            if self.process.poll() is not None or passed > START_S:
                self._end()
                raise BrokerFailed(f"no `ready` after {passed:.1f} s: {self.log[-2000:]}")
            await asyncio.sleep(POLL_S)
        self.start_s = time.monotonic() - begun
        found = re.search(r"^listening mqtt (\S+):(\d+)$", text, re.MULTILINE)
        if found is None:
            raise BrokerFailed(f"no address: {text!r}")
        self.starts.append(time.monotonic())
        self.address = found[1], int(found[2])
        return True

    def _end(self) -> int:
        assert self.process is not None
        self.address, self.trap = None, None
        process, self.process = self.process, None
        if process.poll() is None:
            process.kill()
        return process.wait(STOP_S)

    def kill(self) -> None:
        """kill -9, now."""
        if self.process is not None and self.process.poll() is None:
            self.kills += 1
            self._end()

    def bury(self) -> None:
        """It died by itself: forget it, so that it can be started again."""
        if self.process is not None:
            self._end()

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def saw(self, kind: int) -> None:
        """A client got a packet. A kill can wait for one: that is the moment right after an acknowledgement."""
        if kind != CONNACK:
            self.heard = time.monotonic()
        if self.trap is not None and self.trap[0] == kind:
            self.trap = (kind, self.trap[1] - 1)
            if self.trap[1] <= 0:
                self.kill()

    async def kill_at(self, kind: int, count: int, within_s: float) -> None:
        """Kill when the count-th packet of this kind comes, at the latest after this time."""
        kills, end = self.kills, time.monotonic() + within_s
        self.trap = (kind, count)
        while self.kills == kills and self.alive() and time.monotonic() < end:
            await asyncio.sleep(POLL_S)
        self.trap = None
        if self.kills == kills:
            self.kill()

    async def stop(self) -> int:
        """SIGTERM; the exit code, -9 when it did not end by itself."""
        if self.process is None:
            return 0
        self.address, self.trap = None, None
        self.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_S
        while self.process.poll() is None and time.monotonic() < end:
            await asyncio.sleep(POLL_S)
        return self._end()
