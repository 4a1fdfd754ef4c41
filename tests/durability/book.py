"""The book: what was sent, acknowledged, subscribed and received, and the verdict on it.

Contract: pure, no sockets and no clock of its own (times are handed in, all from one clock). It knows nothing of the
broker. A message is *demanded* of a reader when the broker acknowledged it to its publisher (PUBACK, or PUBREC below
0x80) and a matching subscription was acknowledged before the message was first sent and has not been given up since.
It is *legitimate* when a matching subscription may have existed at any time from its first sending on.
QoS 2 is exactly once for a receiver that follows section 4.3.3; order is per publisher, topic and reader, by first
sight; a `$share` group is read as one reader without order. A message that nobody was asked to keep for this reader may
come late when it is repeated or in a later life of the broker: a reader that subscribed in the middle of unsafe QoS 1 messages has seen the
later ones, then the power went, and their publisher repeats them all.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

KINDS = (
    "lost", "doubled", "reordered", "session", "subscription", "retained", "unacknowledged", "identifier", "payload",
    "protocol", "broker",
)  # fmt: skip
LINES_MAX = 12


@lru_cache(maxsize=100_000)
def matches(pattern: str, topic: str) -> bool:
    """Does this filter (with or without `$share/group/`) want this topic?"""
    if pattern.startswith("$share/"):
        pattern = pattern.split("/", 2)[2]
    want, have = pattern.split("/"), topic.split("/")
    for i, level in enumerate(want):
        if level == "#":
            return True
        if i >= len(have) or level not in ("+", have[i]):
            return False
    return len(want) == len(have)


@dataclass(slots=True, eq=False)
class Message:
    """One PUBLISH that a checking client sent, however often it was repeated."""

    publisher: str
    topic: str
    number: int
    qos: int
    sent: float
    empty: bool = False
    acked: float | None = None
    refused: int = 0
    probe: bool = False
    repeated: bool = False
    """Its publisher has sent it again on another connection."""

    def payload(self, filler: bytes) -> bytes:
        """What goes over the wire; the checksum tells a damaged message from a wrong one."""
        if self.empty:
            return b""
        head = f"{self.publisher}|{self.topic}|{self.number}|{zlib.crc32(filler):08x}|"
        return head.encode() + filler


@dataclass(slots=True)
class Sub:
    """A subscription from the SUBSCRIBE on: when it was asked for, granted, given up, gone."""

    filter: str
    qos: int
    number: int
    asked: float
    acked: float | None = None
    leaving: float | None = None
    left: float | None = None
    tries: int = 0
    wiped: bool = False

    def may_bring(self, m: Message) -> bool:
        return not self.wiped and (self.left is None or m.sent < self.left) and matches(self.filter, m.topic)

    def must_bring(self, m: Message) -> bool:
        held = self.acked is not None and self.acked < m.sent and self.leaving is None and self.left is None
        return held and matches(self.filter, m.topic)


@dataclass
class Reader:
    """What one subscribing client holds and what its application was handed."""

    name: str
    v5: bool
    subs: list[Sub] = field(default_factory=list)
    seen: Counter[Message] = field(default_factory=Counter)
    last: dict[tuple[str, str], Message] = field(default_factory=dict)

    @property
    def group(self) -> str:
        found = next((s.filter for s in self.subs if s.filter.startswith("$share/")), "")
        return found.split("/")[1] if found else ""


@dataclass
class Violation:
    """One broken promise: kind, who, what, when."""

    kind: str
    line: str


class Book:
    """Everything that the clients of one run know."""

    def __init__(self, seed: int, start: float = 0.0) -> None:
        self.seed, self.start = seed, start
        self.messages: dict[tuple[str, str, int], Message] = {}
        self.topics: dict[str, list[Message]] = defaultdict(list)
        self.kept: dict[str, list[Message]] = defaultdict(list)
        self.readers: list[Reader] = []
        self.starts: list[float] = []
        self.violations: list[Violation] = []
        self.checked: Counter[str] = Counter()

    # ---- what happens

    def when(self, t: float | None) -> str:
        """Seconds since the start of the run, and in which life of the broker."""
        return "never" if t is None else f"{t - self.start:.3f}s/life {bisect_right(self.starts, t)}"

    def violate(self, kind: str, now: float, line: str) -> None:
        assert kind in KINDS
        self.violations.append(Violation(kind, f"{kind}: {line} [at {self.when(now)}, seed {self.seed}]"))

    def describe(self, m: Message) -> str:
        ack = f"refused 0x{m.refused:02x}" if m.refused else f"acknowledged {self.when(m.acked)}"
        return f"{m.publisher} #{m.number} on {m.topic} (QoS {m.qos}, sent {self.when(m.sent)}, {ack})"

    def publish(self, publisher: str, topic: str, qos: int, now: float, *, retain: bool = False, empty: bool = False,
                probe: bool = False) -> Message:  # fmt: skip
        """A new message is about to be sent for the first time."""
        number = len(self.topics[topic]) + 1
        m = Message(publisher, topic, number, qos, now, empty, probe=probe)
        self.messages[publisher, topic, number] = m
        self.topics[topic].append(m)
        if retain:
            self.kept[topic].append(m)
        self.checked[f"sent at QoS {qos}"] += 1
        return m

    def acknowledge(self, m: Message, code: int, now: float) -> None:
        """PUBACK or PUBREC came."""
        if code >= 0x80:
            m.refused = code
            self.checked["refused"] += 1
        else:
            m.acked = now
            self.checked[f"acknowledged at QoS {m.qos}"] += 1

    def identify(self, reader: str, topic: str, payload: bytes, now: float) -> Message | None:
        """Which message is this? None (and a violation) when nobody sent it so."""
        parts = payload.split(b"|", 4)
        m = None
        if len(parts) == 5 and parts[2].isdigit():
            m = self.messages.get((parts[0].decode(), parts[1].decode(), int(parts[2])))
        if m is None or m.topic != topic or f"{zlib.crc32(parts[4]):08x}".encode() != parts[3]:
            self.violate("payload", now, f"{reader} got on {topic} what nobody sent: {payload[:60]!r}")
            return None
        return m

    def hand_over(self, r: Reader, m: Message, qos: int, numbers: list[int], now: float) -> None:
        """The reader's application gets a message."""
        self.checked["handed over"] += 1
        may = [s for s in r.subs if s.may_bring(m)]
        must = [s for s in may if s.must_bring(m)]
        if not may:
            self.violate("subscription", now, f"{r.name} got {self.describe(m)} without any subscription to it")
        else:
            low, high = (min(m.qos, max((s.qos for s in some), default=0)) for some in (must, may))
            if not low <= qos <= high:
                self.violate("subscription", now, f"{r.name} got {self.describe(m)} at QoS {qos}, not {low} to {high}")
            known, needed = {s.number for s in may}, {s.number for s in must}
            if r.v5 and not needed <= set(numbers) <= known:
                self.violate("subscription", now, f"{r.name} got {self.describe(m)} with identifiers {numbers}")
        r.seen[m] += 1
        if r.seen[m] > 1:
            self.checked["repeated at QoS 1"] += qos == 1
            if qos == 2:
                self.violate("doubled", now, f"{r.name} was handed {self.describe(m)} {r.seen[m]} times")
        elif not r.group:
            before = r.last.get((m.publisher, m.topic))
            if before is None or before.number < m.number:
                r.last[m.publisher, m.topic] = m
            elif must or not (m.repeated or bisect_right(self.starts, m.sent) != bisect_right(self.starts, now)):
                self.violate("reordered", now, f"{r.name} first saw {self.describe(m)} after #{before.number}")
            else:
                self.checked["taken again, and new to this reader"] += 1

    # ---- retained

    def retained_from(self, topic: str) -> int:
        """Number of the last acknowledged change of this topic; 0: none."""
        return max((m.number for m in self.kept[topic] if m.acked is not None), default=0)

    def retained_due(self, since: dict[str, int]) -> set[str]:
        """Topics that must have a value, whichever of the possible changes was the last."""
        return {t for t, n in since.items() if n and not any(m.empty for m in self.kept[t] if m.number >= n)}

    def check_retained(self, found: dict[str, bytes], since: dict[str, int], skip: set[str], now: float) -> None:
        """`found` was answered to a SUBSCRIBE sent when `since` was acknowledged; `skip` had live messages."""
        for topic, least in since.items():
            if topic in skip:
                continue
            self.checked["retained topics looked at"] += 1
            possible = [m for m in self.kept[topic] if m.number >= least]
            if topic not in found:
                if least and not any(m.empty for m in possible):
                    self.violate("retained", now, f"{topic} is empty, must be {self.describe(possible[0])} or later")
                continue
            m = self.identify("the retained reader", topic, found[topic], now)
            if m is not None and m not in possible:
                wanted = self.describe(possible[0]) + (" (cleared)" if possible[0].empty else "")
                self.violate("retained", now, f"{topic} has {self.describe(m)}, must be {wanted} or later")
        for topic in found.keys() - since.keys():
            self.violate("retained", now, f"{topic} has a value that nobody set")

    # ---- the end

    def compare(self, now: float) -> None:
        """After the drain: what was demanded and did not come."""
        groups: dict[str, list[Reader]] = defaultdict(list)
        for r in self.readers:
            if r.group:
                groups[r.group].append(r)
            else:
                self._compare(r.name, [r], now)
        for name, members in groups.items():
            self._compare(f"group {name}", members, now)

    def _compare(self, name: str, readers: list[Reader], now: float) -> None:
        subs = [s for r in readers for s in r.subs]
        for topic, messages in self.topics.items():
            mine = [s for s in subs if matches(s.filter, topic)]
            for m in messages if mine else ():
                if m.empty or m.acked is None or not any(s.must_bring(m) for s in mine):
                    continue
                self.checked["demanded at QoS 2" if m.qos == 2 else "demanded at QoS 1"] += 1
                self._weigh(name, readers, mine, m, now)

    def _weigh(self, name: str, readers: list[Reader], mine: list[Sub], m: Message, now: float) -> None:
        took = [r.name for r in readers if r.seen[m]]
        if not took:
            since = ", ".join(self.when(s.acked) for s in mine)
            if m.probe:
                self.violate("subscription", now, f"{name} (subscribed {since}) has forgotten {m.topic}")
            else:
                self.violate("lost", now, f"{self.describe(m)} never reached {name} (subscribed {since})")
        elif len(took) > 1 and min(m.qos, max(s.qos for s in mine)) == 2:
            self.violate("doubled", now, f"{name}: {self.describe(m)} reached {' and '.join(took)}")
        if len(readers) > 1:
            self.checked["demanded of a group"] += 1


@dataclass
class Result:
    """The verdict: what was checked, and every broken promise."""

    seed: int
    words: str
    seconds: float
    checked: Counter[str]
    violations: list[Violation]

    def count(self, *kinds: str) -> int:
        return sum(v.kind in (kinds or KINDS) for v in self.violations)

    @property
    def clean(self) -> bool:
        return not self.violations

    def lines(self, most: int = LINES_MAX) -> Iterable[str]:
        """The first violations of each kind."""
        for kind in KINDS:
            found = [v.line for v in self.violations if v.kind == kind]
            yield from found[:most]
            if len(found) > most:
                yield f"{kind}: and {len(found) - most} more"

    def table(self) -> str:
        rows = [("seed", self.seed), ("seconds", round(self.seconds, 1)), *sorted(self.checked.items())]
        rows += [(f"VIOLATED {kind}" if self.count(kind) else f"violated: {kind}", self.count(kind)) for kind in KINDS]
        wide = max(len(name) for name, _ in rows)
        return "\n".join([self.words, *(f"  {name:<{wide}}  {value:>9}" for name, value in rows), *self.lines()])
