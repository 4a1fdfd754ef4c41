"""What goes wrong with files: a directory in use, no permission, flipped bits, lost and cut files, a full disk.

Contract (issue 4, "Recovery", "Disk full", "Faults"), black box: a directory in use is refused with the pid; what is
damaged is named in the log with the word `damaged` and is never a reason not to serve the rest; after a cut or a flip
each message that comes is whole and in order; with a full disk nothing is acknowledged that is not kept, publishers of
version 5 are told 0x97, and service returns by itself when there is space.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Running, start
from wire import PUBACK, Client, Closed

from durability.book import Book
from durability.link import Client as Checking
from durability.publishers import Habits, Publisher
from durability.site import Site
from durability.subscribers import Habits as Manner
from durability.subscribers import Subscriber

SESSIONS, MESSAGES = 8, 12
KEPT = {"session_expiry": 3600}
DISK_CONFIG = "[log]\nconnection_messages = false\n[limits]\nqueue_bytes_max = 1000000000\n"
_serial = itertools.count()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start a broker on a directory; all are ended at the end."""
    made: list[Running] = []

    def make(data: Path, lanes: int = 1) -> Running:
        running = start(["--port", "0", "--no-admin", "--lanes", str(lanes), "--data", str(data)])
        made.append(running)
        return running

    yield make
    for running in made:
        for client in running.clients:
            client.socket.close()
        running.stop()


