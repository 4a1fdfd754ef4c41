"""A disk that refuses, forgets and loses power, below the real broker: nothing acknowledged is lost (`layer.c`).

Contract (docs/guide/durability.md, "A disk in trouble"): while writes or flushes fail nothing is acknowledged that is
not kept, publishers of version 5 are told 0x97, those of 3.1.1 are not answered, QoS 0 goes on, `/readyz` says so, and
service comes back by itself; what a failed flush covered is never taken as written; after a power cut everything
acknowledged is there once and in order. The long run is `python -m durability.power --cuts 300`.
"""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Running, start
from wire import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Client, Closed

from durability import power
from durability.image import Disk, Inode, Note, notes
from durability.layer import AVAILABLE, Layer

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs Linux and a C compiler")
NAME, TOPIC, FOREVER = "away", "t/1", 0xFFFFFFFF
CALM_S = 3.0


class Bench:
    """One directory on the layer, with one session that is away, and what was acknowledged for it."""

    def __init__(self, folder: Path, lanes: int) -> None:
        self.folder, self.lanes = folder, lanes
        self.layer = Layer(folder, folder / "data")
        self.made: list[Running] = []
        self.acked: list[tuple[bytes, int]] = []
        self.serial = 0

    def start(self, data: Path | None = None) -> Running:
        """On the layer, or without it on another directory."""
        env = self.layer.env if data is None else None
        words = ["--port", "0", "--admin-port", "0", "--lanes", str(self.lanes), "--data", str(data or self.layer.data)]
        self.made.append(start(words, env))
        return self.made[-1]

    def begin(self) -> Running:
        broker = self.start()
        broker.client(5, NAME, clean=False, session_expiry=FOREVER).subscribe((TOPIC, 2))
        self.leave(broker)
        return broker

    def leave(self, broker: Running) -> None:
        broker.clients.pop().disconnect()

    def payload(self, size: int = 0) -> bytes:
        self.serial += 1
        return b"%06d " % self.serial + random.Random(self.serial).randbytes(size)

    def deliver(self, client: Client, qos: int, size: int = 0) -> int:
        """One message, and the code of its answer; noted with the length of the journal after it when accepted."""
        payload = self.payload(size)
        answer = client.deliver(TOPIC, payload, qos)
        assert answer is not None
        if answer.code < 0x80:
            self.acked.append((payload, self.layer.size()))
        return answer.code

    def check(self, broker: Running, place: int | None = None) -> None:
        """The session gets all that was acknowledged (at this length of the journal), in order, each message once."""
        due = [payload for payload, at in self.acked if place is None or at <= place]
        c = broker.client(5, NAME, clean=False, session_expiry=FOREVER)
        assert c.connack is not None and c.connack.present
        got = receive(c, due)
        assert len(set(got)) == len(got), "twice"
        assert got == sorted(got), "in another order"
        missing = [p[:6] for p in due if p not in got]
        assert not missing, f"acknowledged and lost: {missing}, got {len(got)} of {len(due)}"

    def kill(self, broker: Running) -> None:
        broker.process.kill()
        broker.process.wait(20)

    def end(self) -> None:
        self.layer.play("")
        for running in self.made:
            for client in running.clients:
                client.socket.close()
            running.stop()


def receive(c: Client, due: list[bytes]) -> list[bytes]:
    """What comes until nothing more does; patient only while something is missing."""
    got: list[bytes] = []
    while p := c.read(0.3 if set(due) <= set(got) else CALM_S):
        if p.kind == PUBLISH:
            got.append(p.payload)
            c.ack(PUBACK if p.qos == 1 else PUBREC, p.id)
        elif p.kind == PUBREL:
            c.ack(PUBCOMP, p.id)
    return got


@pytest.fixture
def bench(tmp_path: Path, lanes: int) -> Iterator[Bench]:
    made = Bench(tmp_path, lanes)
    yield made
    made.end()


def readiness(broker: Running) -> tuple[int, str]:
    host, port = broker.address("http")
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/readyz", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, "not yet"


