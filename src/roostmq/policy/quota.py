"""How many partitions each node shall own: its share by weight, rounded down or up. Source: 30-cluster section 1."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor

from roostmq.errors import PlacementError
from roostmq.model import Member, NodeId
from roostmq.policy.ring import points_of


def fair_shares(partitions: int, members: Sequence[Member]) -> dict[NodeId, Fraction]:
    """The exact share of each node that is not draining, in partitions; weights count as they are written.

    Raises PlacementError if there is no such node, or a weight is not a positive number.
    """
    weights = {}
    for member in members:
        if not member.draining:
            points_of(member)  # refuses what is no weight
            weights[member.node] = _exactly(float(member.weight))
    if not weights:
        raise PlacementError("no node is left that may own a partition: let one join, or stop a drain, first")
    total = sum(weights.values())
    return {node: partitions * weight / total for node, weight in weights.items()}


@functools.cache
def _exactly(weight: float) -> Fraction:
    return Fraction(repr(weight))


def quotas(
    partitions: int, members: Sequence[Member], held: Mapping[NodeId, int], pinned: Mapping[NodeId, int] | None = None
) -> dict[NodeId, int]:
    """How many partitions each node that is not draining shall own: its share rounded down or up, P in total.

    Who holds more than the floor is rounded up first, so that nothing moves for the rounding; then who misses most.
    Who has more `pinned` to it than its share owns these and no others; the rest is shared by the others.
    """
    quota: dict[NodeId, int] = {}
    shares = fair_shares(partitions, members)
    while full := [node for node, share in shares.items() if (pinned or {}).get(node, 0) > share]:
        quota |= {node: (pinned or {})[node] for node in full}
        others = [m for m in members if m.node in shares.keys() - quota.keys()]
        shares = fair_shares(partitions - sum(quota.values()), others) if others else {}
    quota |= {node: floor(share) for node, share in shares.items()}
    uneven = [node for node, share in shares.items() if share != floor(share)]
    uneven.sort(key=lambda node: (held.get(node, 0) <= quota[node], quota[node] - shares[node], node))
    for node in uneven[: partitions - sum(quota.values())]:
        quota[node] += 1
    return quota