def refused(data: Path) -> str:
    """The broker does not start here; what it says."""
    command = [sys.executable, "-m", "roostmq", "run", "--port", "0", "--no-admin", "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode > 0, done.stdout
    assert "ready" not in done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


# ---- who may open it


def test_a_directory_in_use_is_refused_with_the_pid(serve, tmp_path):
    first = serve(tmp_path / "data")
    said = refused(tmp_path / "data")
    assert re.search(rf"\b{first.process.pid}\b", said), said
    first.client().ping()
    assert first.stop() == 0
    serve(tmp_path / "data").client().ping()


def test_the_lock_of_a_killed_broker_is_no_lock(serve, tmp_path):
    first = serve(tmp_path / "data")
    first.process.kill()
    first.process.wait(10)
    serve(tmp_path / "data").client().ping()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write where modes forbid it")
def test_a_directory_without_permission(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir(mode=0o500)
    assert str(folder) in refused(folder)


def test_a_file_in_place_of_the_directory(tmp_path):
    path = tmp_path / "data"
    path.write_text("mine")
    assert str(path) in refused(path)
    assert path.read_text() == "mine"


# ---- what is in it


@dataclass
class Filled:
    """A directory with offline sessions, their queues, and retained messages."""

    data: Path
    sessions: list[str] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)


def qos_of(i: int) -> int:
    return 1 + i % 2


def fill(serve: Callable[..., Running], data: Path, lanes: int = 1) -> Filled:
    """Each message is sent when the one before is acknowledged, so each is a write of its own; then a clean stop."""
    broker, filled = serve(data, lanes), Filled(data)
    for i in range(SESSIONS):
        name = f"f{next(_serial)}"
        filled.sessions.append(name)
        filled.topics.append(f"{name}/topic")
        client = broker.client(5 - i % 2, name, clean=False, **(KEPT if i % 2 == 0 else {}))
        client.subscribe((f"{name}/topic", 2))
        client.disconnect()
    publisher = broker.client()
    for n in range(MESSAGES):
        for topic in filled.topics:
            publisher.deliver(topic, f"{topic} {n}", qos_of(n))
    for topic in filled.topics:
        publisher.deliver(f"kept/{topic}", f"kept {topic}", 1, retain=True)
    publisher.disconnect()
    assert broker.stop() == 0
    return filled


@dataclass
class Found:
    """What of it is still there."""

    sessions: int = 0
    messages: int = 0
    retained: int = 0

    @property
    def whole(self) -> bool:
        return self == Found(SESSIONS, SESSIONS * MESSAGES, SESSIONS)


def take(broker: Running, filled: Filled) -> Found:
    """Everything that comes must be what was sent, at most once and in order."""
    found = Found()
    for i, (name, topic) in enumerate(zip(filled.sessions, filled.topics, strict=True)):
        client = broker.client(5 - i % 2, name, clean=False, **(KEPT if i % 2 == 0 else {}))
        assert client.connack is not None
        found.sessions += client.connack.present
        last = -1
        wait = 5.0 if client.connack.present else 0.3
        while last < MESSAGES - 1:
            try:
                message = client.read(wait)
                if message is None:
                    break
                client.stash.insert(0, message)
                message = client.message(topic)
            except Closed as error:
                raise AssertionError(f"{name} was cut off: {error}") from None
            word, _, number = message.payload.decode().partition(" ")
            assert word == topic
            assert int(number) > last, f"{name}: {number} after {last}"
            assert message.qos == qos_of(int(number))
            last, wait = int(number), 1.0
            found.messages += 1
        client.quiet(0.05)
        client.disconnect()
    return found


def take_retained(broker: Running, filled: Filled) -> int:
    client, got = broker.client(), set()
    client.subscribe(("kept/#", 1))
    while len(got) < SESSIONS and (message := client.read(1.0)) is not None:
        topic = message.topic.removeprefix("kept/")
        assert topic in filled.topics
        assert message.payload.decode() == f"kept {topic}"
        got.add(topic)
    client.drop()
    return len(got)


def serves(broker: Running) -> None:
    """A newcomer with a session of its own is served in full."""
    topic = f"new/{next(_serial)}"
    reader = broker.client(5, f"r{next(_serial)}", clean=False, **KEPT)
    assert reader.subscribe((topic, 2)).codes == [2]
    for qos in (1, 2):
        answer = broker.client().deliver(topic, f"{qos}", qos)
        assert answer is not None
        assert answer.code == 0
        assert reader.message(topic).payload == b"%d" % qos
    reader.disconnect()


def check(serve: Callable[..., Running], filled: Filled, lanes: int = 1) -> tuple[Found, str]:
    """Start on it, look, serve, stop; what was found, and the log."""
    broker = serve(filled.data, lanes)
    found = take(broker, filled)
    found.retained = take_retained(broker, filled)
    serves(broker)
    for client in broker.clients:
        client.socket.close()
    assert broker.stop() == 0
    return found, "".join(broker.log)


def damage(log: str) -> list[str]:
    """Lines that name something damaged; the line of the start, which counts, is no such line."""
    return [line for line in log.splitlines() if "damaged" in line and '"level": "info"' not in line]


def test_any_number_of_lanes_opens_the_same_data(serve, tmp_path):
    filled = fill(serve, tmp_path / "data", 1)
    copy = tmp_path / "copy"
    shutil.copytree(filled.data, copy)
    for data, lanes in ((filled.data, 3), (copy, 2)):
        found, log = check(serve, Filled(data, filled.sessions, filled.topics), lanes)
        assert found.whole, found
        assert not damage(log)


# ---- damage


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """One filled directory, copied by each test that damages it."""
    made: list[Running] = []

    def make(data: Path, lanes: int) -> Running:
        made.append(start(["--port", "0", "--no-admin", "--lanes", str(lanes), "--data", str(data)]))
        return made[-1]

    return fill(make, tmp_path_factory.mktemp("template") / "data", 2)


@pytest.fixture
def filled(template: Filled, tmp_path: Path) -> Filled:
    copy = tmp_path / "data"
    shutil.copytree(template.data, copy)
    return Filled(copy, template.sessions, template.topics)


def files(data: Path) -> list[Path]:
    """Files with something other than zeros in them; the lock says nothing once its owner is gone."""
    every = sorted(p for p in data.rglob("*") if p.is_file() and p.name != "lock")
    return [p for p in every if p.read_bytes().strip(b"\0")]


def log_files(data: Path) -> list[Path]:
    """The largest files hold the messages."""
    found = files(data)
    largest = max(p.stat().st_size for p in found)
    return [p for p in found if p.stat().st_size * 2 >= largest]


def flip(path: Path, rng: random.Random) -> str:
    """One bit, between the first and the last byte that is not zero."""
    raw = path.read_bytes()
    first, end = len(raw) - len(raw.lstrip(b"\0")), len(raw.rstrip(b"\0"))
    at, bit = rng.randrange(first, end), rng.randrange(8)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([raw[at] ^ 1 << bit]))
    return f"bit {bit} of byte {at} of {path.name} ({end} bytes in use)"


