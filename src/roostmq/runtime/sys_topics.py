"""The `$SYS` topics as mosquitto names them, computed from two readings of the engine's counters. Pure.

A node of a cluster has the same below `$SYS/brokers/NODE/`; the cluster as a whole is below `$SYS/cluster/`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

WINDOWS_MIN = (1, 5, 15)

LOADS = {
    "messages/received": "packets_received",
    "messages/sent": "packets_sent",
    "publish/received": "publish_received",
    "publish/sent": "publish_sent",
    "publish/dropped": "dropped",
    "bytes/received": "bytes_received",
    "bytes/sent": "bytes_sent",
    "sockets": "sockets_accepted",
    "connections": "connects",
}


@dataclass
class SysTopics:
    """Remembers averages and what was published, so that only changes are published again."""

    version: str
    node: str | None = None
    """Name of this node in a cluster."""
    _last: dict[str, int] = field(default_factory=dict)
    _loads: dict[tuple[str, int], float] = field(default_factory=dict)
    _published: dict[str, str] = field(default_factory=dict)

    def update(self, stats: dict[str, Any], elapsed_s: float) -> dict[str, str]:
        """Topics whose value has changed since the last call; `elapsed_s` since then."""
        counters: dict[str, int] = dict(stats["counters"])
        counters["dropped"] = sum(n for name, n in counters.items() if name.startswith("dropped_"))
        topics = self._plain(counters, stats["gauges"], stats["uptime_ms"])
        topics |= self._averages(counters, elapsed_s)
        self._last = counters
        top = "$SYS/broker" if self.node is None else f"$SYS/brokers/{self.node}"
        return self.changed({f"{top}/{topic}": value for topic, value in topics.items()})

    def changed(self, topics: dict[str, str]) -> dict[str, str]:
        """Those of them that differ from what was published last."""
        found = {t: v for t, v in topics.items() if self._published.get(t) != v}
        self._published |= found
        return found

    def _plain(self, c: dict[str, int], g: dict[str, int], uptime_ms: int) -> dict[str, str]:
        connected = g["connections"]
        total = max(g["sessions"], connected)
        values: dict[str, int | str] = {
            "version": f"RoostMQ version {self.version}",
            "uptime": f"{uptime_ms // 1000} seconds",
            "clients/total": total,
            "clients/connected": connected,
            "clients/active": connected,
            "clients/disconnected": total - connected,
            "clients/inactive": total - connected,
            "clients/maximum": g["clients_maximum"],
            "clients/expired": c["sessions_expired"],
            "messages/received": c["packets_received"],
            "messages/sent": c["packets_sent"],
            "messages/stored": g["retained"] + g["queued"],
            "messages/inflight": g["inflight"],
            "store/messages/count": g["retained"] + g["queued"],
            "store/messages/bytes": g["retained_bytes"] + g["queued_bytes"],
            "publish/messages/received": c["publish_received"],
            "publish/messages/sent": c["publish_sent"],
            "publish/messages/dropped": c["dropped"],
            "publish/bytes/received": c["publish_bytes_received"],
            "publish/bytes/sent": c["publish_bytes_sent"],
            "bytes/received": c["bytes_received"],
            "bytes/sent": c["bytes_sent"],
            "subscriptions/count": g["subscriptions"],
            "shared_subscriptions/count": g["shared_groups"],
            "retained messages/count": g["retained"],
        }
        return {topic: str(value) for topic, value in values.items()}

    def _averages(self, counters: dict[str, int], elapsed_s: float) -> dict[str, str]:
        topics = {}
        for topic, name in LOADS.items():
            per_minute = (counters[name] - self._last.get(name, 0)) * 60 / max(elapsed_s, 0.001)
            for minutes in WINDOWS_MIN:
                keep = math.exp(-elapsed_s / (60 * minutes))
                load = self._loads.get((topic, minutes), 0.0) * keep + per_minute * (1 - keep)
                self._loads[topic, minutes] = load
                topics[f"load/{topic}/{minutes}min"] = f"{load:.2f}"
        return topics


def cluster_topics(members: list[str], states: list[str], versions: tuple[int, int]) -> dict[str, str]:
    """`$SYS/cluster/`: nodes, partitions by state, versions of members and table."""
    counts = {state: states.count(state) for state in ("serving", "moving", "recovering")}
    values: dict[str, str | int] = {
        "members/count": len(members),
        "members/names": " ".join(sorted(members)),
        "members/version": versions[0],
        "table/version": versions[1],
        "partitions/count": len(states),
        **{f"partitions/{state}": n for state, n in counts.items()},
    }
    return {f"$SYS/cluster/{topic}": str(value) for topic, value in values.items()}
