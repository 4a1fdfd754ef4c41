"""A node whose way to every other one is slow gives its partitions away for a while, if operators allow that.

It is its own network or its machine, not NATS and not the others: these must be quick among themselves, or a network
that is slow everywhere would empty one node after another. One node at a time; who was asked to drain by somebody does
not come back by itself.

Source: 30-cluster section 6.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from roostmq.model import Members, NodeId

WAY_MS_MAX = 100
"""There and back; a link that takes longer is slow."""
SLOW_S = 10.0
"""So long it must have been slow before it leaves."""
WELL_S = 60.0
"""And so long well before it comes back."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """What a node knows of itself."""

    slow: bool = False
    since_s: float = 0.0
    """Since when it is as `slow` says."""
    left: bool = False
    """It drains because it was slow."""


def is_slow(ways_ms: Collection[int]) -> bool:
    """Are all ways from here slow, and more than one, so that it is this end of them?"""
    return len(ways_ms) > 1 and min(ways_ms) > WAY_MS_MAX


def looked(state: Leaving, ways_ms: Collection[int], now_s: float) -> Leaving:
    """After a look at the links."""
    slow = is_slow(ways_ms)
    return state if slow == state.slow else replace(state, slow=slow, since_s=now_s)


def shall_leave(state: Leaving, members: Members, node: NodeId, allowed: bool, now_s: float) -> bool:
    """Should it drain now, if the others are quick among themselves?"""
    calm = not any(m.draining for m in members.nodes) and len(members.nodes) > 2
    return allowed and calm and state.slow and now_s - state.since_s >= SLOW_S and members.find(node) is not None


def shall_return(state: Leaving, allowed: bool, now_s: float) -> bool:
    """Should it take its share again?"""
    return state.left and (not allowed or (not state.slow and now_s - state.since_s >= WELL_S))