@pytest.mark.parametrize("seed", range(8))
def test_a_bit_flipped_in_the_log(serve, filled, seed):
    """All is there, or the log says what is damaged, and at least half of the rest is delivered."""
    rng = random.Random(seed)
    what = flip(rng.choice(log_files(filled.data)), rng)
    found, log = check(serve, filled)
    assert found.whole or damage(log), f"{what}: {found} without a word"
    assert found.messages >= SESSIONS * MESSAGES / 2, f"{what}: {found}"
    assert found.sessions >= SESSIONS / 2, f"{what}: {found}"


@pytest.mark.parametrize("seed", range(3))
def test_a_bit_flipped_in_a_small_file(serve, filled, seed):
    """It starts, or (the identity of the data) refuses with the file's name; set right, all is there."""
    rng = random.Random(seed)
    small = [p for p in files(filled.data) if p not in log_files(filled.data)]
    if not small:
        pytest.skip("the directory has no small files")
    path = small[seed % len(small)]
    whole = path.read_bytes()
    what = flip(path, rng)
    try:
        broker = serve(filled.data)
    except AssertionError as refusal:
        assert path.name in str(refusal), f"{what}: {refusal}"
        assert "Traceback" not in str(refusal)
        path.write_bytes(whole)
        found, _ = check(serve, filled)
    else:
        serves(broker)
        assert broker.stop() == 0
        found, _ = check(serve, filled)
    assert found.whole, f"{what}: {found}"


HEAVY = 60


def add_heavy(serve: Callable[..., Running], data: Path) -> None:
    """A queue of 54 MB, more than one segment holds."""
    broker = serve(data)
    broker.client(4, "heavy", clean=False).subscribe(("heavy", 1))
    publisher = broker.client()
    for _ in range(HEAVY):
        publisher.deliver("heavy", bytes(900_000), 1)
    for client in broker.clients:
        client.socket.close()
    assert broker.stop() == 0


def take_heavy(serve: Callable[..., Running], data: Path) -> tuple[int, str]:
    """How many of the large messages come, and the log: bodies are read when a client comes."""
    broker, got = serve(data), 0
    client = broker.client(4, "heavy", clean=False)
    while got < HEAVY and client.read(2.0) is not None:
        got += 1
    client.drop()
    assert broker.stop() == 0
    return got, "".join(broker.log)


@pytest.mark.parametrize("restarted", [False, True], ids=["one-life", "restarted"])
@pytest.mark.parametrize("nth", [0, -1], ids=["first", "last"])
def test_a_deleted_segment(serve, tmp_path, nth, restarted):
    """What is missing must be said; without the last one, what was written before it is there."""
    filled = fill(serve, tmp_path / "data")
    add_heavy(serve, filled.data)
    if restarted:
        assert serve(filled.data).stop() == 0
    segments = [p for p in files(filled.data) if p.suffix != ".spare" and p.stat().st_size >= 1 << 20]
    assert len(segments) > 1, "the log has one file only"
    segments[nth].unlink()
    found, log = check(serve, filled)
    heavy, more = take_heavy(serve, filled.data)
    what = f"{segments[nth].name} is gone: {found}, {heavy} large messages"
    assert damage(log + more) or (found.whole and heavy == HEAVY), f"{what}, and not a word"
    assert nth == 0 or found.whole, what


