"""How the cluster's log has answered lately, from the engine's counters: a slow disk under NATS is seen here first."""

from __future__ import annotations

from collections import deque
from typing import Any

SAMPLE_S = 2.0
SAMPLES = 6


class Appends:
    """Samples of the last ten seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int, int]] = deque(maxlen=SAMPLES)

    def note(self, counters: dict[str, Any]) -> None:
        """The counters as they are now; every `SAMPLE_S`."""
        names = ("log_appends", "log_append_us", "log_appends_unknown")
        appends, us, unknown = (int(counters.get(name, 0)) for name in names)
        self._samples.append((appends, us, unknown))

    def figures(self) -> dict[str, float]:
        """Appends that were acknowledged, their mean latency, and those that had no answer in time."""
        first, last = (self._samples[0], self._samples[-1]) if self._samples else ((0, 0, 0), (0, 0, 0))
        count = last[0] - first[0]
        mean_ms = round((last[1] - first[1]) / 1000 / max(1, count), 1)
        return {"count": count, "mean_ms": mean_ms, "unanswered": last[2] - first[2]}
