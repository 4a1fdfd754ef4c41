"""Figures of the durable log, measured beside what the disk and the loopback allow in the same run.

The broker runs on core 0, the generator (`engine/examples/durable_load.rs`) on core 1, the echo
server and the plain loops on core 0. Every round: publishers with full windows into offline persistent sessions, then a
plain loop of `fdatasync` at the group size just seen. Only the ratios of one run count; when other processes took more
than a tenth of the machine, the rounds are repeated once.

    .venv/bin/python bench/durable.py [--messages 10000000 --queue-sessions 1000000] [--write] [--smoke]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from built import BUILT, ROOT, build
from plot import PLOTS, Group, bars

sys.path.insert(0, str(ROOT / "tests"))  # the file layer of the power-cut tests
LOAD = BUILT / "examples" / "durable_load"
PAGE = ROOT / "docs" / "benchmarks.md"
HZ = os.sysconf("SC_CLK_TCK")
BUSY = 0.10
PATIENCE_S = 900.0
START_S = 120.0
CONFIG = """\
[log]
connection_messages = false
[limits]
queue_messages_max = 1000000000
queue_bytes_max = 1000000000000
"""


def on_core(core: int, *words: object) -> list[str]:
    """The command, pinned."""
    return ["taskset", "-c", str(core % (os.cpu_count() or 1)), *map(str, words)]


def load(*words: object, core: int = 1, env: dict[str, str] | None = None) -> dict[str, Any]:
    """One command of the generator; its figures."""
    done = subprocess.run(on_core(core, LOAD, *words), capture_output=True, text=True, timeout=PATIENCE_S, env=env)
    if done.returncode != 0:
        raise SystemExit(f"durable_load {' '.join(map(str, words))}: {done.stderr.strip()}")
    return dict(json.loads(done.stdout))


class Broker:
    """One `roost run`, started, measured, ended."""

    def __init__(self, folder: Path, env: dict[str, str] | None = None) -> None:
        self.folder, self.data, self.env = folder, folder / "data", env
        self.config, self.out, self.log = folder / "roost.toml", folder / "out", folder / "broker.log"
        self.config.write_text(CONFIG)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Seconds from the start of the process to `ready`."""
        words = ["--config", self.config, "--data", self.data, "--port", 0, "--admin-port", 0, "--lanes", 1]
        begun = time.monotonic()
        with self.out.open("wb") as out, self.log.open("ab") as log:
            command = on_core(0, ROOT / ".venv" / "bin" / "roost", "run", *words)
            self.process = subprocess.Popen(command, stdout=out, stderr=log, env=self.env)
        while "ready\n" not in self.out.read_text():
            if self.process.poll() is not None or time.monotonic() - begun > START_S:
                self.end(signal.SIGKILL)
                raise SystemExit(f"the broker is not ready: {self.log.read_text()[-2000:]}")
            time.sleep(0.005)
        took = time.monotonic() - begun
        self.host, self.port = self._address("mqtt")
        self.admin = "http://{}:{}/metrics".format(*self._address("http"))
        return took

    def _address(self, kind: str) -> tuple[str, str]:
        found = re.search(rf"^listening {kind} (?:http://)?(\S+):(\d+)", self.out.read_text(), re.MULTILINE)
        assert found is not None, self.out.read_text()
        return found[1], found[2]

    def metrics(self) -> dict[str, float]:
        """Name without the prefix and `_total` to value."""
        with urllib.request.urlopen(self.admin, timeout=30) as page:
            lines = page.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("roostmq_"))
        return {name.removeprefix("roostmq_").removesuffix("_total"): float(value) for name, value in pairs}

    def cpu_s(self) -> float:
        """CPU of the process so far, seconds."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / HZ

    def memory_mb(self) -> tuple[float, float]:
        """Resident now and at most, MB."""
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        now, most = (re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE) for name in ("VmRSS", "VmHWM"))
        return (int(now[1]) / 1024 if now else 0.0), (int(most[1]) / 1024 if most else 0.0)

    def disk_mb(self) -> float:
        """What the data directory takes on disk, MB: allocated blocks, spare segments included."""
        total = 0
        for path in self.data.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # segments come and go
                total += path.stat().st_blocks * 512
        return total / 1e6

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, and only it."""
        if self.process is not None:
            self.process.send_signal(how)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


