"""What the tests of the policies share: members, the engine's hash, tables where everybody serves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from roostmq import engine
from roostmq.model import Member, NodeId, PartitionState, PartitionTable
from roostmq.policy import epochs, ring, table

KEY = (0x0706050403020100, 0x0F0E0D0C0B0A0908)


def hash_ids(ids: Sequence[bytes]) -> Sequence[int]:
    return engine.hash_ids(KEY, ids)


def member(node: str, *, zone: str = "", weight: float = 1.0, draining: bool = False) -> Member:
    return Member(NodeId(node), 1, f"{node}:7000", zone, weight, draining=draining)


@lru_cache(maxsize=4096)
def _points(names: tuple[bytes, ...]) -> Sequence[int]:
    return hash_ids(names)


def ring_of(members: Iterable[Member], per_node: int = ring.POINTS_PER_NODE) -> ring.Ring:
    """As `ring.build_ring`, with the points of each node hashed only once."""
    return _ring(tuple(sorted((m.node, m.weight) for m in members)), per_node)


@lru_cache(maxsize=512)
def _ring(nodes: tuple[tuple[NodeId, float], ...], per_node: int) -> ring.Ring:
    def hashed(names: Sequence[bytes]) -> Sequence[int]:
        by_node: dict[bytes, list[bytes]] = {}
        for name in names:
            by_node.setdefault(name.partition(b"\0")[0], []).append(name)
        return [point for each in by_node.values() for point in _points(tuple(each))]

    return ring.build_ring([member(node, weight=weight) for node, weight in nodes], hashed, per_node)


def serve(now: PartitionTable) -> PartitionTable:
    """As if every owner had said that it serves."""
    served = tuple(
        replace(a, state=PartitionState.SERVING) if a.state is PartitionState.RECOVERING else a for a in now.partitions
    )
    return replace(now, partitions=served)


def placed(members: Sequence[Member], partitions: int = 64, standbys: int = 1) -> PartitionTable:
    """A table that is as these members want it, served."""
    empty = table.empty_table(partitions, "key")
    return serve(epochs.apply(empty, table.plan(empty, members, ring_of(members), standbys)))
