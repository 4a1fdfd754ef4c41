"""What grows, and what a publish, a connect or a message costs then: always the same work, by size of what is there."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from brokers import Peer, roost_with, running
from plot import PLOTS, bars
from works import SOURCES, Report, load

RATIO_MAX = 1.5
DEEP = "[limits]\nqueue_messages_max = 10000000\nqueue_bytes_max = 8000000000\n"

Row = tuple[str, dict[int, float]]
GROUP = "a message of a shared group, by members, us"
SOCKETS = "(a thousand members are a thousand sockets, each written for each message)"


def measure(peer: Peer, rounds: int, smoke: bool, missed: list[str]) -> list[str]:
    """Lines of the table."""
    sizes = [1000, 10_000, 100_000, 1_000_000] if not smoke else [100, 200]
    queues = [queue(sizes) for _ in range(rounds)]
    rows: list[Row] = [
        (
            "a publish to the same 1,000 topics, by exact filters, us",
            median(rounds, lambda: filters(peer, "b/t/%i", sizes)),
        ),
        (
            "a publish to the same 1,000 topics, by filters `a/+/x%i/#`, us",
            median(rounds, lambda: filters(peer, "a/+/x%i/#", sizes)),
        ),
        ("a connect, by connections, us", median(rounds, lambda: connects(peer, smoke))),
        (
            "a retained message found by a wildcard, by retained messages, us",
            median(rounds, lambda: retained(peer, sizes)),
        ),
        (GROUP, median(rounds, lambda: shared(peer, smoke))),
        ("a message into a queue, by messages in it, us", medians([into for into, _ in queues])),
        ("a message out of it, by messages in it, us", medians([out for _, out in queues])),
    ]
    lines = ["| work | size: CPU of the broker | last / first | goal |", "|---|---|---|---|"]
    for name, costs in rows:
        told = ", ".join(f"{size:,}: {cost:.2f}" for size, cost in costs.items())
        # a cost below the clock of the system says nothing: the first that can be seen is compared
        first = next((cost for cost in costs.values() if cost), 0.0)
        ratio = list(costs.values())[-1] / first if first else 1.0
        met = ratio <= RATIO_MAX
        goal = f"<= {RATIO_MAX}: {'met' if met else '**missed**'}" if name != GROUP else SOCKETS
        lines.append(f"| {name} | {told} | {ratio:.2f} | {goal} |")
        if not met and not smoke and name != GROUP:
            missed.append(f"{name}: {ratio:.2f} times from {min(costs)} to {max(costs)}")
    if smoke:
        return lines
    bars(PLOTS / "growth.svg", [(name, [(f"{size:,}", cost) for size, cost in costs.items()]) for name, costs in rows])
    return [*lines, "", "![growth](plots/growth.svg)"]


def median(rounds: int, once: Callable[[], dict[int, float]]) -> dict[int, float]:
    """Of each size, over the rounds."""
    return medians([once() for _ in range(rounds)])


def medians(found: Sequence[dict[int, float]]) -> dict[int, float]:
    """Of each size."""
    return {size: statistics.median(each[size] for each in found) for size in found[0]}


def cost(report: Report, name: str) -> float:
    """CPU of the step with this name, us each."""
    (step,) = (s for s in report["steps"] if s["name"] == name)
    return float(step["broker"]["us_each"])


def filters(peer: Peer, text: str, sizes: Sequence[int]) -> dict[int, float]:
    """Publishing at each number of filters."""
    steps = [word for size in sizes for word in ("--step", size)]
    with running(peer) as broker:
        count = 200_000 if sizes[-1] > 10_000 else 2_000
        options = (
            "-n",
            sizes[-1],
            "--filter",
            text,
            "--published",
            min(1000, sizes[0]),
            "--messages",
            count,
            "--subscribers",
            200,
        )
        report = load(broker, "subscriptions", *options, *steps)
    return {size: cost(report, f"publish at {size}") for size in sizes}


def connects(peer: Peer, smoke: bool) -> dict[int, float]:
    """Connecting the next thousands."""
    sizes = [1000, 5000, 10_000, 19_000] if not smoke else [10, 20]
    steps = [word for size in sizes for word in ("--step", size)]
    with running(peer) as broker:
        report = load(broker, "connect", "-n", sizes[-1], *steps, *SOURCES)
    return {size: cost(report, f"connect up to {size}") for size in sizes}


def retained(peer: Peer, sizes: Sequence[int]) -> dict[int, float]:
    """Finding all of them; below ten thousand the clock of the system is too coarse."""
    found = {}
    for size in [s for s in sizes if s >= 10_000] or sizes:
        with running(peer) as broker:
            found[size] = cost(load(broker, "retained", "-n", size, "--patience", 60), "scan")
    return found


def shared(peer: Peer, smoke: bool) -> dict[int, float]:
    """The same traffic for groups of different sizes."""
    found = {}
    for size in [1, 10, 100, 1000] if not smoke else [1, 3]:
        with running(peer) as broker:
            options = ("--publishers", 10, "--subscribers", size, "--shared", "group", "-q", 1, "--window", 100)
            report = load(broker, "pub-sub", *options, "--seconds", 0.2 if smoke else 2)
            found[size] = cost(report, "traffic")
    return found


def queue(sizes: Sequence[int]) -> tuple[dict[int, float], dict[int, float]]:
    """Into one session's queue and out again."""
    into, out = {}, {}
    for size in [s for s in sizes if s >= 10_000] or sizes:
        with running(roost_with(1, config=DEEP)) as broker:
            report = load(broker, "offline", "-n", 1, "--publishers", 1, "--messages", size, "--patience", 60)
            into[size], out[size] = cost(report, "load"), cost(report, "drain")
    return into, out