def machine_s() -> float:
    """CPU that all processes together used so far, seconds."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / HZ


def children_s() -> float:
    """CPU of our ended children, seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass
class Rounds:
    """Figures of one payload size, a value per round."""

    bytes: int
    acked: list[float] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    group: list[float] = field(default_factory=list)
    syncs: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    written: float = 0.0
    messages: int = 0


def one_round(broker: Broker, a: argparse.Namespace, rounds: Rounds) -> None:
    """The plain loop, the publishers, and the loop again with groups of the size just seen."""
    guess = int(rounds.group[-1]) if rounds.group else a.publishers * a.window // 2 * (rounds.bytes + 80)
    first = load("floor", broker.data, guess, a.seconds / 2, core=0, env=broker.env)
    before, cpu, ours, all_cpu, begun = broker.metrics(), broker.cpu_s(), children_s(), machine_s(), time.monotonic()
    got = load("publish", broker.host, broker.port, a.sessions, rounds.bytes, a.seconds, a.publishers, a.window)
    wall, after = time.monotonic() - begun, broker.metrics()
    mine = broker.cpu_s() - cpu
    others = (machine_s() - all_cpu - mine - (children_s() - ours)) / wall / (os.cpu_count() or 1)
    written = after["log_bytes_written"] - before["log_bytes_written"]
    groups = max(after["log_groups"] - before["log_groups"], 1)
    size = max(int(written / groups), 1)
    loop = load("floor", broker.data, size, a.seconds / 2, core=0, env=broker.env)
    syncs = (loop["syncs_per_s"] + first["syncs_per_s"]) / 2 if rounds.group else loop["syncs_per_s"]
    possible = syncs * got["acked"] / groups
    rounds.acked.append(got["acked_per_s"])
    rounds.floor.append(possible)
    rounds.ratio.append(got["acked_per_s"] / possible)
    rounds.group.append(size)
    rounds.syncs.append(syncs)
    rounds.cpu.append(mine / got["seconds"])
    rounds.others.append(max(others, 0.0))
    rounds.written += written
    rounds.messages += got["acked"]


