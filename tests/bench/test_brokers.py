"""The brokers of the benchmarks: found or left out with a line, pinned, answering, ended. Nothing is built here."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import brokers
import hosting
from wire import Client

CORE = max(os.sched_getaffinity(0))
STUBBORN = """
import signal, socket, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    client, _ = server.accept()
    client.recv(100)
    client.sendall(bytes([0x20, 2, 0, int(sys.argv[2])]))
    client.close()
"""


def peer(key: str) -> brokers.Peer:
    found = brokers.find([key])
    if not found:
        pytest.skip(f"{key} is not here")
    return found[0]


def made_up(*words: object) -> brokers.Peer:
    """A broker that only a test has; PORT stands for its port."""

    def command(place: hosting.Place) -> list[object]:
        return [place.port if word == "PORT" else word for word in words]

    return brokers.Peer("made-up", "made up", command, brokers.Features(protocols=(4,), tls=False))


def executable(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def exchange(port: int, tls: ssl.SSLContext | None = None) -> None:
    """A message at each QoS through a wildcard."""
    with Client(("127.0.0.1", port), 4, tls=tls) as to, Client(("127.0.0.1", port), 4, tls=tls) as by:
        assert to.subscribe("rooms/+/heat").codes == [2]
        for qos in (0, 1, 2):
            by.deliver("rooms/7/heat", b"%d degrees" % qos, qos)
            assert to.message("rooms/7/heat", b"%d degrees" % qos).qos == qos


@pytest.mark.parametrize("key", ["roost", "mosquitto"])
def test_a_broker_starts_on_its_core_answers_and_ends(key: str) -> None:
    with brokers.running(peer(key), CORE) as broker:
        assert os.sched_getaffinity(broker.pid) == {CORE}
        assert broker.tls_port is None
        begun = brokers.usage(broker.pid)
        exchange(broker.port)
        exchange(broker.port_v5)
        used = brokers.usage(broker.pid)
        assert 0 <= begun.cpu_s <= used.cpu_s
        assert used.rss_bytes > 1_000_000
        folder = broker.log.parent
    assert not Path(f"/proc/{broker.pid}").exists()
    assert not folder.exists()


@pytest.mark.parametrize("key", ["roost", "mosquitto"])
def test_tls_beside_a_plain_port_with_clients_certificates_demanded(key: str, tmp_path: Path) -> None:
    files = brokers.make_tls(tmp_path)
    context = ssl.create_default_context(cafile=files.ca)
    with brokers.running(peer(key), CORE, tls=files) as broker:
        assert broker.tls_port is not None
        exchange(broker.port)
        made: list[Client] = []
        with pytest.raises((AssertionError, OSError)):
            Client(("127.0.0.1", broker.tls_port), 4, tls=context, made=made)
        made[0].drop()
        context.load_cert_chain(files.client_cert, files.client_key)
        exchange(broker.tls_port, context)


@pytest.mark.parametrize("key", ["roost", "mosquitto"])
def test_a_durable_broker_writes_into_its_folder(key: str) -> None:
    with brokers.running(peer(key), (CORE,), durable=True, lanes=2) as broker:
        with Client(("127.0.0.1", broker.port), 4, clean=False) as away:
            away.subscribe("kept")
        with Client(("127.0.0.1", broker.port), 4) as publisher:
            publisher.deliver("kept", b"for later", 1)
        if key == "roost":
            assert list(broker.log.parent.rglob("*.seg"))
            assert "--lanes\x002\x00" in Path(f"/proc/{broker.pid}/cmdline").read_text()


def test_what_is_missing_is_left_out_with_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASHMQ_SRC", str(tmp_path))
    monkeypatch.delenv("MOSQUITTO_SRC", raising=False)
    monkeypatch.setattr(brokers, "PEERS", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert brokers.find(["mosquitto", "flashmq", "mosquitto-current"]) == []
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "mosquitto is left out: it is not installed; apt install mosquitto"
    assert lines[1].startswith(f"flashmq is left out: FLASHMQ_SRC={tmp_path} has no binary; ")
    assert lines[2].startswith("mosquitto-current is left out: ")
    assert "MOSQUITTO_SRC" in lines[2]


def test_a_build_that_fails_is_left_out_with_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(executable(tmp_path / "bin" / "cargo", "no' >&2; exit 1; '").parent))
    monkeypatch.setattr(brokers, "PEERS", tmp_path)
    assert brokers.find(["rumqttd"]) == []
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("rumqttd is left out: `cargo install --quiet ...` failed")


@pytest.mark.parametrize("inside", ["src/mosquitto", "build/src/mosquitto", "mosquitto"])
def test_a_build_is_found_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, inside: str) -> None:
    binary = executable(tmp_path / "checkout" / inside, "mosquitto version 9.9.9")
    for named in (tmp_path / "checkout", binary):
        monkeypatch.setenv("MOSQUITTO_SRC", str(named))
        (found,) = brokers.find(["mosquitto-current"])
        assert (found.key, found.name) == ("mosquitto-current", "mosquitto 9.9.9")


def test_a_peer_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(SystemExit, match="mosquito is no peer; there are roost, null, mosquitto"):
        brokers.find(["mosquito"])


def test_a_broker_that_ends_at_once_is_told_with_its_log() -> None:
    with pytest.raises(brokers.BrokerFailed, match=r"made up ended with code 3: no such luck"):
        with brokers.running(made_up("sh", "-c", "echo no such luck; exit 3"), CORE):
            pass


def test_a_broker_that_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "START_S", 0.5)
    monkeypatch.setattr(hosting, "END_S", 0.2)
    with pytest.raises(brokers.BrokerFailed, match=r"made up does not answer: it said nothing"):
        with brokers.running(made_up(sys.executable, "-c", STUBBORN, "PORT", 5), CORE):
            pass


def test_a_broker_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "END_S", 0.2)
    with brokers.running(made_up(sys.executable, "-c", STUBBORN, "PORT", 0), CORE) as broker:
        pass
    assert not Path(f"/proc/{broker.pid}").exists()


def test_a_broker_that_dies_under_load_is_told() -> None:
    with pytest.raises(brokers.BrokerFailed, match=r"ended by itself, code -9"):
        with brokers.running(peer("roost"), CORE) as broker:
            os.kill(broker.pid, signal.SIGKILL)
            os.waitid(os.P_PID, broker.pid, os.WEXITED | os.WNOWAIT)


def test_what_a_peer_cannot_do_is_refused(tmp_path: Path) -> None:
    nothing = made_up("true")
    with pytest.raises(ValueError, match="made up has no disk"):
        with brokers.running(nothing, durable=True):
            pass
    with pytest.raises(ValueError, match="made up has no TLS"):
        with brokers.running(nothing, tls=brokers.make_tls(tmp_path)):
            pass
