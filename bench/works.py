"""The works of "one core, in memory": what is loaded, which figure counts, what the goal is."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from brokers import ROOT, Peer, Running, Tls, on_cores

GENERATOR_CORE = 1
Values = Mapping[str, float]
Report = dict[str, Any]

ALL = ("null", "roost", "flashmq", "mosquitto-current", "mosquitto", "rumqttd", "nats")
SOME = ("roost", "flashmq", "mosquitto-current", "mosquitto")


class Faulty(Exception):
    """A load found something lost, doubled, out of order, or was refused."""


def load(broker: Running, work: str, *options: object, tls: Tls | None = None, nice: bool = False) -> Report:
    """Run `roost bench` on the other core; its report. Raises Faulty when a message was not as it should be."""
    words = [ROOT / ".venv" / "bin" / "roost", "bench", work, "--json", "--port", broker.port_of(tls)]
    words += ["--pid", broker.pid]
    if tls is not None:
        words += ["--tls", "--cafile", tls.ca, "--cert", tls.client_cert, "--key", tls.client_key]
    command = on_cores((GENERATOR_CORE,), *(["nice", "-n", "19"] if nice else []), *words, *options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode not in (0, 3):
        raise Faulty(done.stderr.strip() or f"exit code {done.returncode}")
    report: Report = json.loads(done.stdout)
    if not report["ok"]:
        wrong = {name: n for name, n in report["faults"].items() if n}
        raise Faulty(f"{wrong} {' '.join(report['notes'])}")
    return report


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on a figure; `met` is asked with the medians by peer and raises KeyError where one is missing."""

    text: str
    met: Callable[[Values], bool]


@dataclass(frozen=True, slots=True)
class Work:
    """One row of a table: the load, and which figure of its report counts."""

    name: str
    unit: str
    options: tuple[object, ...]
    figure: Callable[[Report], float]
    goals: tuple[Goal, ...]
    work: str = "pub-sub"
    peers: tuple[str, ...] = ALL
    qos2: bool = False
    secured: bool = False
    half: bool = False
    """On a schedule of half the rate that this broker has reached with SATURATED."""
    durable: bool = False
    """Ours keeps it on disk; peers that keep less are measured as they are fastest."""

    def can(self, peer: Peer) -> bool:
        """Is this something that the peer offers?"""
        return (peer.features.qos2 or not self.qos2) and (peer.features.mutual_tls or not self.secured)


def us_each(report: Report, step: int = -1) -> float:
    """CPU of the broker for each message, connection or filter, us."""
    return float(report["steps"][step]["broker"]["us_each"])


def per_second(step: int) -> Callable[[Report], float]:
    """The rate of a step."""
    return lambda report: float(report["steps"][step]["per_second"])


def bytes_each(step: int) -> Callable[[Report], float]:
    """Growth of the broker's memory for each."""
    return lambda report: float(report["steps"][step]["bytes_each"])


def latency(which: str) -> Callable[[Report], float]:
    """Of the messages, us."""
    return lambda report: float(report["steps"][0]["latency_us"][which])


def at_most(bound: float, unit: str = "us") -> Goal:
    """An absolute goal."""
    return Goal(f"<= {bound:g} {unit}", lambda v: v["roost"] <= bound)


def at_most_of(share: float, peer: str) -> Goal:
    """A share of a peer's figure, in the same run."""
    return Goal(f"<= {share:g} x {peer}", lambda v: v["roost"] <= share * v[peer])


def times(factor: float, peer: str = "mosquitto") -> Goal:
    """So many times cheaper than a peer."""
    return Goal(f"{factor:g} x cheaper than {peer}", lambda v: v["roost"] * factor <= v[peer])


def at_least_of(share: float, peer: str) -> Goal:
    """As high a rate as a peer's."""
    return Goal(f">= {share:g} x {peer}", lambda v: v["roost"] >= share * v[peer])


def pairs(count: int, qos: int, size: int, window: int) -> tuple[object, ...]:
    """Options of so many publishers with a subscriber each."""
    return ("--publishers", count, "--subscribers", count, "-q", qos, "--size", size, "--window", window)


OPEN = (*pairs(50, 1, 64, 20), "--rate", 20_000)

SATURATED = pairs(50, 1, 64, 20)

