"""Messages that a subscriber is done with.

Contract (docs/formats/durability.md): after a clean stop none of them comes again. A kill may bring those
of the last moment once more, QoS 1 with DUP and of QoS 2 no PUBLISH at all; what was done two seconds before does not come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Running, start
from wire import PUBLISH, Client, unique

KEPT = {"session_expiry": 3600}
MESSAGES = 5
DONE_S = 2.0


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[], Running]]:
    made: list[Running] = []

    def make() -> Running:
        made.append(start(["--port", "0", "--no-admin", "--lanes", "2", "--data", str(tmp_path / "data")]))
        return made[-1]

    yield make
    for running in made:
        for client in running.clients:
            client.socket.close()
        running.stop()


def done(broker: Running, name: str, qos: int) -> Client:
    """A session that outlives its connection has had some messages and answered them in full."""
    client = broker.client(5, name, clean=False, **KEPT)
    client.subscribe((name, qos))
    publisher = broker.client()
    for n in range(MESSAGES):
        publisher.deliver(name, f"{n}", qos)
    for n in range(MESSAGES):
        client.message(name, f"{n}")
    client.ping()
    return client


def again(broker: Running, name: str) -> list[tuple[str, bool]]:
    """What comes when it is back, and whether it is said to be old."""
    client = broker.client(5, name, clean=False, **KEPT)
    assert client.connack.present
    found = []
    while (packet := client.read(0.5)) is not None:
        if packet.kind == PUBLISH:
            found.append((packet.payload.decode(), packet.dup))
    return found


@pytest.mark.parametrize("qos", [1, 2])
def test_nothing_comes_again_after_a_clean_stop(serve: Callable[[], Running], qos: int) -> None:
    broker, name = serve(), unique("done")
    done(broker, name, qos)
    assert broker.stop() == 0
    assert again(serve(), name) == []


@pytest.mark.parametrize("qos", [1, 2])
def test_a_kill_brings_what_was_just_done_with_dup_at_most(serve: Callable[[], Running], qos: int) -> None:
    broker, name = serve(), unique("done")
    done(broker, name, qos)
    broker.process.kill()
    broker.process.wait(10)
    found = again(serve(), name)
    assert all(dup for _, dup in found)
    assert qos == 1 or found == []
    assert [payload for payload, _ in found] == [f"{n}" for n in range(MESSAGES - len(found), MESSAGES)]


@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_done_two_seconds_before_a_kill_does_not_come_again(serve: Callable[[], Running], qos: int) -> None:
    broker, name = serve(), unique("done")
    done(broker, name, qos)
    time.sleep(DONE_S)
    broker.process.kill()
    broker.process.wait(10)
    assert again(serve(), name) == []
