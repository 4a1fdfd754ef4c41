"""`roost cluster init`: lay the foundation of a cluster, empty or with all that a single machine's broker keeps."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from roostmq.adapters.join_token import JoinToken
from roostmq.errors import ConfigError
from roostmq.interface.cli.data import existing, numbers

PARTITIONS = 64


def add_parser(sub: Any) -> None:
    """The command and its options."""
    init = sub.add_parser("init", help="lay the foundation in NATS and print the join token")
    init.add_argument("name", help="name of the cluster: letters, digits, `_` and `-`")
    init.add_argument("--nats", action="append", required=True, metavar="URL", help="where NATS is; may be repeated")
    init.add_argument(
        "--partitions", type=int, metavar="P", help=f"a power of two, 16 for each node or more (default {PARTITIONS})"
    )
    init.add_argument(
        "--replicas", type=int, choices=(1, 3), default=3, help="copies of everything in NATS (default 3)"
    )
    init.add_argument(
        "--token-file", type=Path, metavar="FILE", help="write the join token here instead of printing it"
    )
    init.add_argument(
        "--import",
        dest="data",
        metavar="DIR",
        help="begin with the sessions, queues and retained messages of a broker's data directory; stop that broker "
        "first. The cluster has its hash key and its partitions",
    )


def main(o: argparse.Namespace) -> int:
    """Make everything; the token goes to stdout or a file, all else to stderr."""
    if o.partitions is not None and (o.partitions < 1 or o.partitions & (o.partitions - 1)):
        raise ConfigError(f"--partitions: {o.partitions} is not a power of two")
    if o.token_file is not None and o.token_file.exists():
        raise ConfigError("is there already; name another file for the join token", file=str(o.token_file))
    token = _imported(o) if o.data is not None else _empty(o)
    text = token.pack()
    if o.token_file is not None:
        o.token_file.touch(mode=0o600)
        o.token_file.write_text(text + "\n")
        print(f"cluster {o.name} is laid down; the join token is in {o.token_file}", file=sys.stderr)
        return 0
    print(f"cluster {o.name} is laid down; each node needs this join token, which is a secret:", file=sys.stderr)
    print(text)
    return 0


def _empty(o: argparse.Namespace) -> JoinToken:
    from roostmq.runtime.prepare import key_id
    from roostmq.store.access import NatsAccess
    from roostmq.store.foundation import Plot, lay_down, new_key, new_secret

    token = JoinToken(o.name, o.partitions or PARTITIONS, new_key(), new_secret())
    plot = Plot(o.name, token.partitions, replicas=o.replicas)
    asyncio.run(lay_down(NatsAccess(tuple(o.nats)), plot, token.key, key_id(token)))
    return token


def _imported(o: argparse.Namespace) -> JoinToken:
    """By way of an export file, which is checked line by line as it is read."""
    from roostmq import engine
    from roostmq.runtime.prepare import key_id
    from roostmq.store.access import NatsAccess
    from roostmq.store.foundation import Plot, lay_down, new_secret

    folder = existing(o.data)
    access = NatsAccess(tuple(o.nats))
    with tempfile.TemporaryDirectory(prefix="roost-import-") as place:
        file = os.path.join(place, "export")
        told = engine.data_export(folder, file)
        for damage in told.get("damaged", ()):
            print(f"left out: {damage['where']}: {damage['what']}", file=sys.stderr)
        print(f"{folder} holds {numbers(told)}", file=sys.stderr)
        with open(file) as lines:
            header = json.loads(lines.readline())
        if o.partitions not in (None, header["partitions"]):
            raise ConfigError(
                f"--partitions: {folder} has {header['partitions']}, and a cluster keeps them: leave it out"
            )
        token = JoinToken(o.name, header["partitions"], header["key"], new_secret())
        plot = Plot(o.name, token.partitions, replicas=o.replicas, epoch=header["incarnation"] + 1)
        settings = access.engine_settings() | {"cluster": o.name, "streams": plot.streams, "sync": "any"}

        def fill() -> None:
            found = engine.cluster_import(file, settings)
            print(f"{numbers(found)} are in NATS, read again and compared", file=sys.stderr)

        asyncio.run(lay_down(access, plot, token.key, key_id(token), fill))
    print(f"do not start a broker on {folder} any more: its clients go on in the cluster", file=sys.stderr)
    return token