def eventually(check: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not check():
        assert time.monotonic() < end, what
        time.sleep(0.05)


# ---- faults


FAULTS = {"write=EIO": "Input/output error", "write=ENOSPC": "No space left", "sync=EIO": "Input/output error"}


@pytest.mark.parametrize("killed", [False, True], ids=["comes-back", "killed"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_refuses(bench: Bench, fault: str, killed: bool) -> None:
    """Nothing is acknowledged meanwhile, everybody is told, QoS 0 goes on; then service again, or a kill: nothing lost."""
    broker = bench.begin()
    first, other, old = broker.client(), broker.client(), broker.client(4)
    for n in range(12):
        assert bench.deliver(first, 1 + n % 2) == 0
    bench.layer.play(fault)
    waits = bench.payload()
    number = first.publish(TOPIC, waits, 1)
    eventually(lambda: readiness(broker)[0] == 503, "/readyz says nothing of the disk")
    reason = json.loads(readiness(broker)[1])["reason"]
    assert "disk" in reason and FAULTS[fault] in reason
    assert [bench.deliver(other, qos) for qos in (1, 2)] == [0x97, 0x97]
    qos0_goes_on(broker)
    old.publish(TOPIC, bench.payload(), 1)
    first.ping()  # and no PUBACK before it
    if not killed:
        with pytest.raises(Closed):
            old.read(30)
        bench.layer.play("")
        assert first.pick(PUBACK, number, 30).code == 0
        bench.acked.append((waits, bench.layer.size()))
        eventually(lambda: readiness(broker)[0] == 200, "/readyz stays 503")
        eventually(lambda: bench.deliver(other, 1) == 0, "refused for ever")
        assert bench.deliver(other, 2) == 0
    bench.kill(broker)
    bench.layer.play("")
    bench.check(bench.start())


def qos0_goes_on(broker: Running) -> None:
    reader, writer = broker.client(), broker.client()
    reader.subscribe(("light", 0))
    writer.publish("light", "on")
    reader.message("light", "on")


def test_short_writes(bench: Bench) -> None:
    """A write that does half of its work is gone on with: nothing is different, for the clients and on the disk."""
    bench.layer.play("short")
    broker = bench.begin()
    client = broker.client()
    for n in range(40):
        assert bench.deliver(client, 1 + n % 2, size=37 * n) == 0
    bench.kill(broker)
    disk = Disk(random.Random(0))
    for note in notes(bench.layer.journal.read_bytes()):
        disk.play(note)
    assert disk.seen["W"] > 80
    assert disk.differs(bench.layer.data) == []
    bench.check(bench.start())


def test_what_a_failed_sync_covered_is_never_taken_as_written(bench: Bench) -> None:
    """Operations fail now and then, and what a failed sync covered is lost for good: no power cut shows that it counted."""
    broker = bench.begin()
    client = broker.client()
    for n in range(24):
        bench.layer.play("write=EIO sync=EIO names=EIO one_in=8" if n % 4 == 3 else "")
        bench.deliver(client, 1 + n % 2, size=700)
    bench.layer.play("")
    eventually(lambda: bench.deliver(client, 1) == 0, "refused for ever")
    bench.kill(broker)
    journal = notes(bench.layer.journal.read_bytes())
    failed = [n.end for n in journal if n.op == "S" and n.error]
    assert failed and len(bench.acked) > 10
    rng = random.Random(1)
    places = [journal[-1].end, *rng.sample([n.end for n in journal if n.end > bench.acked[0][1]], 5)]
    for i, place in enumerate(places):
        left = bench.folder / f"left-{i}"
        power.rebuild(journal, place, rng, None, left)
        again = bench.start(left)
        bench.check(again, place)
        bench.kill(again)


# ---- power cuts


def test_the_directory_itself_outlasts_a_power_cut(bench: Bench) -> None:
    """What was acknowledged is worth nothing if the name of the folder that holds it can go with the power."""
    broker = bench.begin()
    assert bench.deliver(broker.client(), 1) == 0
    disk = Disk(random.Random(0))
    for note in notes(bench.layer.journal.read_bytes()):
        if note.end <= bench.acked[0][1]:
            disk.play(note)
    assert list(disk.parent.safe_names) == [""]


async def test_nothing_acknowledged_is_lost_in_a_power_cut(lanes: int, tmp_path: Path) -> None:
    """Cuts in the first start, under load, in the start after a kill, and in a start after a cut."""
    plan = power.Plan(seed=lanes, cuts=10, shots=6, kills=1, lanes=lanes, rate=150)
    result = await power.run(plan, tmp_path)
    print(result.table())
    assert result.clean, result.table()
    seen = result.checked
    assert seen["cuts"] == 10 and seen["cuts with something unsynced"] > 0
    assert min(seen["demanded at QoS 1"], seen["demanded at QoS 2"]) > 500
    assert seen["session present"] > 100
    assert seen["retained topics looked at"] > 8


# ---- the model of a disk


@dataclass
class Story:
    """A disk with one folder whose name is safe, and what can be left after a cut."""

    steps: list[Note] = field(default_factory=list)

    def add(self, op: str, name: str = "", at: int = 0, data: bytes = b"", fd: int = 5, error: int = 0) -> Story:
        self.steps.append(Note(op, fd, error, at, name, data, len(self.steps) + 1))
        return self

    def outcomes(self) -> set[tuple[tuple[str, bytes | None], ...]]:
        found = set()
        for seed in range(300):
            disk = Disk(random.Random(seed))
            disk.parent.names[""] = disk.parent.safe_names[""] = Inode(folder=True)
            for note in self.steps:
                disk.play(note)
            disk.cut()
            found.add(tuple(sorted((n, raw) for n, raw in disk.files().items() if n)))
        return found


def file(safe: bool = True) -> Story:
    """One file, its name safe or not."""
    made = Story().add("O", "f", 1)
    return made.add("O", "", 4, fd=6).add("S", fd=6) if safe else made


def test_what_was_synced_is_there() -> None:
    assert file().add("W", data=b"one").add("S").outcomes() == {(("f", b"one"),)}


def test_a_name_is_safe_when_its_folder_was_synced() -> None:
    assert file(safe=False).add("W", data=b"one").add("S").outcomes() == {(), (("f", b"one"),)}


def test_what_was_not_synced_is_kept_lost_or_torn_at_sectors() -> None:
    old, new = b"a" * 1024, b"b" * 1024
    story = file().add("W", data=old).add("S").add("W", data=new)
    assert story.outcomes() == {
        (("f", x + y),) for x in (old[:512], new[:512]) for y in (old[:512], new[:512])
    }  # fmt: skip


def test_a_rename_is_one_change() -> None:
    story = file().add("W", data=b"one").add("S").add("R", "f", data=b"g")
    assert story.outcomes() == {(("f", b"one"),), (("g", b"one"),)}


def test_a_later_sync_says_nothing_of_a_failed_one() -> None:
    story = file().add("W", data=b"one").add("S", error=5).add("S")
    assert story.outcomes() == {(("f", raw),) for raw in (b"", b"\0\0\0", b"one")}