@pytest.mark.parametrize("seed", range(3))
def test_a_truncated_last_file(serve, filled, seed):
    """What lies before the cut is there: each queue is a beginning of what it was."""
    path = log_files(filled.data)[-1]
    used = len(path.read_bytes().rstrip(b"\0"))
    cut = random.Random(seed).randrange(used // 2, used)
    os.truncate(path, cut)
    found, _ = check(serve, filled)
    assert found.messages, f"{path.name} cut to {cut} of {used}: {found}"


# ---- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160m", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class Tolerant:
    """Clients that know that the disk may be full."""

    def told(self, code: int) -> None:
        """Every reason is a reason."""


class Filler(Tolerant, Publisher):
    """A publisher of large messages, slow enough that the space that comes back lasts for seconds."""


class Waiter(Tolerant, Subscriber):
    """A subscriber that is away until the drain."""


async def until(what: Callable[[], bool], within_s: float, word: str) -> None:
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end, f"not within {within_s} s: {word}"
        await asyncio.sleep(0.05)


async def clients_of(site: Site, book: Book) -> tuple[list[Publisher], list[Subscriber]]:
    def own() -> random.Random:
        return random.Random(next(_serial))

    away = Manner(online_s=(0.5, 0.5), offline_s=(1e9, 1e9))
    readers: list[Subscriber] = [Waiter(site, book, own(), f"w{v}", v, [("d/#", 2)], away) for v in (4, 5)]
    made: list[Publisher] = []
    for name, version, qos in (("v5-1", 5, 1), ("v5-2", 5, 2), ("v4-1", 4, 1), ("v4-2", 4, 2)):
        habits = Habits([(f"d/{name}", qos)], window=8, burst=4, pause_s=0.05, drop_share=0, big_share=1.0)
        made.append(Filler(site, book, own(), name, version, habits))
    return made, readers


@pytest.mark.timeout(400)
async def test_a_full_disk_and_space_again(small_disk, tmp_path, lanes):
    """Filled under load: 0x97 for version 5, QoS 0 goes on; then space, and service without a hand; nothing lost."""
    site = Site(tmp_path, small_disk / "data", lanes, DISK_CONFIG)
    book = Book(0, time.monotonic())
    book.starts = site.starts
    await site.start()
    publishers, readers = await clients_of(site, book)
    everyone: list[Checking] = [*readers, *publishers]
    tasks = [asyncio.create_task(c.run()) for c in readers]
    await until(lambda: book.checked["SUBACK"] == 2, 10, "SUBACK")
    await until(lambda: book.checked["subscriber went offline"] == 2, 10, "subscribers go away")
    assert site.address is not None
    with Client(site.address, client_id="keeper", session_expiry=1000) as keeper:
        keeper.subscribe(("full", 1))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(80 << 20))  # comes back for certain, however fast the log takes the rest
    tasks += [asyncio.create_task(c.run()) for c in publishers]
    try:
        await asyncio.sleep(0.5)
        await asyncio.to_thread(fill_up, ballast)
        await asyncio.to_thread(told_that_it_is_full, site.address)
        refusals = {m.refused for m in book.messages.values()} - {0}
        assert refusals <= {0x97}, refusals
        await asyncio.to_thread(qos0_goes_on, site.address)
        ballast.unlink()
        before = book.checked["acknowledged at QoS 1"], book.checked["acknowledged at QoS 2"]
        await until(lambda: book.checked["acknowledged at QoS 1"] > before[0] + 5, 100, "PUBACK again")
        await until(lambda: book.checked["acknowledged at QoS 2"] > before[1] + 5, 100, "PUBREC again")
        for c in everyone:
            c.draining = True
        calm_s = 1.0
        await until(
            lambda: all(c.settled() for c in everyone) and time.monotonic() - site.heard > calm_s, 100, "the drain"
        )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for c in everyone:
            c.drop()
        await asyncio.sleep(0.05)
        code = await site.stop()
    for c in everyone:
        c.owed()
    book.compare(time.monotonic())
    broken = [v.line for v in book.violations if "CONNACK 0x" not in v.line]
    assert not broken, "\n".join(broken[:20])
    assert code == 0
    assert min(book.checked["demanded at QoS 1"], book.checked["demanded at QoS 2"]) > 20


def told_that_it_is_full(address: tuple[str, int]) -> None:
    """What was under way when the disk was found full waits for space, answers behind it too; who comes later is told."""
    answer, end = None, time.monotonic() + 150
    while answer is None or not answer.code:
        assert time.monotonic() < end, "nobody is told that the disk is full"
        time.sleep(0.05)
        with Client(address) as publisher:
            publisher.send(publisher.publish_bytes("full", "x", qos=1, number=1))
            answer = publisher.read(2)
    assert (answer.kind, answer.id, answer.code) == (PUBACK, 1, 0x97)


def fill_up(path: Path) -> None:
    """Take all the space that is left."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def qos0_goes_on(address: tuple[str, int]) -> None:
    reader, writer = Client(address), Client(address)
    with reader, writer:
        reader.subscribe(("light", 0))
        writer.publish("light", "on")
        reader.message("light", "on")