TRAFFIC = (
    Work(
        "QoS 0, 50 -> 50, 256 B, window 200",
        "us",
        pairs(50, 0, 256, 200),
        us_each,
        (at_most(0.45), at_most_of(0.7, "flashmq"), times(18)),
    ),
    Work(
        "QoS 1, 50 -> 50, 64 B, window 20",
        "us",
        pairs(50, 1, 64, 20),
        us_each,
        (at_most(1.15), at_most_of(0.9, "flashmq"), times(10)),
    ),
    Work("QoS 2, 50 -> 50, 64 B, window 20", "us", pairs(50, 2, 64, 20), us_each, (at_most(2.1), times(12)), qos2=True),
    Work(
        "fan-in 100 -> 1, QoS 0, 64 B",
        "us",
        ("--publishers", 100, "--subscribers", 1, "-q", 0, "--window", 200),
        us_each,
        (at_most(0.38),),
    ),
    Work(
        "fan-in 100 -> 1, QoS 1, 64 B",
        "us",
        ("--publishers", 100, "--subscribers", 1, "-q", 1, "--window", 20),
        us_each,
        (at_most(0.85),),
    ),
    Work(
        "fan-out 1 -> 100, QoS 0, 64 B",
        "us",
        ("--publishers", 1, "--subscribers", 100, "-q", 0, "--window", 200),
        us_each,
        (at_most(0.14), times(20)),
    ),
    Work(
        "every message alone: 1,000 pairs, QoS 1, window 1",
        "us",
        pairs(1000, 1, 64, 1),
        us_each,
        (at_most_of(1.2, "null"), at_most_of(0.8, "mosquitto-current")),
    ),
    Work(
        "20,000 messages/s, QoS 1, open loop: p50",
        "us",
        OPEN,
        latency("p50"),
        (at_most_of(1.1, "null"),),
    ),
    Work(
        "20,000 messages/s, QoS 1, open loop: p99",
        "us",
        OPEN,
        latency("p99"),
        (at_most_of(1.5, "null"), at_most_of(1.0, "mosquitto-current"), at_most_of(1.0, "mosquitto")),
    ),
    Work(
        "half of its own QoS 1 saturation, open loop: p99",
        "us",
        (*SATURATED, "--rate"),
        latency("p99"),
        (at_most_of(1.0, "mosquitto-current"), at_most_of(1.0, "mosquitto")),
        half=True,
    ),
)

SOURCES = tuple(word for n in range(2, 6) for word in ("--source", f"127.0.0.{n}"))
VEHICLE = ("-n", 3_000, "--persistent", "--subscriptions", 5, "-V", 5, "--concurrency", 50)

CONNECTIONS = (
    Work(
        "idle connection",
        "bytes",
        ("-n", 19_000, *SOURCES),
        bytes_each(1),
        (at_most(1200, "bytes"),),
        work="connect",
        peers=SOME,
    ),
    Work(
        "CPU per connect, plain",
        "us",
        ("-n", 10_000, *SOURCES),
        lambda r: us_each(r, 1),
        (at_most_of(1.0, "mosquitto"),),
        work="connect",
        peers=("null", *SOME),
    ),
    Work(
        "a vehicle: mTLS 1.3, persistent session, five subscriptions",
        "bytes",
        VEHICLE,
        bytes_each(3),
        (at_most_of(0.8, "mosquitto"), at_most_of(0.8, "mosquitto-current")),
        work="connect",
        peers=("roost", "mosquitto-current", "mosquitto"),
        secured=True,
    ),
    Work(
        "full mTLS handshake with CONNECT",
        "us",
        ("-n", 3_000, "--concurrency", 50),
        lambda r: us_each(r, 1),
        (Goal("<= the bare rustls loop / 0.8", lambda v: v["roost"] * 0.8 <= v["tls-loop"]),),
        work="connect",
        peers=("tls-loop", "roost", "mosquitto-current", "mosquitto"),
        secured=True,
    ),
)

RETAINED = ("-n", 100_000)
WILD = ("-n", 100_000, "--messages", 200_000)
EXACT = ("-n", 200_000, "--filter", "bench/exact/of/%i", "--messages", 200_000)

STATE = (
    Work(
        "100,000 retained: load",
        "per second",
        RETAINED,
        per_second(0),
        (at_least_of(1, "flashmq"),),
        work="retained",
        peers=SOME,
    ),
    Work(
        "100,000 retained: one wildcard scan",
        "per second",
        RETAINED,
        per_second(1),
        (at_least_of(1, "flashmq"),),
        work="retained",
        peers=SOME,
    ),
    Work(
        "100,000 filters `a/+/x%i/#`: subscribe",
        "per second",
        WILD,
        per_second(0),
        (Goal(">= 400,000", lambda v: v["roost"] >= 400_000),),
        work="subscriptions",
        peers=SOME,
    ),
    Work(
        "the same: memory of one",
        "bytes",
        WILD,
        bytes_each(0),
        (at_most(500, "bytes"),),
        work="subscriptions",
        peers=SOME,
    ),
    Work("the same: a publish", "us", WILD, us_each, (at_most(5),), work="subscriptions", peers=SOME),
    Work(
        "200,000 exact filters: memory of one",
        "bytes",
        EXACT,
        bytes_each(0),
        (at_most(200, "bytes"),),
        work="subscriptions",
        peers=SOME,
    ),
)

AWAY = ("-n", 1_000, "--publishers", 8, "--window", 1_000, "--messages", 1_000_000, "--patience", 60)

OFFLINE = (
    Work(
        "QoS 1 to 1,000 sessions that are away, 64 B: acknowledged",
        "per second",
        AWAY,
        per_second(1),
        (Goal(">= 150,000", lambda v: v["roost"] >= 150_000), at_least_of(0.5, "flashmq")),
        work="offline",
        peers=SOME,
        durable=True,
    ),
    Work(
        "their return: delivered",
        "per second",
        AWAY,
        per_second(2),
        (),
        work="offline",
        peers=SOME,
        durable=True,
    ),
)
