"""This node leaves its partitions to others while it is slow by itself, if that is allowed.

`roost cluster apply --leave-slow on` allows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.error
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from roostmq.errors import StoreError
from roostmq.model import Member
from roostmq.policy.leaving import WAY_MS_MAX, Leaving, looked, shall_leave, shall_return

if TYPE_CHECKING:
    from roostmq.runtime.cluster import Cluster

ASK_S = 5.0


class Leaver:
    """Looks a few times a minute; never raises."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.state = cluster, Leaving()

    async def look(self) -> None:
        """Drain, come back, or neither."""
        cluster, now_s = self.cluster, time.monotonic()
        names = {m.slot: m for m in cluster.members.nodes}
        ways = [n["way_ms"] for n in cluster.links if n["slot"] in names and n["way_ms"] is not None]
        self.state = looked(self.state, ways, now_s)
        if not self.state.slow and not self.state.left:
            return
        with contextlib.suppress(StoreError):
            allowed = (await cluster.read_wishes()).leave_slow
            if shall_return(self.state, allowed, now_s):
                await self._drain(False)
            elif shall_leave(self.state, cluster.members, cluster.node, allowed, now_s) and await self._is_it_me():
                await self._drain(True)

    async def _drain(self, draining: bool) -> None:
        await self.cluster.change_member(self.cluster.node, draining=draining)
        self.state = replace(self.state, left=draining)
        self.cluster.log.warning("leaves, as its links are slow" if draining else "takes its share again")

    async def _is_it_me(self) -> bool:
        """Are the others quick among themselves? Asked of all that can be asked; nobody: not known."""
        others = [m for m in self.cluster.members.nodes if m.node != self.cluster.node and m.admin]
        told = await asyncio.gather(*(asyncio.to_thread(self._ways_of, m) for m in others))
        ways = [way for each in told for way in each]
        return bool(ways) and max(ways) <= WAY_MS_MAX

    def _ways_of(self, member: Member) -> list[int]:
        """What a member says of its ways to all but this node; nothing if it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{member.admin}/api/v1/cluster", timeout=ASK_S) as answer:
                members: list[dict[str, Any]] = json.load(answer)["members"]
        except (OSError, urllib.error.URLError, ValueError, KeyError):
            return []
        return [m["way_ms"] for m in members if m["node"] != self.cluster.node and m["way_ms"] is not None]
