"""`roost bench`: load a broker, any broker, and verify every message. docs/guide/bench.md says how to read it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from roostmq.errors import EngineError

FAULTY = 3
"""Exit code: the load ran, and messages were lost, doubled, reordered, misrouted or damaged, or clients refused."""


def parser() -> argparse.ArgumentParser:
    """Options of `roost bench`."""
    top = argparse.ArgumentParser(
        prog="roost bench",
        description="Load an MQTT broker, any broker, and verify every message: whose it is, its place in the order, "
        f"each of its bytes. Exit code {FAULTY} when anything is wrong with them.",
        epilog="`roost bench WORK --help` says more about each work; docs/guide/bench.md how to read the figures.",
    )
    works = top.add_subparsers(dest="work", required=True, metavar="WORK")
    broker = _broker()
    traffic = _traffic()
    for name, text, parents in (
        ("pub-sub", "publishers and subscribers at once, n to m", [broker, traffic]),
        ("connect", "connections: how fast, and what an idle one costs", [broker]),
        ("retained", "store retained messages, then find them by a wildcard", [broker]),
        ("subscriptions", "many filters: how fast, how large, and what a publish costs then", [broker]),
        ("offline", "messages for persistent sessions that are away, and their return", [broker]),
        ("soak", "traffic for long, with persistent clients that come and go", [broker, traffic]),
    ):
        work = works.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            parents=parents,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        _own(name, work)
    return top


def _broker() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(add_help=False)
    g = p.add_argument_group("broker")
    g.add_argument("--host", default="127.0.0.1", help="name or address")
    g.add_argument("--port", "-p", type=int, help="1883; 8883 with --tls, 8083 with --websocket, 8084 with both")
    g.add_argument("--protocol", "-V", choices=("4", "5"), default="4", help="4 is MQTT 3.1.1")
    g.add_argument("--username", "-u", default="", metavar="NAME", help="user name")
    g.add_argument("--password", "-P", default="", help="password")
    g.add_argument("--tls", action="store_true", help="speak TLS, with a full handshake each time")
    g.add_argument("--cafile", default="", metavar="FILE", help="certificates to trust; default: the system's")
    g.add_argument("--cert", default="", metavar="FILE", help="certificate of all clients (mTLS)")
    g.add_argument("--key", default="", metavar="FILE", help="its key")
    g.add_argument(
        "--server-name", default="", metavar="NAME", help="name in the server's certificate; default: the host"
    )
    g.add_argument("--websocket", action="store_true", help="speak WebSocket")
    g.add_argument("--path", default="/mqtt", help="path of the WebSocket")
    g.add_argument(
        "--source",
        action="append",
        default=[],
        dest="sources",
        metavar="ADDRESS",
        help="local address to connect from; several are used in turn",
    )
    g.add_argument("--concurrency", type=int, default=100, metavar="N", help="connections in the making at a time")
    g = p.add_argument_group("measuring")
    g.add_argument(
        "--pid",
        type=int,
        action="append",
        default=[],
        dest="pids",
        help="process of the broker: its CPU and memory are told; may be given several times",
    )
    g.add_argument(
        "--patience",
        type=float,
        default=10.0,
        dest="patience_s",
        metavar="S",
        help="what has not come after S seconds without anything is lost",
    )
    g.add_argument("--json", action="store_true", help="print the report as JSON")
    g.add_argument("--quiet", action="store_true", help="no progress on the terminal")
    return p


def _traffic() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(add_help=False)
    g = p.add_argument_group("traffic")
    g.add_argument("--publishers", type=int, default=10, metavar="N")
    g.add_argument("--subscribers", type=int, default=10, metavar="N")
    g.add_argument("--topics", type=int, default=0, metavar="N", help="0: one for each publisher")
    g.add_argument("--qos", "-q", type=int, default=0, choices=(0, 1, 2))
    g.add_argument("--size", type=int, default=64, metavar="BYTES", help="payload, at least 24 bytes")
    g.add_argument("--window", type=int, default=20, metavar="N", help="messages that a publisher may have under way")
    g.add_argument(
        "--rate",
        type=float,
        default=0.0,
        metavar="N",
        help="messages per second of all publishers on a fixed schedule; 0: as fast as the windows allow",
    )
    g.add_argument("--seconds", type=float, default=5.0, metavar="S", help="how long to measure")
    return p


def _own(name: str, p: argparse.ArgumentParser) -> None:
    """Options of one work alone."""
    g = p.add_argument_group("work")
    if name == "pub-sub":
        g.add_argument("--every", action="store_true", help="every subscriber gets every topic")
        g.add_argument("--shared", default="", metavar="GROUP", help="all subscribers share one subscription")
        g.add_argument(
            "--warmup", type=float, default=0.5, dest="warmup_s", metavar="S", help="traffic before measuring"
        )
        g.add_argument(
            "--persistent", action="store_true", help="sessions that outlive their connection; they stay there"
        )
        g.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the generator")
    if name in ("connect", "retained", "subscriptions", "offline"):
        what = {"connect": "connections", "retained": "topics", "subscriptions": "filters", "offline": "sessions"}[name]
        g.add_argument("--count", "-n", type=int, default=1000, metavar="N", help=what)
    if name in ("connect", "subscriptions"):
        g.add_argument(
            "--step",
            type=int,
            action="append",
            default=[],
            dest="steps",
            metavar="N",
            help="measure when there are N, too; may be given several times",
        )
    if name == "connect":
        g.add_argument(
            "--rate", type=float, default=0.0, metavar="N", help="connections per second; 0: as fast as possible"
        )
        g.add_argument("--seconds", type=float, default=1.0, metavar="S", help="how long to hold them all")
        g.add_argument("--persistent", action="store_true", help="sessions that outlive their connection")
        g.add_argument("--subscriptions", type=int, default=0, metavar="N", help="filters of each client")
        g.add_argument("--qos", "-q", type=int, default=1, choices=(0, 1, 2), help="of the subscriptions")
    if name in ("retained", "subscriptions", "offline"):
        g.add_argument("--qos", "-q", type=int, default=int(name == "offline"), choices=(0, 1, 2))
        g.add_argument("--size", type=int, default=64, metavar="BYTES", help="payload, at least 24 bytes")
        g.add_argument(
            "--window", type=int, default=100, metavar="N", help="messages that a publisher may have under way"
        )
    if name in ("subscriptions", "offline"):
        g.add_argument("--messages", type=int, default=0, metavar="N", help="messages in total; 0: a few for each")
    if name == "subscriptions":
        g.add_argument("--subscribers", type=int, default=100, metavar="N", help="clients that share the filters")
        g.add_argument("--filter", default="a/+/x%i/#", help="%%i is the number of the filter")
        g.add_argument("--published", type=int, default=1000, metavar="N", help="topics that are published to")
    if name == "offline":
        g.add_argument(
            "--part",
            choices=("all", "prepare", "load", "drain"),
            default="all",
            help="one part alone, so that the broker can be restarted between",
        )
        g.add_argument("--state", default="", metavar="FILE", help="carries what was sent from one part to the next")
        g.add_argument("--publishers", type=int, default=8, metavar="N")


def main(words: list[str]) -> int:
    """0: every message came as it should; 3: not so; 1: the load could not be run."""
    options = vars(parser().parse_args(words))
    as_json, quiet = options.pop("json"), options.pop("quiet")
    if options["port"] is None:
        options["port"] = {(0, 0): 1883, (1, 0): 8883, (0, 1): 8083, (1, 1): 8084}[options["tls"], options["websocket"]]
    _check(options)
    options["protocol"] = int(options["protocol"])
    options["persistent"] = options.get("persistent", False) or options["work"] in ("offline", "soak")
    report = run(options, live=not quiet and sys.stderr.isatty())
    print(json.dumps(report) if as_json else told(report))
    return 0 if report["ok"] else FAULTY


def _check(options: dict[str, Any]) -> None:
    """Numbers that no plan can carry; the bounds of each option are known where the plan is read."""
    if not 1 <= options["port"] <= 65_535:
        raise EngineError(f"--port: {options['port']} is not between 1 and 65535")
    flags = {"warmup_s": "warmup", "patience_s": "patience", "pids": "pid", "steps": "step"}
    for name, value in options.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not 0 <= number < 1 << 32:
                raise EngineError(f"--{flags.get(name, name)}: {number} is not a number from 0 to 4294967295")


def run(plan: dict[str, Any], *, live: bool) -> dict[str, Any]:
    """Run a load to its end, or to a Ctrl-C, and take its report."""
    from roostmq.engine import Load

    load = Load(plan)
    try:
        while True:
            try:
                if (report := load.report(0.2)) is not None:
                    return report
                if live:
                    print(f"\r\x1b[K{_line(load.progress())}", end="", file=sys.stderr, flush=True)
            except KeyboardInterrupt:
                load.stop()
    finally:
        if live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _line(p: dict[str, Any]) -> str:
    share = f" {p['done']:,} of {p['total']:,}" if p["total"] else ""
    faults = f", {p['faults']:,} faults" if p["faults"] else ""
    return f"{p['seconds']:6.1f} s  {p['phase']}{share}  {p['sent']:,} sent, {p['delivered']:,} delivered{faults}"


def told(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = []
    for step in report["steps"]:
        rate = f", {step['per_second']:,.0f} per second" if step["per_second"] else ""
        lines.append(f"{step['name']}: {step['count']:,} {step['unit']} in {step['seconds']:.2f} s{rate}")
        for key, what in (("latency_us", "latency"), ("acknowledged_us", "acknowledged"), ("late_us", "late")):
            if key in step:
                t = step[key]
                lines.append(
                    f"  {what}: p50 {t['p50']:,.0f} us, p99 {t['p99']:,.0f} us, p99.9 {t['p999']:,.0f} us, "
                    f"at most {t['max']:,.0f} us"
                )
        if "broker" in step:
            b = step["broker"]
            lines.append(
                f"  broker: {b['cores']:.2f} cores, {b['us_each']:.2f} us of CPU each, "
                f"{b['rss_bytes'] / 1e6:,.1f} MB resident"
            )
        if "bytes_each" in step:
            lines.append(f"  memory: {step['bytes_each']:,.0f} bytes each")
        if step["generator_limited"]:
            lines.append(f"  the generator was the limit ({step['generator_cores']:.2f} cores): the broker can do more")
    wrong = {name: n for name, n in report["faults"].items() if n}
    lines += [f"note: {note}" for note in report["notes"]]
    if report["acks_out_of_order"]:
        lines.append(f"note: {report['acks_out_of_order']:,} acknowledgements overtook older ones")
    lines.append(
        "FAULTS: " + ", ".join(f"{n:,} {name}" for name, n in wrong.items())
        if wrong
        else "every message as it should be"
    )
    return "\n".join(lines)
