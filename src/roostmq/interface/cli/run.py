"""`roost run`: a broker in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
from pathlib import Path
from typing import Any

from roostmq.adapters.config_file import Overrides, load, place
from roostmq.config import Config
from roostmq.errors import ConfigError
from roostmq.interface.logs import make_logger
from roostmq.runtime.node import Node


def parser() -> argparse.ArgumentParser:
    """Options of `roost run`."""
    p = argparse.ArgumentParser(
        prog="roost run",
        description="Run a broker. Without options it serves 127.0.0.1:1883, where anonymous clients are welcome, and "
        "keeps sessions, queues and retained messages in the user's data directory.",
        epilog="SIGTERM and SIGINT end it, SIGHUP reads passwords, ACL, certificates and limits anew.",
    )
    p.add_argument("-c", "--config", type=Path, metavar="FILE", help="roost.toml or a mosquitto.conf")
    p.add_argument("--host", metavar="H", help="address of the first listener")
    p.add_argument("-p", "--port", type=int, metavar="N", help="port of the first listener; 0 picks a free one")
    where = p.add_mutually_exclusive_group()
    where.add_argument("--data", type=Path, metavar="DIR", help="directory where everything is kept")
    where.add_argument("--memory", action="store_true", help="keep everything in memory: it ends with the process")
    p.add_argument("--lanes", type=int, metavar="N", help="threads that carry traffic; default one per core")
    admin = p.add_mutually_exclusive_group()
    admin.add_argument("--admin-port", type=int, metavar="N", help="port of health, metrics and information")
    admin.add_argument("--no-admin", action="store_true", help="no HTTP at all; the smallest broker")
    p.add_argument(
        "--ignore-unsupported",
        action="append",
        default=[],
        metavar="NAME",
        help="start although mosquitto.conf has this option, which RoostMQ does not",
    )
    p.add_argument("-v", "--verbose", action="store_true", help="log at level debug")
    return p


def main(words: list[str]) -> int:
    """Run until told to stop."""
    options = parser().parse_args(words)
    for name in ("port", "admin_port"):
        value = getattr(options, name)
        if value is not None and not 0 <= value <= 65_535:
            raise ConfigError(f"--{name.replace('_', '-')}: {value} is not between 0 and 65535")
    overrides = Overrides(
        host=options.host,
        port=options.port,
        lanes=options.lanes,
        admin_port=options.admin_port,
        no_admin=options.no_admin,
        data=None if options.data is None else str(options.data),
        memory=options.memory,
        ignore_unsupported=tuple(options.ignore_unsupported),
    )
    config, warnings = load(options.config, overrides=overrides)
    config = place(config)
    log = make_logger(_verbose(config) if options.verbose else config.log)
    for warning in warnings:
        log.warning(warning)

    def reread() -> Config:
        return place(load(options.config, overrides=overrides)[0])

    node = Node(config, reread, log, _say, _serve if config.admin.enabled else None)
    gc.collect()
    gc.freeze()
    asyncio.run(node.run())
    if node.again:
        os.execv(sys.executable, sys.orig_argv)
    if node.link is None:  # told to end while the engine starts: its thread could not end with the interpreter in peace
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _verbose(config: Config) -> Any:
    import dataclasses

    return dataclasses.replace(config.log, level="debug")


def _say(line: str) -> None:
    print(line, flush=True)


async def _serve(bound: Any, node: Node) -> None:
    from roostmq.interface.api import serve

    await serve(bound, node)
