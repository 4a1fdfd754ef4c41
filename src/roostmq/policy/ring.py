"""The ring: who is near a client, and what other ways of dividing clients cost.

A client id hashes to a point of a circle of 64 bit. A node lies on it at V points (*virtual nodes*, V = 128 times its
weight). Walking clockwise from the beginning of a partition, one meets the nodes in an order that is the partition's
*preference list*: it differs from partition to partition, and when a node comes or goes only that node appears in it or
disappears, the others keep their order. That is all the ring decides here; `table.py` disposes.

Beside it stand the ways that the articles compare, as `Ranges`: by the alphabet (all of "CLIENT..." on one node), equal
ranges of the hash (half of all clients move when the fourth node comes), the ring with one point for each node, and the
ring with virtual nodes (a quarter). The hash is the engine's: it is handed in as `Hash`, there is no other.

Source: 30-cluster section 1; consistent hashing: Karger et al. 1997, virtual nodes: DeCandia et al. 2007.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from roostmq.errors import PlacementError
from roostmq.model import Member, NodeId, PartitionTable

Hash = Callable[[Sequence[bytes]], Sequence[int]]
"""Names to points of the ring, 0 to 2^64 - 1: `engine.hash_ids` with the cluster's key."""
SPACE = 1 << 64
"""How many points the ring has."""
POINTS_PER_NODE = 128
"""V: points of a node of weight 1. The largest share of a ring of ten nodes is then about 1.15 of the average."""
POINTS_MAX = 100 * POINTS_PER_NODE
"""More than this no node has, whatever its weight."""
LETTERS = b"0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Ring:
    """The points of all nodes, ascending, and beside each point its node."""

    points: tuple[int, ...]
    owners: tuple[NodeId, ...]
    size: int
    """How many nodes there are."""

    def walk(self, point: int) -> Iterator[NodeId]:
        """The nodes in the order in which a clockwise walk meets them, each once, all of them."""
        met: set[NodeId] = set()
        first = bisect_left(self.points, point)
        for index in range(first, first + len(self.points)):
            node = self.owners[index % len(self.owners)]
            if node not in met:
                met.add(node)
                yield node
                if len(met) == self.size:
                    return


def points_of(member: Member, per_node: int = POINTS_PER_NODE) -> int:
    """How many points a node has: at least one.

    Raises PlacementError for a weight that is not a positive number.
    """
    if not 0 < member.weight < float("inf"):
        raise PlacementError(
            f"node {member.node}: weight {member.weight} is not a positive number; `drain` empties a node"
        )
    return min(POINTS_MAX, max(1, round(per_node * member.weight)))


def build_ring(members: Iterable[Member], hash_ids: Hash, per_node: int = POINTS_PER_NODE) -> Ring:
    """The ring of these nodes; their order does not matter.

    A point's name is `node NUL number`: no client id, topic or group contains NUL, so nobody can aim at a point.
    """
    nodes = [(m.node, points_of(m, per_node)) for m in members]
    names = [f"{node}\0{i}".encode() for node, count in nodes for i in range(count)]
    owners = [node for node, count in nodes for _ in range(count)]
    placed = sorted(zip(hash_ids(names), owners, strict=True))
    return Ring(tuple(p for p, _ in placed), tuple(node for _, node in placed), len(nodes))


def start_of(partition: int, roots: int) -> int:
    """The first point of a partition; `roots` is how many there were at the beginning, a power of two.

    A root is the point's top bits. Each further bit of the number, the lowest first, says upper half.
    """
    width = SPACE // roots
    start, halves = partition % roots * width, partition // roots
    while halves:
        width //= 2
        start += width * (halves & 1)
        halves >>= 1
    return start


def partition_of(point: int, roots: int, count: int) -> int:
    """The partition that has a point, if there are `count` of them: linear hashing (Litwin 1980)."""
    width = SPACE // roots
    found, step = point // width, roots
    while found + step < count:
        width //= 2
        found += step * (point // width & 1)
        step *= 2
    return found


def parent_of(partition: int, roots: int) -> int:
    """The partition off which this one was cut; a root is its own parent."""
    rounds = partition // roots
    return partition - roots * (1 << rounds.bit_length() - 1) if rounds else partition


def preferences(ring: Ring, partitions: int) -> tuple[tuple[NodeId, ...], ...]:
    """By partition: all nodes, the nearest first."""
    return tuple(tuple(ring.walk(start_of(p, partitions))) for p in range(partitions))


@dataclass(frozen=True, slots=True)
class Ranges:
    """A way to divide 2^64 points: range i begins at `starts[i]` (ascending, the first is 0) and is `owners[i]`'s."""

    starts: tuple[int, ...]
    owners: tuple[NodeId | None, ...]

    def owner(self, point: int) -> NodeId | None:
        """Whose the point is."""
        return self.owners[bisect_right(self.starts, point) - 1]


def alphabet_point(client_id: bytes) -> int:
    """Where an id stands in the dictionary, as a point: its first twelve characters, 0 to 9 then a to z.

    Capitals count as small letters, everything else as the last one. This is the first article's example of how not
    to do it: with `equal_ranges` of these points each node gets a part of the alphabet.
    """
    rank = 0
    for char in client_id[:12].lower().ljust(12, b"0"):
        found = LETTERS.find(char)
        rank = rank * len(LETTERS) + (found if found >= 0 else len(LETTERS) - 1)
    return rank * SPACE // len(LETTERS) ** 12


def equal_ranges(nodes: Sequence[NodeId]) -> Ranges:
    """The article's first division: N equal ranges of the hash in the order of the nodes."""
    return Ranges(tuple(-(-i * SPACE // len(nodes)) for i in range(len(nodes))), tuple(nodes))


def ring_ranges(ring: Ring) -> Ranges:
    """The ring as it is usually meant: a point belongs to the first node that it meets clockwise."""
    starts = (0, *(point + 1 for point in ring.points))
    return Ranges(starts, (*ring.owners, ring.owners[0]))


def table_ranges(table: PartitionTable) -> Ranges:
    """What the partition table says."""
    placed = sorted((start_of(p, table.roots), p) for p in range(len(table.partitions)))
    owners = (table.partitions[p].owner for _, p in placed)
    return Ranges(tuple(start for start, _ in placed), tuple(owners))


def counts(ranges: Ranges, points: Sequence[int]) -> Counter[NodeId | None]:
    """How many of some points, which are in ascending order, each node owns."""
    found: Counter[NodeId | None] = Counter()
    ends = [bisect_left(points, start) for start in ranges.starts[1:]] + [len(points)]
    begin = 0
    for owner, end in zip(ranges.owners, ends, strict=True):
        found[owner] += end - begin
        begin = end
    return found


def moved(before: Ranges, after: Ranges, points: Sequence[int]) -> int:
    """How many of some points, which are in ascending order, have another owner after than before."""
    starts = sorted({*before.starts, *after.starts})
    ends = [bisect_left(points, start) for start in starts[1:]] + [len(points)]
    changed, begin = 0, 0
    for start, end in zip(starts, ends, strict=True):
        if end > begin and before.owner(start) != after.owner(start):
            changed += end - begin
        begin = end
    return changed


def imbalance(found: Counter[NodeId | None], nodes: Sequence[NodeId]) -> float:
    """Largest over average, 1.0 at best, of nodes of equal weight; 1.0 if there is nothing to divide."""
    total = sum(found[node] for node in nodes)
    return max(found[node] for node in nodes) * len(nodes) / total if total else 1.0
