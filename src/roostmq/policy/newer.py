"""What nodes have kept beside NATS and a backup does not have: how far it continues the log of each partition.

The rule is that of every reader of the log (docs/formats/log-nats.md): an append of the epoch in force names the one
before it and goes on with its index, an `EPOCH` with a higher one is in force from there on, what is of a lower one
came late. Where an append is missing, what lies behind it says nothing sure any more: it is counted and left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from roostmq.model import PartitionId


@dataclass(frozen=True, slots=True)
class Append:
    """One append to a partition's log, without its records."""

    address: int
    partition: PartitionId
    is_epoch: bool
    epoch: int
    first: int
    """Index of its first record."""
    count: int
    before: int
    """Address of the append before it in the chain."""


@dataclass(frozen=True, slots=True)
class End:
    """Up to where a log is known; all zero: it is empty."""

    address: int = 0
    epoch: int = 0
    next: int | None = 0
    """Index of the record that would come next; None where only an `EPOCH` is known, which does not say it."""


@dataclass(frozen=True, slots=True)
class Newer:
    """What continues the log of one partition."""

    appends: tuple[Append, ...]
    end: End
    left_out: int = 0
    """Appends behind a gap."""
    why: str | None = None
    """The gap."""

    @property
    def records(self) -> int:
        """How many records that is."""
        return sum(a.count for a in self.appends)


def end_of(append: Append) -> End:
    """The end of a log whose last append is this one."""
    return End(append.address, append.epoch, None if append.is_epoch else append.first + append.count)


def newer(ends: Mapping[PartitionId, End], kept: Iterable[Append]) -> dict[PartitionId, Newer]:
    """What continues each log, of what was kept (in any order, each address once); logs without such are left out."""
    by_partition: dict[PartitionId, list[Append]] = {}
    for append in kept:
        if append.address > ends.get(append.partition, End()).address:
            by_partition.setdefault(append.partition, []).append(append)
    found = {p: _continued(ends.get(p, End()), appends) for p, appends in sorted(by_partition.items())}
    return {p: n for p, n in found.items() if n.appends or n.why}


def _continued(end: End, appends: list[Append]) -> Newer:
    taken: list[Append] = []
    ordered = sorted(appends, key=lambda a: a.address)
    for position, append in enumerate(ordered):
        if append.epoch < end.epoch or (append.is_epoch and append.epoch == end.epoch):
            continue  # came late, or a copy
        if append.is_epoch:
            end = End(append.address, append.epoch, end.next)
        elif (append.epoch, append.before) == (end.epoch, end.address) and end.next in (None, append.first):
            end = end_of(append)
        else:
            why = f"what lies between {end.address} and {append.address} was kept by no node"
            return Newer(tuple(taken), end, len(ordered) - position, why)
        taken.append(append)
    return Newer(tuple(taken), end)