@contextlib.contextmanager
def echo_server() -> Iterator[int]:
    """The null broker on the broker's core; its port."""
    server = subprocess.Popen(on_core(0, LOAD, "echo-server"), stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield int(json.loads(server.stdout.readline())["port"])
    finally:
        server.terminate()
        server.wait()


def single(broker: Broker, a: argparse.Namespace) -> dict[str, list[float]]:
    """One publisher with one message at a time, beside one fdatasync and one round trip; three rounds."""
    found: dict[str, list[float]] = {"lone": [], "lone99": [], "sync": [], "echo": []}
    with echo_server() as port:
        for _ in range(a.rounds):
            before = broker.metrics()
            got = load("lone", broker.host, broker.port, a.seconds / 2)
            after = broker.metrics()
            groups = max(after["log_groups"] - before["log_groups"], 1)
            size = max(int((after["log_bytes_written"] - before["log_bytes_written"]) / groups), 1)
            found["lone"].append(got["p50_us"])
            found["lone99"].append(got["p99_us"])
            found["sync"].append(load("floor", broker.folder, size, a.seconds / 2, core=0)["p50_us"])
            found["echo"].append(load("echo", "127.0.0.1", port, a.seconds / 4)["p50_us"])
    return found


def settled_disk_mb(broker: Broker, wait_s: float) -> float:
    """The disk after cleaning had time: until it is the same for two seconds, at most `wait_s`."""
    end, last, since = time.monotonic() + wait_s, broker.disk_mb(), time.monotonic()
    while time.monotonic() < end and time.monotonic() - since < 2:
        time.sleep(0.1)
        if (now := broker.disk_mb()) != last:
            last, since = now, time.monotonic()
    return last


def restarts(folder: Path, a: argparse.Namespace) -> list[str]:
    """Rows on starting with a long queue, after kill -9 and after SIGTERM."""
    folder.mkdir()
    broker = Broker(folder)
    try:
        broker.start()
        made = load("prepare", broker.host, broker.port, a.queue_sessions)
        got = load("publish", broker.host, broker.port, a.queue_sessions, 64, 0, a.publishers, a.window, a.messages)
        full, _ = broker.memory_mb()
        rows = []
        for how, word in ((signal.SIGKILL, "`kill -9`"), (signal.SIGTERM, "SIGTERM")):
            broker.end(how)
            took = broker.start()
            now, most = broker.memory_mb()
            queued = int(broker.metrics().get("queued", -1))
            right = "" if queued >= got["acked"] else f" (**{got['acked']:,} were acknowledged**)"
            rows.append(
                f"| start after {word}, {a.queue_sessions:,} sessions, {queued:,} queued{right} "
                f"| {took:.2f} s to `ready`, {now:,.0f} MB resident, {most:,.0f} MB at most "
                f"| 10 s, 1,500 MB with 1 M sessions and 10 M messages |"
            )
        rows.append(
            f"| the same before the restart | {full:,.0f} MB resident, {broker.disk_mb():,.0f} MB on disk; "
            f"sessions made at {a.queue_sessions / made['seconds']:,.0f} per second, "
            f"messages at {got['acked_per_s']:,.0f} | - |"
        )
        return rows
    finally:
        broker.end(signal.SIGKILL)


def slow_disk(folder: Path, a: argparse.Namespace) -> list[str]:
    """A row on a disk whose syncs take longer: there the disk is the limit, and the share of it can be seen."""
    from durability.layer import Layer

    folder.mkdir()
    layer = Layer(folder, folder / "data")
    layer.play(f"delay={a.sync_delay_us}")
    broker = Broker(folder, {**os.environ, **layer.env, "ROOST_LAYER_JOURNAL": "/dev/null"})
    try:
        broker.start()
        load("prepare", broker.host, broker.port, a.sessions)
        rounds = Rounds(64)
        for _ in range(a.rounds):
            one_round(broker, a, rounds)
        return [
            f"| with each sync {a.sync_delay_us:,} us longer, 64 B: acknowledged per second / share of the plain loop "
            f"| {spread(rounds.acked)} / {spread([100 * x for x in rounds.ratio])} % | 70 % |"
        ]
    finally:
        broker.end(signal.SIGKILL)


def spread(values: list[float], form: str = ",.0f") -> str:
    """Median and spread."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def steady(folder: Path, a: argparse.Namespace) -> list[str]:
    """Rows on throughput, bytes, the lone publisher and the drain."""
    folder.mkdir()
    broker = Broker(folder)
    try:
        broker.start()
        load("prepare", broker.host, broker.port, a.sessions)
        alone = single(broker, a)
        sizes = [Rounds(n) for n in (64, 256)]
        for number in range(a.rounds):
            for rounds in sizes:
                one_round(broker, a, rounds)
                busy = rounds.others[-1] > BUSY
                print(f"round {number + 1}, {rounds.bytes} B: {rounds.acked[-1]:,.0f}/s", "busy" if busy else "")
        for rounds in sizes:
            if not a.smoke and statistics.median(rounds.others) > BUSY:
                print(f"{rounds.bytes} B: the machine was busy, once more")
                for _ in range(a.rounds):
                    one_round(broker, a, rounds)
        return table(broker, a, sizes, alone)
    finally:
        broker.end()


def table(broker: Broker, a: argparse.Namespace, sizes: list[Rounds], alone: dict[str, list[float]]) -> list[str]:
    """The rows of `steady`; drains the queues."""
    rows = []
    for r in sizes:
        rows += [
            f"| {r.bytes} B, {a.sessions:,} sessions: acknowledged per second | {spread(r.acked)} | 150,000 |",
            f"| {r.bytes} B: the plain loop at the same group size ({statistics.median(r.group):,.0f} B, "
            f"{statistics.median(r.syncs):,.0f} syncs/s), messages per second | {spread(r.floor)} | - |",
            f"| {r.bytes} B: share of the plain loop | {spread([100 * x for x in r.ratio])} % | 70 % |",
            f"| {r.bytes} B: handed to `write` per message, checkpoints and cleaning included "
            f"| {r.written / max(r.messages, 1):,.0f} B | {'200 B' if r.bytes == 64 else '-'} |",
            f"| {r.bytes} B: cores used by the broker / share of the machine used by others "
            f"| {spread(r.cpu, '.2f')} / {spread([100 * x for x in r.others])} % | - |",
        ]
    sync, echo = statistics.median(alone["sync"]), statistics.median(alone["echo"])
    rows += [
        f"| lone publisher, p50 | {spread(alone['lone'])} us | {sync + 2 * echo:,.0f} us: one `fdatasync` "
        f"{spread(alone['sync'])} + 2 x null round trip {spread(alone['echo'])} |",
        f"| lone publisher, p99 | {spread(alone['lone99'])} us | - |",
    ]
    if a.write:
        bars(PLOTS / "durable.svg", [rates(r) for r in sizes])
    queued, before = int(broker.metrics()["queued"]), broker.disk_mb()
    got = load("drain", broker.host, broker.port, a.sessions, queued)
    after = settled_disk_mb(broker, 0.2 if a.smoke else 20)
    log = broker.metrics()
    rows += [
        f"| drain of {queued:,} messages: received / missing / out of order "
        f"| {got['received']:,} / {got['missing']:,} / {got['errors']:,} in {got['seconds']:.1f} s "
        "| none missing, none out of order |",
        f"| disk before and after the drain (log proper after it) | {before:,.0f} MB, {after:,.0f} MB "
        f"({log['log_bytes'] / 1e6:,.0f} MB in {log['log_segments']:.0f} segments) | space given back |",
        f"| checkpoints during all this | {log.get('checkpoints', 0):.0f} | - |",
    ]
    return rows


def rates(r: Rounds) -> Group:
    """What a plot of it shows."""
    values = [("roostmq", statistics.median(r.acked)), ("the plain loop", statistics.median(r.floor))]
    return f"{r.bytes} B: acknowledged per second", [*values, ("the goal", 150_000.0)]


def section(rows: list[str], a: argparse.Namespace, loads: tuple[float, float]) -> str:
    """The section of docs/benchmarks.md."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return "\n".join(
        [
            "## Durable",
            "",
            f"{day}, commit {commit.stdout.strip()}, 2-core shared machine; other work ran on the same two cores"
            f" (load average {loads[0]:.1f} before, {loads[1]:.1f} after). `bench/durable.py`:",
            "broker with one lane and its log thread on core 0, generator on core 1; QoS 1 into offline persistent",
            f"sessions, {a.publishers} publishers with a window of {a.window:,}, {a.rounds} interleaved rounds of"
            f" {a.seconds:g} s; median (lowest to highest).",
            "The plain loop writes groups of the broker's average size to a preallocated file on the same disk and",
            "calls `fdatasync` after each, on core 0, right before and after the load that it is compared with.",
            "Bytes handed to `write` are those of the broker's own counter, zero-filling of segments included.",
            "",
            "| what | measured | goal |",
            "|---|---|---|",
            *rows,
            "",
            "![durable](plots/durable.svg)",
            "",
        ]
    )


