"""Streams of NATS that one server leads alone are spread, one at a time, when all is calm (policy/leaders.py)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from roostmq.errors import StoreError
from roostmq.model import PartitionState
from roostmq.policy.leaders import Led, crowded, hand_over
from roostmq.store.nats_kv import NatsRegistry
from roostmq.store.streams import leaders, step_down

if TYPE_CHECKING:
    from roostmq.runtime.cluster import Cluster

LOOK_S = 20.0
CALM_S = 15.0


class Spreader:
    """Looks a few times a minute; never raises."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self._looked_s = cluster, time.monotonic()
        self._refused = ""

    async def look(self) -> None:
        """Who leads what, for the doctor; the acting node hands one over if that is needed."""
        now_s, cluster = time.monotonic(), self.cluster
        if now_s < self._looked_s + LOOK_S or not isinstance(cluster.registry, NatsRegistry):
            return
        self._looked_s = now_s
        try:
            found = await leaders(cluster.registry.client, cluster.options.name, cluster.streams)
            cluster.crowded = crowded(found)
            if cluster.acts() and len(found) > cluster.streams and self._is_calm(now_s):
                await self._hand_over(cluster.registry, found)
        except StoreError as problem:
            if str(problem) != self._refused:
                self._refused = str(problem)
                cluster.log.warning("leaders of streams cannot be spread", error=self._refused)

    async def _hand_over(self, registry: NatsRegistry, found: list[Led]) -> None:
        step = hand_over(found)
        if step is not None:
            self.cluster.log.info("another leader", stream=step[0], server=step[1])
            await step_down(registry.client, *step)

    def _is_calm(self, now_s: float) -> bool:
        cluster = self.cluster
        rows = cluster.table.partitions if cluster.table is not None else ()
        at_rest = all(a.state is PartitionState.SERVING for a in rows)
        return at_rest and now_s > cluster.changed_s + CALM_S and cluster.log_state["state"] == "ready"
