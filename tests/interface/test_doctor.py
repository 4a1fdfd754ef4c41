"""What `roost cluster doctor` names, from what a node tells: each finding says what, where, and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from roostmq.interface.doctor import findings
from roostmq.runtime.appends import SAMPLES, Appends


def well() -> dict[str, Any]:
    """Three nodes with nothing wrong."""
    member = {"weight": 1.0, "partitions": 2, "heard_ms": 10, "answered_ms": 20, "way_ms": 1, "around": None}
    return {
        "node": "n1",
        "age_s": 0.1,
        "log": {"state": "ready", "why": [], "appends_10s": {"count": 100, "mean_ms": 3.0, "unanswered": 0}},
        "members": [member | {"node": "n1", "way_ms": None}, *(member | {"node": n} for n in ("n2", "n3"))],
        "partitions": [{"partition": p, "owner": "n1", "state": "serving"} for p in range(24)],
        "crowded": None,
        "notes": [],
        "lanes_late_ms": [0, 12],
    }


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert findings(well()) == []


@pytest.mark.parametrize(
    ("change", "severity", "where", "what"),
    [
        ({"log": {"state": "ready", "why": [], "appends_10s": {"count": 9, "mean_ms": 480.0, "unanswered": 0}}},
         "warning", "NATS", "n1's appends took 480 ms each"),
        ({"log": {"state": "ready", "why": [], "appends_10s": {"count": 0, "mean_ms": 0.0, "unanswered": 4}}},
         "warning", "NATS", "4 had no answer in time"),
        ({"log": {"state": "away", "why": ["no server"], "appends_10s": {"count": 0, "mean_ms": 0, "unanswered": 0}}},
         "error", "NATS", "no server"),
        ({"notes": [{"event": "not_kept", "why": "no space"}]}, "warning", "n1", "no space"),
        ({"crowded": ("nats-2", 9)}, "warning", "NATS", "server nats-2 leads 9 of the streams"),
        ({"lanes_late_ms": [3, 740]}, "warning", "n1", "a lane was 740 ms late"),
        ({"age_s": 9.0}, "error", "registry", "9 s ago"),
        ({"notes": [{"event": "log_damaged", "partition": 3, "why": "it ends too early"}]},
         "error", "partition 3", "it ends too early"),
        ({"notes": [{"event": "log_full", "partition": 3, "full": True}, {"event": "log_full", "partition": 4, "full": True},
                    {"event": "log_full", "partition": 4, "full": False}]},
         "error", "NATS", "the logs of 1 partitions of n1 are full: [3]"),
        ({"partitions": [{"partition": p, "owner": "n1" if p else None, "state": "serving"} for p in range(24)]},
         "error", "table", "1 partitions have no owner"),
        ({"partitions": [{"partition": p, "owner": "n1", "state": "serving"} for p in range(16)]},
         "warning", "balance", "16 partitions for 3 nodes"),
    ],
)  # fmt: skip
def test_it_is_named(change: dict[str, Any], severity: str, where: str, what: str) -> None:
    found = findings(well() | change)
    assert [(f["severity"], f["where"]) for f in found] == [(severity, where)]
    assert what in found[0]["what"]
    assert found[0]["do"]


def test_a_member_that_is_silent_or_behind_a_cut() -> None:
    told = well()
    told["members"][1] |= {"heard_ms": 2_000}
    told["members"][2] |= {"around": "n2"}
    texts = [f["what"] for f in findings(told)]
    assert texts == ["was heard 2.0 s ago by n1", "n1 does not reach it: what they say to each other goes through n2"]


def test_a_member_that_is_heard_and_never_answers() -> None:
    """Otherwise nobody would know why nothing is decided any more."""
    told = well()
    told["members"][1] |= {"answered_ms": 14_000}
    found = findings(told)
    assert [(f["severity"], f["where"]) for f in found] == [("error", "n2")]
    assert "no answer for 14 s" in found[0]["what"]


def test_a_slow_way_is_named_and_where_it_is() -> None:
    """One way: the node at its end. All ways: this node's own network, not everybody else's."""
    told = well()
    told["members"][2] |= {"way_ms": 230}
    found = findings(told)
    assert [(f["where"], f["what"]) for f in found] == [("n3", "the way from n1 to it and back takes 230 ms")]
    told["members"][1] |= {"way_ms": 190}
    found = findings(told)
    assert [(f["where"], f["what"]) for f in found] == [
        ("n1", "the way to every other node and back takes 190 ms or more")
    ]


def test_latency_is_that_of_the_last_samples() -> None:
    seen = Appends()
    assert seen.figures() == {"count": 0, "mean_ms": 0.0, "unanswered": 0}
    for n in range(20):  # a long good time, then half a second for each of ten
        late = max(0, n - (20 - SAMPLES))
        seen.note({"log_appends": 10 * n, "log_append_us": 10 * n * 1_000 + 10 * late * 500_000})
    figures = seen.figures()
    assert figures["count"] == 10 * (SAMPLES - 1)
    assert figures["mean_ms"] > 250
