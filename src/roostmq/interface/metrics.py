"""Prometheus metrics from the engine's counters, names with units."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

TEXTS = {
    "bytes_received": "Bytes read from clients.",
    "bytes_sent": "Bytes written to clients.",
    "packets_received": "MQTT packets from clients.",
    "packets_sent": "MQTT packets to clients.",
    "publish_received": "PUBLISH packets from clients.",
    "publish_sent": "PUBLISH packets to clients.",
    "connects": "Clients let in.",
    "connects_refused": "CONNECT packets refused.",
    "disconnects": "Connections ended.",
    "takeovers": "Connections ended because the client connected again.",
    "auth_failures": "Logins with wrong credentials.",
    "malformed": "Packets that break the protocol.",
    "wills_sent": "Wills published.",
    "connections": "Clients connected.",
    "sessions": "Sessions, connected or not.",
    "sessions_persistent": "Sessions that outlive their connection.",
    "subscriptions": "Subscriptions.",
    "retained": "Retained messages.",
    "retained_bytes": "Bytes of retained messages.",
    "queued": "Messages waiting for sessions.",
    "queued_bytes": "Bytes of messages waiting for sessions.",
    "inflight": "Messages sent and not acknowledged.",
    "shared_groups": "Groups of shared subscriptions.",
    "partitions": "Partitions that this node of a cluster has.",
    "partitions_coming": "Partitions on their way to this node: their logs are read, or others have to learn it.",
    "partitions_unsafe": "Partitions that have written something which is not safe yet.",
    "partitions_full": "Partitions whose logs take nothing more until NATS has room.",
    "connections_slowed": "Clients that are not read now, as what they publish is for a node that cannot keep up.",
    "connects_waiting": "CONNECTs that wait for an owner of their sessions' partitions.",
    "publishes_waiting": "Publishes at QoS 1 and 2 that wait for other nodes, or for partitions without an owner.",
    "clients_maximum": "Most clients connected at once since the start.",
    "publish_bytes_received": "Bytes of payload in PUBLISH packets from clients.",
    "publish_bytes_sent": "Bytes of payload in PUBLISH packets to clients.",
    "sessions_expired": "Sessions that have ended by their expiry.",
    "messages_expired": "Messages that have expired before they were delivered.",
    "sockets_accepted": "Sockets accepted.",
    "sockets_refused": "Sockets closed at once because of a bound.",
    "disk_ok": "1 if the disk takes what must be kept, 0 while it does not.",
    "log_bytes": "Bytes of the log on disk, spare segments left out.",
    "log_segments": "Segments of the log on disk.",
    "log_bytes_written": "Bytes written to the log, checkpoints and cleaning included.",
    "log_groups": "Groups written to the log, each with one sync.",
    "log_records": "Records written to the log.",
    "log_appends": "Appends to the cluster's log that NATS has acknowledged.",
    "log_append_bytes": "Bytes of these.",
    "log_append_us": "Microseconds from sending these to their answers; by log_appends: latency.",
    "log_appends_refused": "Appends that found another owner's before them, or a server that had not caught up.",
    "log_appends_unknown": "Appends without an answer in time: what became of them is looked up.",
    "damaged": "Damaged places met on disk; each is named in a log line.",
    "checkpoints": "Checkpoints finished.",
    "checkpoint_running": "1 while a checkpoint of the log is written.",
}
TEXTS |= {f"publish_received_qos{qos}": f"PUBLISH packets with QoS {qos} from clients." for qos in range(3)}
TEXTS |= {f"publish_sent_qos{qos}": f"PUBLISH packets with QoS {qos} to clients." for qos in range(3)}


class Reading(Collector):
    """One reading of the engine's numbers as metric families."""

    def __init__(self, stats: dict[str, Any]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """The families."""
        dropped = CounterMetricFamily(
            "roostmq_dropped_messages", "Messages that somebody did not get.", labels=["reason"]
        )
        for name, n in sorted(self._stats["counters"].items()):
            if name.startswith("dropped_"):
                dropped.add_metric([name.removeprefix("dropped_")], n)
            else:
                yield CounterMetricFamily(f"roostmq_{name}", TEXTS.get(name, name.replace("_", " ")), value=n)
        yield dropped
        for name, n in sorted(self._stats["gauges"].items()):
            yield GaugeMetricFamily(f"roostmq_{name}", TEXTS.get(name, name.replace("_", " ")), value=n)
        busy = CounterMetricFamily(
            "roostmq_lane_busy_seconds", "Time that a lane worked; its rate is the utilisation.", labels=["lane"]
        )
        late = GaugeMetricFamily(
            "roostmq_lane_late_seconds",
            "How late a lane was at worst in the last ten to twenty seconds.",
            labels=["lane"],
        )
        for number, lane in enumerate(self._stats["lanes"]):
            busy.add_metric([str(number)], lane["busy_ns"] / 1e9)
            late.add_metric([str(number)], lane["late_ms"] / 1e3)
        yield busy
        yield late
        yield GaugeMetricFamily(
            "roostmq_uptime_seconds", "Time since the start.", value=self._stats["uptime_ms"] / 1000
        )


def exposition(stats: dict[str, Any]) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Reading(stats))
    return generate_latest(registry)
