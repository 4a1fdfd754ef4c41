"""Words for what the engine knows: why a client has, or has not, got its messages. Pure.

Input is the `why` event of docs/formats/door.md; output is lines for people. Texts of clients are shown with everything
that is not printable escaped.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from roostmq.testing.observer import matches

NEVER_S = 2**32 - 1
ROWS_MAX = 20
EPOCH_MIN_MS = 10**12  # September 2001

REASONS = {
    "queue_full": "its queue was full (limits.queue_messages_max)",
    "queue_bytes": "its queue was full (limits.queue_bytes_max)",
    "slow_reader": "QoS 0, and it did not read fast enough",
    "too_large": "larger than it takes (its Maximum Packet Size)",
    "expired": "expired before it could be delivered",
    "refused": "it refused the message",
    "session_ended": "its session ended first",
    "retained_full": "no room for more retained messages (limits.retained_max)",
    "group_full": "the queue of the shared group was full",
    "not_authorized": "the access rules do not let it have the message",
    "total_full": "all queues together were full (limits.queue_total_..._max)",
    "disk": "the disk took nothing at that time",
    "damaged": "the message was damaged on disk",
}


def explain(why: dict[str, Any], topic: str | None) -> list[str]:
    """Lines that say what became of a client's messages, of one topic or of all."""
    drops = [d for d in why["drops"] if topic is None or d["topic"] == topic]
    lines = [_headline(why)]
    if not why["found"]:
        lines += _dropped(drops)
        return lines
    if topic is not None:
        lines.append(_subscribed(why, topic))
        waiting = sum(t["queued"] for t in why["topics"] if t["topic"] == topic)
        lines += ["", *columns([("queued", waiting), *_totals(drops)])]
    else:
        lines.append(f"{len(why['subscriptions'])} subscription(s): {_list(why['subscriptions'])}")
        rows = [
            ("queued", why["queued"]),
            ("sent, not acknowledged", why["sent_unacknowledged"]),
            ("acknowledged or otherwise finished", why["finished"]),
        ]
        lines += ["", *columns([*rows, *_totals(drops)])]
        if why["topics"]:
            lines += [
                "",
                "queued by topic:",
                *columns([(plain(t["topic"]), t["queued"]) for t in _most(why["topics"])]),
            ]
    return lines + _dropped(drops)


def _headline(why: dict[str, Any]) -> str:
    name = f"client `{plain(why['client_id'])}`"
    if not why["found"]:
        return f"{name} has no session: it never connected here, or its session has ended, and nothing is queued for it"
    if why["connected"]:
        return f"{name} is connected"
    expiry_s = why["expiry_s"]
    kept = "for ever" if expiry_s >= NEVER_S else f"for {duration(expiry_s)} after its connection"
    return f"{name} is away; its session is kept {kept}"


def _subscribed(why: dict[str, Any], topic: str) -> str:
    found = [f for f in why["subscriptions"] if matches(bare(f), topic)]
    if not found:
        return f"no subscription of it matches `{plain(topic)}`: nothing more is queued for it from there"
    return f"`{plain(topic)}` is matched by {_list(found)}"


def bare(filter_: str) -> str:
    """A topic filter without `$share/GROUP/`."""
    return filter_.split("/", 2)[2] if filter_.startswith("$share/") and filter_.count("/") > 1 else filter_


def _totals(drops: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    expired = sum(d["reason"] == "expired" for d in drops)
    return [("dropped", len(drops) - expired), ("expired", expired)]


def _dropped(drops: Sequence[dict[str, Any]]) -> list[str]:
    """The reasons with their numbers, then the latest entries of the ledger."""
    if not drops:
        return []
    reasons = Counter(d["reason"] for d in drops).most_common()
    lines = ["", "why (as far as the drop ledger remembers):"]
    lines += columns([(REASONS.get(reason, reason.replace("_", " ")), n) for reason, n in reasons])
    latest = drops[-ROWS_MAX:]
    rows = [(moment(d["at_ms"]), f"QoS {d['qos']}", plain(d["topic"]), d["reason"]) for d in latest]
    return [*lines, "", f"the latest {len(latest)} of {len(drops)}:", *columns(rows)]


def _most(topics: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(topics, key=lambda t: -t["queued"])[:ROWS_MAX]


def _list(texts: Sequence[str]) -> str:
    shown = ", ".join(f"`{plain(text)}`" for text in texts[:5])
    return (shown or "none") + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


def columns(rows: Sequence[Sequence[object]]) -> list[str]:
    """A table without a frame; numbers stand right."""
    texts = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    numbers = [all(isinstance(cell, int) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numbers, strict=True)).rstrip()
        for row in texts
    ]


def plain(text: str) -> str:
    """A client's text, safe on a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def moment(at_ms: int) -> str:
    """A wall clock in milliseconds since 1970 as local date and time; a smaller number is the engine's own time."""
    if at_ms < EPOCH_MIN_MS:
        return f"engine time {at_ms // 1000} s"
    return datetime.datetime.fromtimestamp(at_ms / 1000).isoformat(" ", "seconds")


def duration(seconds: int) -> str:
    """Seconds in the largest unit that has no rest."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds and seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1024
    raise AssertionError
