"""Several lanes, Python's share of the CPU, and what one client can do to the others: a flood, a storm, not reading."""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from brokers import CONNECT, ROOT, Running, Tls, free_port, on_cores, roost_with, running
from durable import HZ
from plot import PLOTS, Group, bars
from works import GENERATOR_CORE, SOURCES, Report, load, pairs, us_each

STORM = 10_000
QUEUE_BYTES = 32 << 20
BOUNDED = f"[limits]\nqueue_messages_max = 1000000\nqueue_bytes_max = {QUEUE_BYTES}\n"
RSS_MAX = 150e6
"""The broker alone, the bound of one slow reader, its socket, and the allocator's rest."""

Row = tuple[str, str, str]


def measure(rounds: int, seconds: float, tls: Tls, smoke: bool, missed: list[str]) -> list[str]:
    """Lines of the table."""
    drawn: list[Group] = []
    rows = [*lanes(rounds, seconds), python(seconds), *fair(rounds, seconds, tls, smoke, drawn)]
    lines = ["| what | measured | goal |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    if smoke:
        return lines
    missed += [f"{name}: {goal}" for name, _, goal in rows if "missed" in goal]
    bars(PLOTS / "shapes.svg", drawn)
    return [*lines, "", "![shapes](plots/shapes.svg)"]


def verdict(text: str, met: bool) -> str:
    """A goal and whether it is met."""
    return f"{text}: {'met' if met else '**missed**'}"


def lanes(rounds: int, seconds: float) -> list[Row]:
    """Two lanes on two cores against one on one, by CPU per message: the generator is counted apart."""
    rows = []
    for name, qos, size, window in (("QoS 0, 256 B", 0, 256, 200), ("QoS 1, 64 B", 1, 64, 20)):
        costs: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for count in (1, 2):
                with running(roost_with(count), cores=range(count)) as broker:
                    options = (*pairs(50, qos, size, window), "--seconds", seconds)
                    costs[count].append(us_each(load(broker, "pub-sub", *options)))
        one, two = (statistics.median(costs[count]) for count in (1, 2))
        told = f"{one:.2f} us / {two:.2f} us: two lanes carry {2 * one / two:.2f} times"
        rows.append((f"two lanes against one, {name}, 50 pairs", told, verdict(">= 1.8 times", 2 * one >= 1.8 * two)))
    return rows


def python(seconds: float) -> Row:
    """CPU of the thread that runs Python, of all, under full traffic."""
    with running(roost_with(1, admin_port=free_port())) as broker:
        time.sleep(3 if seconds > 1 else 0)  # the start is Python's
        before = threads(broker.pid)
        load(broker, "pub-sub", *pairs(50, 0, 256, 200), "--seconds", max(seconds, 2.0))
        after = threads(broker.pid)
    used = {name: after[name] - before.get(name, 0.0) for name in after}
    share = 100 * used["main"] / sum(used.values())
    return ("Python's share of the CPU under full traffic", f"{share:.2f} %", verdict("<= 1 %", share <= 1))


def threads(pid: int) -> dict[str, float]:
    """CPU of the main thread and of the others, s."""
    found = {"main": 0.0, "others": 0.0}
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        fields = stat.read_text().rpartition(")")[2].split()
        name = "main" if stat.parent.name == str(pid) else "others"
        found[name] += (int(fields[11]) + int(fields[12])) / HZ
    return found


VICTIM = (*pairs(10, 1, 64, 20), "--rate", 500)


def p99(report: Report) -> float:
    """Of the messages, us."""
    return float(report["steps"][0]["latency_us"]["p99"])


@contextlib.contextmanager
def beside(
    broker: Running, work: str, *options: object, tls: Tls | None = None, late: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Another load on the generator's core, at the lowest priority: to disturb the broker, not the measurement."""
    words = [ROOT / ".venv" / "bin" / "roost", "bench", work, "--json", "--port", broker.port_of(tls), *options]
    if tls is not None:
        words += ["--tls", "--cafile", tls.ca, "--cert", tls.client_cert, "--key", tls.client_key]
    # a storm is short: it shall come while the others are measured, not before
    pause = ["sh", "-c", 'sleep 1.5; exec "$@"', "sh"] if late else []
    command = on_cores((GENERATOR_CORE,), "nice", "-n", "19", *pause, *words)
    other = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0 if late else 1)
    try:
        yield other
    finally:
        other.terminate()
        other.wait()


@contextlib.contextmanager
def slow_reader(broker: Running) -> Iterator[subprocess.Popen[bytes]]:
    """A client that subscribes to everything and reads nothing, while somebody floods it."""
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", broker.port))
        reader.sendall(CONNECT.replace(b"probe", b"slow!") + bytes([0x82, 6, 0, 1, 0, 1, *b"#", 1]))
        flood = pairs(1, 1, 1024, 200)
        with beside(broker, "pub-sub", *flood, "--seconds", 600) as other:
            yield other


Disturbance = Callable[[Running], contextlib.AbstractContextManager[subprocess.Popen[bytes]]]


def fair(rounds: int, seconds: float, tls: Tls, smoke: bool, drawn: list[Group]) -> list[Row]:
    """p99 of a well-behaved fleet, alone and beside somebody who is not."""
    storm = ("-n", 100 if smoke else STORM, "--concurrency", 2000, "--seconds", 0, *SOURCES)
    others: list[tuple[str, Disturbance, bool]] = [
        ("one flat-out publisher", lambda b: beside(b, "pub-sub", *pairs(1, 0, 256, 1000), "--seconds", 600), False),
        ("a reader that does not read, flooded", slow_reader, False),
        (f"a storm of {STORM:,} connections", lambda b: beside(b, "connect", *storm, late=True), False),
        (f"a storm of {STORM:,} mTLS connections", lambda b: beside(b, "connect", *storm, tls=tls, late=True), True),
    ]
    rows = []
    for name, disturbance, secured in others:
        alone, beside_it, rss, dropped = [], [], 0.0, 0.0
        for _ in range(rounds):
            admin = free_port()
            with running(roost_with(1, config=BOUNDED, admin_port=admin), tls=tls if secured else None) as broker:
                options = (*VICTIM, "--seconds", max(seconds, 0.5), "--patience", 20)
                own = tls if secured else None
                alone.append(p99(load(broker, "pub-sub", *options, tls=own)))
                with disturbance(broker):
                    report = load(broker, "pub-sub", *options, tls=own)
                beside_it.append(p99(report))
                rss = max(rss, float(report["steps"][0]["broker"]["rss_bytes"]))
                dropped += metric(admin, "roostmq_dropped_messages_total")
        before, after = statistics.median(alone), statistics.median(beside_it)
        told = f"p99 {before:,.0f} us alone, {after:,.0f} us beside: {after / before:.1f} times"
        told += f"; {rss / 1e6:.0f} MB resident"
        if dropped:
            told += f", {dropped:,.0f} messages dropped and counted"
        # a storm costs everybody time; it must not cost anybody the connection
        goal = verdict("nobody closed, nothing lost", True)
        if "storm" not in name:
            goal += "; " + verdict("<= 5 times", after <= 5 * before)
        if name.startswith("a reader"):
            goal += "; " + verdict(f"<= {RSS_MAX / 1e6:.0f} MB", rss <= RSS_MAX)
        rows.append((f"500 messages/s, QoS 1, beside {name}", told, goal))
        drawn.append((f"p99 (us) beside {name}", [("alone", before), ("beside it", after)]))
    return rows


def metric(port: int, name: str) -> float:
    """Sum of a metric over its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and not line.startswith("#"))
