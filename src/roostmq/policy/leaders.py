"""Which NATS server leads which stream, and which of them should: one that leads them all stalls all when it dies.

NATS elects, and never spreads: whoever was up longest ends up with everything. A stream whose leader dies takes nothing
for 4 to 9 s; one whose leader steps down, for some hundred milliseconds at most. So one is handed over now and then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

SPARE = 1
"""A server may lead so many more than its share: leaders that are nearly even are left alone."""


@dataclass(frozen=True, slots=True)
class Led:
    """A stream, and the servers that have it."""

    stream: str
    leader: str
    others: tuple[str, ...]
    """Copies that have everything, and could lead."""


def crowded(found: Sequence[Led]) -> tuple[str, int] | None:
    """The server that leads too many streams, and how many; None: they are spread."""
    count = Counter(led.leader for led in found)
    servers = set(count).union(*(led.others for led in found))
    if not servers:
        return None
    most = max(count, key=lambda server: (count[server], server))
    return (most, count[most]) if count[most] > -(-len(found) // len(servers)) + SPARE else None


def hand_over(found: Sequence[Led]) -> tuple[str, str] | None:
    """A stream and the server that shall lead it from now on; None: leave it."""
    full = crowded(found)
    if full is None:
        return None
    count = Counter(led.leader for led in found)
    ways = [(count[to], led.stream, to) for led in found if led.leader == full[0] for to in led.others]
    if not ways:
        return None
    held, stream, to = min(ways)
    return (stream, to) if held + 1 < full[1] else None
