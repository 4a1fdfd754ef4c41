"""Who is alive, as the registry shows it: each start of a node renews an entry of its own.

Slow and sure, beside the beats on the links, which are quick: it decides where no majority can, and it finds two
processes that have one name.

Source: 30-cluster section 2.
"""

from __future__ import annotations

import contextlib
import time

from roostmq.errors import ConfigError, StaleError
from roostmq.model import Member, NodeId
from roostmq.store import codec
from roostmq.store.registry import Registry

ALIVE_S = 2.0


class Lease:
    """This node's entry, and when those of all others changed last."""

    def __init__(self, node: NodeId) -> None:
        self.node, self.incarnation = node, 0
        self._renewed_s = 0.0
        self._looking_s = time.monotonic()
        self._seen: dict[NodeId, bytes] = {}
        self._renewed: dict[tuple[NodeId, int], float] = {}
        """When the entry of each start of a node changed last, as this process saw it."""
        self._twin: dict[int, bytes] = {}

    async def renew(self, registry: Registry, nodes: set[NodeId], *, look_for_twin: bool) -> None:
        """Every two seconds: look at all, renew the own one. Raises ConfigError for a twin, UnavailableError."""
        now_s = time.monotonic()
        if now_s < self._renewed_s + ALIVE_S:
            return
        if now_s > self._renewed_s + 3 * ALIVE_S:
            self._looking_s = now_s  # this process stood still, or could not read: nobody can be said to be silent
        for node in nodes | {self.node}:
            entry = await registry.get(f"alive.{node}")
            value = entry.value if entry is not None else b""
            if value and self._seen.get(node) != value:
                self._seen[node] = value
                self._renewed[node, int(codec.unpack(value, "alive")["incarnation"])] = now_s
            if node == self.node:
                if entry is not None and look_for_twin:
                    self._refuse_twin(value)
                mine = codec.pack({"incarnation": self.incarnation, "at": int(now_s * 1000)})
                with contextlib.suppress(StaleError):
                    await registry.replace(f"alive.{node}", mine, entry.revision if entry is not None else 0)
        self._renewed_s = now_s

    def _refuse_twin(self, value: bytes) -> None:
        """Another process with this node's name writes its entry while this one looks."""
        other = codec.unpack(value, "alive")["incarnation"]
        seen, self._twin = self._twin.get(other), {other: value}
        if other != self.incarnation and seen is not None and seen != value:
            text = f"cluster.node: `{self.node}` runs already (incarnation {other}); give each node a name of its own"
            raise ConfigError(text, option="cluster.node")

    def is_over(self, m: Member, lease_s: float) -> bool:
        """This start of the node has not renewed its entry for so long, though this process has looked all the while.

        Another start of it that waits to be let in renews nothing for it. One that was never seen counts from now:
        it may have been let in since this process looked last.
        """
        now_s = time.monotonic()
        seen_s = self._renewed.setdefault((m.node, m.incarnation), now_s)
        return now_s - max(seen_s, self._looking_s) > lease_s
