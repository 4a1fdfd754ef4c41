"""The command `roost`: each subcommand in a file of its own, imported only when it is used.

argparse and not a larger library, so that `--help` answers at once and a broker stays small (docs/decisions/0002).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from roostmq.errors import RoostError

COMMANDS = {
    "run": "run a broker",
    "dev": "run a whole cluster on this machine",
    "cluster": "make a cluster, look at it, ask it why",
    "lb": "write the configuration of a load balancer before a cluster",
    "pub": "publish a message",
    "sub": "subscribe and print messages",
    "passwd": "manage a password file",
    "config": "check, convert or describe a configuration",
    "data": "look into, check, export and import a data directory",
    "bench": "load a broker, any broker, and verify every message",
    "plan": "show what a change would move, before it is made",
    "why": "say what became of a client's messages",
    "version": "print the version",
}


def parser() -> argparse.ArgumentParser:
    """The top of the command line."""
    top = argparse.ArgumentParser(
        prog="roost",
        description="RoostMQ, an MQTT broker that outgrows one server without its clients noticing.",
        epilog="`roost COMMAND --help` says more about each command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    top.add_argument("--help", action="store_true", help="show this help")
    top.add_argument("--version", action="store_true", help="print the version")
    lines = "\n".join(f"  {name:9} {text}" for name, text in COMMANDS.items())
    top.epilog = f"commands:\n{lines}\n\n{top.epilog}"
    top.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Run `roost`; exits with 0, with 1 for what went wrong, with 2 for a command line that cannot be read."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("--help", "help"):
        parser().print_help()
        sys.exit(0 if words else 2)
    name = "version" if words[0] == "--version" else words[0]
    if name not in COMMANDS:
        from roostmq.config import nearest

        print(f"roost: there is no command `{name}`{nearest(name, COMMANDS)}; see `roost --help`", file=sys.stderr)
        sys.exit(2)
    try:
        sys.exit(_run(name, words[1:]))
    except RoostError as error:
        print(f"roost: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as missing:
        if missing.name != "nats":
            raise
        print("roost: a cluster needs the client of NATS: pip install 'roostmq[cluster]'", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


def _run(name: str, words: list[str]) -> int:
    if name == "version":
        from roostmq import engine

        print(f"roost {engine.version()}")
        return 0
    if name == "run":
        from roostmq.interface.cli import run

        return run.main(words)
    if name == "dev":
        from roostmq.interface.cli import dev

        return dev.main(words)
    if name == "cluster":
        from roostmq.interface.cli import cluster

        return cluster.main(words)
    if name == "lb":
        from roostmq.interface.cli import lb

        return lb.main(words)
    if name == "bench":
        from roostmq.interface.cli import bench

        return bench.main(words)
    if name == "passwd":
        from roostmq.interface.cli import passwd

        return passwd.main(words)
    if name == "config":
        from roostmq.interface.cli import config

        return config.main(words)
    if name == "data":
        from roostmq.interface.cli import data

        return data.main(words)
    if name == "plan":
        from roostmq.interface.cli import plan

        return plan.main(words)
    if name == "why":
        from roostmq.interface.cli import why

        return why.main(words)
    from roostmq.interface.cli import client

    return client.publish(words) if name == "pub" else client.subscribe(words)
