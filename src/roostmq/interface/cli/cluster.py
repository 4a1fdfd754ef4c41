"""`roost cluster`: make a cluster, look at it, ask it why."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from roostmq.adapters.join_token import JoinToken
from roostmq.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    """Options of `roost cluster`."""
    p = argparse.ArgumentParser(prog="roost cluster", description="Make a cluster, look at it, ask it why.")
    sub = p.add_subparsers(dest="what", required=True, metavar="COMMAND")
    init = sub.add_parser("init", help="lay the foundation in NATS and print the join token")
    init.add_argument("name", help="name of the cluster: letters, digits, `_` and `-`")
    init.add_argument("--nats", action="append", required=True, metavar="URL", help="where NATS is; may be repeated")
    init.add_argument(
        "--partitions", type=int, default=64, metavar="P", help="a power of two, 16 for each node or more"
    )
    init.add_argument(
        "--replicas", type=int, choices=(1, 3), default=3, help="copies of everything in NATS (default 3)"
    )
    init.add_argument(
        "--token-file", type=Path, metavar="FILE", help="write the join token here instead of printing it"
    )
    return p


def main(words: list[str]) -> int:
    """Run one of the commands."""
    options = parser().parse_args(words)
    return _init(options)


def _init(o: argparse.Namespace) -> int:
    from roostmq.runtime.cluster import key_id
    from roostmq.store.access import NatsAccess
    from roostmq.store.foundation import Plot, lay_down, new_key

    if o.partitions < 1 or o.partitions & (o.partitions - 1):
        raise ConfigError(f"--partitions: {o.partitions} is not a power of two")
    token = JoinToken(o.name, o.partitions, new_key())
    asyncio.run(
        lay_down(NatsAccess(tuple(o.nats)), Plot(o.name, o.partitions, replicas=o.replicas), token.key, key_id(token))
    )
    text = token.pack()
    if o.token_file is not None:
        o.token_file.touch(mode=0o600)
        o.token_file.write_text(text + "\n")
        print(f"cluster {o.name} is laid down; the join token is in {o.token_file}")
    else:
        print(text)
    return 0
