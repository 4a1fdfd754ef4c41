"""`cluster init`:

What a cluster stands on, made once: the bucket, the streams of the log, the facts that never change.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from roostmq.errors import StaleError, UnsuitableError
from roostmq.model import Epoch, PartitionId, PartitionTable
from roostmq.policy.table import empty_table
from roostmq.store import codec
from roostmq.store.access import NatsAccess
from roostmq.store.nats_kv import NatsRegistry
from roostmq.store.streams import log_of, make_streams

LOG_BYTES_MAX = 1 << 30


@dataclass(frozen=True, slots=True)
class Plot:
    """What is laid down."""

    name: str
    partitions: int = 64
    streams: int = 8
    replicas: int = 3
    log_bytes_max: int = LOG_BYTES_MAX
    """Bytes that each stream may hold: when one is full, its partitions take nothing more."""
    epoch: int = 0
    """Under which the logs were begun; owners have higher ones."""


def new_key() -> str:
    """A hash key, 32 hexadecimal digits."""
    return secrets.token_hex(16)


def new_secret() -> str:
    """What links are encrypted with, 64 hexadecimal digits."""
    return secrets.token_hex(32)


async def lay_down(
    access: NatsAccess, plot: Plot, key: str, key_id: str, fill: Callable[[], None] | None = None
) -> None:
    """Make everything. Done again with the same key after an interruption, it goes on.

    `fill` writes into the new logs before anybody may use them; it is called in a thread.

    Raises UnsuitableError: NATS is too old, refuses, or knows another cluster of this name; UnavailableError.
    """
    registry = await NatsRegistry.make(access, plot.name, plot.replicas)
    try:
        meta = codec.Meta(plot.name, plot.partitions, key_id, plot.streams)
        there = await registry.get("meta")
        if there is not None and replace(codec.unpack_meta(there.value), life=0) != meta:
            raise UnsuitableError(f"NATS knows another cluster `{plot.name}` already: choose another name")
        if there is not None and fill is not None:
            raise UnsuitableError(f"cluster `{plot.name}` is laid down already: an import begins a new one")
        await make_streams(access, plot.name, plot.streams, plot.replicas, plot.log_bytes_max)
        if fill is not None:
            await asyncio.to_thread(fill)
        with contextlib.suppress(StaleError):
            await registry.create("table", codec.pack_table(_table(plot, key_id)))
        with contextlib.suppress(StaleError):
            await registry.create("meta", codec.pack_meta(meta))
    finally:
        await registry.close()


def _table(plot: Plot, key_id: str) -> PartitionTable:
    """Nobody owns anything; logs that hold something must be found again."""
    table = empty_table(plot.partitions, key_id, Epoch(plot.epoch))
    if plot.epoch == 0:
        return table
    numbered = enumerate(table.partitions)
    rows = (replace(a, logs=(log_of(plot.name, plot.streams, PartitionId(p), a.epoch),)) for p, a in numbered)
    return replace(table, partitions=tuple(rows))
