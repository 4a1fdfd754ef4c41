"""Which version of records and links is written, and when a newer one may be: so that an upgrade can be taken back.

A release reads the versions from the oldest to the newest of `FORMATS`, the last one and the one before it. What is
*in force* is written, by every node. After the last node has been upgraded an operator finalizes: then the newest
version that all of them read is in force, and a release that does not read it cannot come back.

Source: 30-cluster section 4, issue "Upgrade and way back".
"""

from __future__ import annotations

from collections.abc import Sequence

from roostmq.errors import PlacementError
from roostmq.model import FORMATS, Member


def stranger(in_force: int, formats: tuple[int, int] = FORMATS) -> str | None:
    """Why a release that reads these versions cannot be a node where this one is in force; None: it can."""
    oldest, newest = formats
    if oldest <= in_force <= newest:
        return None
    newer = "a newer" if in_force > newest else "an older"
    return f"the cluster writes format {in_force}, this release reads {oldest} to {newest}: {newer} release is needed"


def finalized(in_force: int, members: Sequence[Member]) -> int:
    """The version that is in force from now on: the newest that all members read.

    Raises PlacementError if there are no members, or one does not read what is in force.
    """
    if not members:
        raise PlacementError("the cluster has no members: start its nodes first")
    for member in members:
        if (why := stranger(in_force, member.formats)) is not None:
            raise PlacementError(f"{member.node}: {why}")
    return max(in_force, min(m.formats[1] for m in members))
