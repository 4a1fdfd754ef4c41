"""Where data is put and cannot be: read-only, another user's, no inodes left; and what is said of a damaged body.

Contract (issue 4, "Faults"), black box: a directory that cannot be written is refused by its name and not touched; without
inodes nothing is acknowledged that is not kept, QoS 0 goes on, and service returns by itself; damage is named in the log,
in the metric, and to the one who asks why. Mounts and other users need root: without it these tests are skipped, and say so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Running, start
from wire import Client

from durability.test_faults import KEPT, serve

__all__ = ["serve"]
BODY = bytes(range(256)) * 8
BIG = 900_000


def words(data: Path) -> list[str]:
    return [sys.executable, "-m", "roostmq", "run", "--port", "0", "--no-admin", "--data", str(data)]


def run_on(data: Path, *before: str) -> tuple[int, str]:
    """A broker that must end by itself: exit code, what it said."""
    done = subprocess.run([*before, *words(data)], capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert "ready" not in done.stdout
    return done.returncode, done.stderr


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def fill(serve: Callable[..., Running], data: Path) -> None:
    """A session that is away, with ten messages."""
    broker = serve(data)
    broker.client(5, "away", clean=False, **KEPT).subscribe(("t", 2))
    publisher = broker.client()
    for n in range(10):
        publisher.deliver("t", BODY + b"%d" % n, 1 + n % 2)
    for client in broker.clients:
        client.socket.close()
    assert broker.stop() == 0


def numbers(client: Client, wait_s: float = 2.0) -> list[int]:
    """What comes, by its number."""
    got: list[int] = []
    while (message := client.read(wait_s)) is not None:
        client.stash.insert(0, message)
        payload = client.message("t").payload
        assert payload.startswith(BODY)
        got.append(int(payload[len(BODY) :]))
        wait_s = 0.5
    return got


def test_a_read_only_file_system(serve, tmp_path):
    data = tmp_path / "data"
    fill(serve, data)
    before = snapshot(data)
    mount("--bind", str(data), str(data))
    try:
        mount("-o", "remount,ro,bind", str(data))
        code, said = run_on(data)
    finally:
        subprocess.run(["umount", str(data)], check=True)
    assert code > 0
    assert str(data) in said
    assert "ead-only" in said, said
    assert snapshot(data) == before
    client = serve(data).client(5, "away", clean=False, **KEPT)
    assert numbers(client) == list(range(10)), "writable again, all is there"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter."""
    folder = Path(tempfile.mkdtemp(prefix="roost-place-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_another_users_directory(serve, open_folder):
    """Root may write anywhere, so the broker runs as somebody else."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can run a broker as another user, with setpriv")
    other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    probe = [*other, sys.executable, "-c", "import roostmq._engine"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("another user cannot run this Python or this package")
    data = open_folder / "data"
    fill(serve, data)
    before = snapshot(data)
    code, said = run_on(data, *other)
    assert code > 0
    assert str(data) in said
    assert "ermission denied" in said
    assert snapshot(data) == before
    client = serve(data).client(5, "away", clean=False, **KEPT)
    assert numbers(client) == list(range(10))


# ---- no inodes


@pytest.fixture
def few_inodes(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=200m,nr_inodes=64", "none", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def take_inodes(folder: Path) -> list[Path]:
    taken: list[Path] = []
    while True:
        path = folder / f"ballast{len(taken)}"
        try:
            path.touch()
        except OSError:
            return taken
        taken.append(path)


def answer_to(publisher: Client, n: int, wait_s: float) -> int | None:
    """The code of the answer to one large message; None when none comes for now."""
    number = publisher.publish("t", b"%d " % n + bytes(BIG), 1)
    answer = publisher.read(wait_s)
    assert answer is None or (answer.kind, answer.id) == (4, number)
    return None if answer is None else answer.code


def test_no_inodes_and_inodes_again(few_inodes, serve):
    """A new segment cannot be made: 0x97, QoS 0 goes on; then it can, and every acknowledged message is there."""
    data = few_inodes / "data"
    broker = serve(data)
    broker.client(5, "away", clean=False, **KEPT).subscribe(("t", 1))
    publisher, second, reader = broker.client(), broker.client(), broker.client()
    reader.subscribe(("light", 0))
    taken = take_inodes(few_inodes)
    assert taken
    kept, n = [], 0
    while (code := answer_to(publisher, n, 3.0)) == 0:
        kept.append(n)
        n += 1
        assert n < 80, "a segment holds 36 of these, and no other can be made"
    assert code is None, "the first one was taken when the disk was well: it waits for its answer"
    assert [answer_to(second, 1000 + i, 10.0) for i in range(3)] == [0x97] * 3
    second.publish("light", b"on")
    assert reader.message("light").payload == b"on"
    for path in taken:
        path.unlink()
    answer = publisher.read(30.0)
    assert answer is not None
    assert (answer.kind, answer.code) == (4, 0), "it is written when there is room"
    kept.append(n)
    assert answer_to(second, n + 1, 10.0) == 0
    kept.append(n + 1)
    for client in broker.clients:
        client.socket.close()
    assert broker.stop() == 0
    client = serve(data).client(5, "away", clean=False, **KEPT)
    got: list[int] = []
    while len(got) < len(kept) and (message := client.read(5.0)) is not None:
        client.stash.insert(0, message)
        got.append(int(client.message("t").payload.partition(b" ")[0]))
    assert got == kept
    client.quiet(0.2)


# ---- what is said of damage


def test_a_damaged_body_is_named_in_log_metric_and_ledger(serve, tmp_path):
    """One message of ten is damaged: nine come in order, and three places say so."""
    data = tmp_path / "data"
    fill(serve, data)
    (segment,) = [p for p in sorted((data / "log").glob("*.seg")) if BODY + b"5" in p.read_bytes()][:1]
    at = segment.read_bytes().index(BODY + b"5") + 100
    with segment.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    broker = start(["--port", "0", "--admin-port", "0", "--data", str(data)])
    try:
        client = broker.client(5, "away", clean=False, **KEPT)
        assert numbers(client) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
        admin = next(address for name, address in broker.listening if name == "http")
        with urllib.request.urlopen(f"http://{admin}/metrics", timeout=5) as answer:
            metrics = answer.read().decode()
        (line,) = [line for line in metrics.splitlines() if line.startswith("roostmq_damaged_total ")]
        assert float(line.split()[1]) >= 1
    finally:
        for c in broker.clients:
            c.socket.close()
        assert broker.stop() == 0
    named = [json.loads(line) for line in broker.log if '"damaged"' in line and segment.name in line]
    assert named, broker.log