def write_section(name: str, text: str) -> None:
    """Put the section in the place of the old one, or at the end."""
    page = PAGE.read_text()
    kept = re.sub(rf"^## {name}\n.*?(?=^## |\Z)", "", page, flags=re.MULTILINE | re.DOTALL)
    PAGE.write_text(kept.rstrip("\n") + "\n\n" + text)


def arguments() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=1_000_000, help="queued before the restart")
    parser.add_argument("--queue-sessions", type=int, default=100_000, help="sessions before the restart")
    parser.add_argument("--sessions", type=int, default=1_000, help="sessions under load")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--publishers", type=int, default=8)
    parser.add_argument("--window", type=int, default=1_000)
    parser.add_argument("--sync-delay-us", type=int, default=5_000, help="of the slow disk")
    parser.add_argument("--no-build", action="store_true", help="the generator is built already")
    parser.add_argument("--write", action="store_true", help="write the table to docs/benchmarks.md")
    parser.add_argument("--smoke", action="store_true", help="two seconds, tiny: do figures come out?")
    a = parser.parse_args()
    if a.smoke:
        a.messages, a.queue_sessions, a.sessions, a.seconds, a.rounds, a.window = 2_000, 50, 20, 0.06, 1, 50
    return a


def main() -> int:
    """Build, measure, print, perhaps write."""
    a = arguments()
    if not a.no_build:
        subprocess.run(build("-p", "roostmq-engine", "--example", "durable_load"), cwd=ROOT, check=True)
    before = os.getloadavg()[0]
    (ROOT / "target").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-durable-", dir=ROOT / "target"))
    try:
        rows = steady(folder / "steady", a)
        rows += slow_disk(folder / "slow", a)
        rows += restarts(folder / "queue", a)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = section(rows, a, (before, os.getloadavg()[0]))
    print(text)
    if a.write:
        write_section("Durable", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
