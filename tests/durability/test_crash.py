"""Nothing acknowledged is lost by `kill -9`: the short run, and the proof that its checker bites.

Issue 4, "What must show" 1: 0 acknowledged lost, 0 doubled at QoS 2, 0 reordered. The long run is
`python -m durability.crash --kills 100` (see crash.py). A seed may be given in ROOST_CRASH_SEED.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from random import Random

import pytest

from durability import crash
from durability.book import Book, Reader, Sub
from durability.link import Client
from durability.publishers import Habits, Publisher
from durability.site import Site
from durability.subscribers import Habits as Manner
from durability.subscribers import Subscriber

SEED = int(os.environ.get("ROOST_CRASH_SEED", "1"))
KILLS = {1: 2, 3: 3}


async def test_nothing_acknowledged_is_lost(lanes: int, tmp_path: Path) -> None:
    """5 kills in all; the numbers below show that there was something to lose."""
    plan = crash.Plan(seed=SEED, kills=KILLS[lanes], lanes=lanes, between_s=(0.6, 1.6))
    result = await crash.run(plan, tmp_path)
    print(result.table())
    assert result.clean, result.table()
    seen = result.checked
    assert seen["kills"] >= KILLS[lanes]
    assert seen["clean stops"] == 1
    assert min(seen["demanded at QoS 1"], seen["demanded at QoS 2"]) > 1000
    assert seen["demanded of a group"] > 100
    assert seen["repeated by publishers"] > 0
    assert min(seen["SUBACK"], seen["UNSUBACK"]) > 20
    assert seen["session present"] > 50
    assert seen["retained topics looked at"] >= 8


async def test_a_broker_that_forgets_is_found_out(tmp_path: Path) -> None:
    """The same run against `--memory` and one kill: lost messages, lost sessions, nothing wrong with the harness."""
    plan = crash.Plan(seed=SEED, kills=1, lanes=1, memory=True, between_s=(1.0, 1.5))
    result = await crash.run(plan, tmp_path)
    assert result.count("lost") > 20, result.table()
    assert result.count("session") > 10, result.table()
    assert result.count("payload", "protocol", "broker", "identifier") == 0, result.table()
    assert all(f"seed {SEED}" in v.line for v in result.violations)


# ---- the checker without a broker


class Stage:
    """A book with one reader of `t/#` (QoS 2), and a clock that ticks by itself."""

    def __init__(self, *more: Sub) -> None:
        self.book, self.now = Book(7), 0.0
        self.reader = Reader("reader", True, [Sub("t/#", 2, 1, 0.0, 0.5), *more])
        self.book.readers.append(self.reader)
        self.book.starts.append(0.0)

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    def send(self, topic: str = "t/1", qos: int = 2, code: int | None = 0):
        m = self.book.publish("pub", topic, qos, self.tick())
        if code is not None:
            self.book.acknowledge(m, code, self.tick())
        return m

    def hand(self, m, qos: int = 2, numbers: tuple[int, ...] = (1,), reader: Reader | None = None) -> None:
        self.book.hand_over(reader or self.reader, m, qos, list(numbers), self.tick())

    def kinds(self) -> list[str]:
        self.book.compare(self.tick())
        return [v.kind for v in self.book.violations]


def test_what_came_once_and_in_order_is_fine() -> None:
    s = Stage()
    for qos in (1, 2, 2):
        s.hand(s.send(qos=qos), qos)
    assert s.kinds() == []
    assert s.book.checked["demanded at QoS 2"] == 2


def test_lost() -> None:
    s = Stage()
    s.send(), s.send(code=None), s.send(code=0x97), s.send("elsewhere")
    assert s.kinds() == ["lost"]
    assert "never reached reader" in s.book.violations[0].line


def test_not_demanded_before_the_suback_nor_after_unsubscribe() -> None:
    s = Stage()
    s.reader.subs[0].acked = 10.0
    s.send()
    s.reader.subs.append(Sub("t/1", 1, 2, 0.0, 0.5, leaving=9.0))
    assert s.kinds() == []


def test_doubled() -> None:
    s = Stage()
    m, again = s.send(), s.send(qos=1)
    s.hand(m), s.hand(m), s.hand(again, 1), s.hand(again, 1)
    assert s.kinds() == ["doubled"]


def test_reordered() -> None:
    s = Stage()
    first, second, other = s.send(), s.send(), s.send("t/2")
    s.hand(second), s.hand(other), s.hand(first)
    assert s.kinds() == ["reordered"]


def test_repeated_in_a_later_life_for_a_reader_that_is_newer() -> None:
    """It subscribed between two messages that went with the power: their publisher repeats both."""
    s = Stage()
    first, sub = s.send(code=None), s.reader.subs[0]
    sub.asked, sub.acked = s.tick(), None
    second = s.send(code=None)
    s.hand(second, 1)
    sub.acked = s.tick()
    s.book.starts.append(s.tick())
    s.hand(first, 1), s.hand(second, 1)
    assert s.kinds() == []
    s.hand(s.send(), 2), s.book.starts.append(s.tick())
    older, newer = s.send(), s.send()
    s.book.starts.append(s.tick())
    s.hand(newer), s.hand(older)
    assert s.kinds() == ["reordered"]


def test_forgotten_and_resurrected_subscriptions() -> None:
    s = Stage()
    probe = s.book.publish("probe", "t/1", 2, s.tick(), probe=True)
    s.book.acknowledge(probe, 0, s.tick())
    s.reader.subs.append(Sub("gone", 2, 2, 0.0, 0.5, leaving=1.0, left=1.5))
    s.hand(s.send("gone"), 2, (2,))
    assert s.kinds() == ["subscription", "subscription"]


def test_options_of_subscriptions() -> None:
    s = Stage()
    s.hand(s.send(), 1), s.hand(s.send(), 2, ()), s.hand(s.send(), 2, (1, 9))
    assert s.kinds() == ["subscription"] * 3


def test_a_group_takes_each_message_once() -> None:
    s = Stage()
    members = [Reader(f"m{i}", False, [Sub("$share/g/t/#", 2, 0, 0.0, 0.5)]) for i in range(2)]
    s.book.readers[:] = members
    once, twice, _ = s.send(), s.send(), s.send()
    s.hand(once, reader=members[0]), s.hand(twice, reader=members[0]), s.hand(twice, reader=members[1])
    assert s.kinds() == ["doubled", "lost"]


@pytest.mark.parametrize(("shown", "fine"), [(0, False), (1, False), (2, True), (3, True), (None, False)])
def test_retained(shown: int | None, fine: bool) -> None:
    """The last acknowledged value (number 2), or a later one that was not acknowledged (number 3)."""
    book = Book(7)
    sent = []
    for i in range(4):
        sent.append(book.publish("keeper", "r/1", 1, float(i), retain=True))
        if i < 3:
            book.acknowledge(sent[-1], 0, i + 0.5)
    found = {} if shown is None else {"r/1": sent[shown].payload(b"x")}
    book.check_retained(found, {"r/1": book.retained_from("r/1")}, set(), 9.0)
    assert [v.kind for v in book.violations] == ([] if fine else ["retained"])


def test_a_cleared_topic_stays_empty() -> None:
    book = Book(7)
    first = book.publish("keeper", "r/1", 1, 0.0, retain=True)
    clear = book.publish("keeper", "r/1", 1, 1.0, retain=True, empty=True)
    for m in (first, clear):
        book.acknowledge(m, 0, 2.0)
    book.check_retained({}, {"r/1": 2}, set(), 9.0)
    assert book.violations == []
    book.check_retained({"r/1": first.payload(b"x")}, {"r/1": 2}, set(), 9.0)
    assert [v.kind for v in book.violations] == ["retained"]


def test_a_damaged_payload() -> None:
    s = Stage()
    raw = s.send().payload(b"filler")
    assert s.book.identify("reader", "t/1", raw, 9.0) is not None
    assert s.book.identify("reader", "t/2", raw, 9.0) is None
    assert s.book.identify("reader", "t/1", raw[:-1] + b"?", 9.0) is None
    assert [v.kind for v in s.book.violations] == ["payload", "payload"]


class Lying:
    """A broker of a few lines that answers each packet with what a test wants."""

    def __init__(self, answers: dict[int, bytes]) -> None:
        self.answers = answers

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readexactly(2):
                await reader.readexactly(head[1])
                writer.write(self.answers.get(head[0] >> 4, b""))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def found_out(self, client: Client) -> list[str]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        client.site.address = server.sockets[0].getsockname()[:2]
        task = asyncio.create_task(client.run())
        await asyncio.sleep(0.4)
        task.cancel()
        client.drop()
        client.owed()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.05)
        return sorted({v.kind for v in client.book.violations})


async def test_lies_about_the_session_and_reused_identifiers(tmp_path: Path) -> None:
    """Session Present without a session; one identifier for two messages before PUBREL."""
    book = Book(7)
    book.starts.append(0.0)
    two = b""
    for _ in range(2):
        body = b"\0\3t/1\0\5" + book.publish("p", "t/1", 2, 1e12).payload(b"x")
        two += b"\x34" + bytes([len(body)]) + body
    client = Subscriber(Site(tmp_path, None, 1), book, Random(1), "s", 4, [("t/#", 2)], Manner())
    lying = Lying({1: b"\x20\2\1\0", 8: b"\x90\3\0\1\2" + two})
    assert await lying.found_out(client) == ["identifier", "session", "unacknowledged"]


async def test_a_missing_acknowledgement(tmp_path: Path) -> None:
    book = Book(7)
    publisher = Publisher(Site(tmp_path, None, 1), book, Random(1), "p", 4, Habits([("t/1", 1)], drop_share=0))
    assert await Lying({1: b"\x20\2\0\0"}).found_out(publisher) == ["unacknowledged"]
