"""A broker process beside a benchmark: started on its core, watched, ended by pid. Knows no broker by name.

It listens on the loopback only and lives in a folder that goes with it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trustme

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
HZ = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
START_S = 30.0
END_S = 30.0
FILES = 1_048_576
CONNECT = bytes([0x10, 17, 0, 4, *b"MQTT", 4, 2, 0, 60, 0, 5, *b"probe"])
CONNECT_5 = bytes([0x10, 18, 0, 4, *b"MQTT", 5, 2, 0, 60, 0, 0, 5, *b"probe"])


class BrokerFailed(Exception):
    """A broker did not answer, or ended before it was told to; the text ends with its log."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of a test authority: its certificate, a server's for 127.0.0.1, a client's."""

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path
    mutual: bool = True  # clients must show their certificate, where the broker can demand it


@dataclass(frozen=True, slots=True)
class Features:
    """What a load may ask of a peer."""

    protocols: tuple[int, ...] = (4, 5)  # 4 is MQTT 3.1.1
    qos2: bool = True
    shared: bool = True
    retained: bool = True
    persistent: bool = True  # sessions that outlive a connection
    tls: bool = True
    mutual_tls: bool = True
    durable: str = ""  # what is kept on disk and when, with `durable=True`; empty: nothing ever
    one_listener: bool = False  # with TLS it has no other port
    port_of_version: bool = False  # each protocol version has its own port


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how a peer is started."""

    folder: Path
    port: int
    port_v5: int
    tls_port: int | None
    tls: Tls | None
    durable: bool
    lanes: int
    files_max: int  # that it may have open

    def write(self, name: str, *lines: str) -> Path:
        """A configuration file."""
        path = self.folder / name
        path.write_text("\n".join(lines) + "\n")
        return path


@dataclass(frozen=True, slots=True)
class Peer:
    """A broker that can be started."""

    key: str
    name: str
    command: Callable[[Place], list[object]] = field(repr=False, compare=False)
    features: Features = Features()


@dataclass(frozen=True, slots=True)
class Running:
    """A broker that answers: 0 is a port that it does not have."""

    peer: Peer
    port: int
    port_v5: int
    tls_port: int | None
    pid: int
    log: Path

    def port_of(self, tls: Tls | None) -> int:
        """The port to load: the one with TLS, if that is asked for."""
        return self.port if tls is None else self.tls_port or 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used so far, and holds now."""

    cpu_s: float
    rss_bytes: int


def usage(pid: int) -> Usage:
    """CPU, user and system, and resident memory of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Usage((int(fields[11]) + int(fields[12])) / HZ, pages * PAGE)


def on_cores(cores: int | Sequence[int], *words: object) -> list[str]:
    """The command, pinned."""
    count = os.cpu_count() or 1
    chosen = [cores] if isinstance(cores, int) else cores
    return ["taskset", "-c", ",".join(str(core % count) for core in chosen), *map(str, words)]


def free_port() -> int:
    """A port of the loopback that nobody has."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody has, all different."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind((HOST, 0))
        return [int(one.getsockname()[1]) for one in held]


@contextlib.contextmanager
def running(
    peer: Peer,
    cores: int | Sequence[int] = 0,
    *,
    tls: Tls | None = None,
    durable: bool = False,
    lanes: int = 1,
) -> Iterator[Running]:
    """The broker on this core or these, until the end; `lanes` are its threads, where it has a choice.

    With `durable` it keeps what it can, as `features.durable` says; with `tls` it has a second listener.
    """
    if (durable and not peer.features.durable) or (tls is not None and not peer.features.tls):
        raise ValueError(f"{peer.name} has no {'disk' if durable else 'TLS'}")
    files_max = _raise_files()
    (ROOT / "target").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{peer.key}-", dir=ROOT / "target"))
    try:
        port, second, third = free_ports(3)
        place = Place(folder, port, second, third if tls is not None else None, tls, durable, lanes, files_max)
        command, log = on_cores(cores, *peer.command(place)), folder / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=folder)
        try:
            broker = _reached(peer, place, process.pid, log)
            _await(process, tls, broker)
            yield broker
            if process.poll() is not None:
                raise BrokerFailed(f"{peer.name} ended by itself, code {process.returncode}: {_tail(log)}")
        finally:
            _end(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reached(peer: Peer, place: Place, pid: int, log: Path) -> Running:
    """Which of the ports this peer will have."""
    features = peer.features
    plain = 0 if features.one_listener and place.tls is not None else place.port
    v5 = place.port_v5 if features.port_of_version else plain
    return Running(peer, plain, v5 if 5 in features.protocols else 0, place.tls_port, pid, log)


def _raise_files() -> int:
    """As many open files as may be, for the broker to inherit; how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, max(hard, FILES)))
        return FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _await(process: subprocess.Popen[bytes], files: Tls | None, broker: Running) -> None:
    """Until each port answers a CONNECT."""
    until = time.monotonic() + START_S
    ports = {broker.port: 4, broker.port_v5: 4 if broker.port_v5 == broker.port else 5}
    waiting: list[tuple[int, int, Tls | None]] = [(port, level, None) for port, level in ports.items() if port]
    waiting += [(broker.tls_port, 4, files)] if broker.tls_port is not None else []
    for port, level, tls in waiting:
        while not _answers(port, level, tls):
            ended = process.poll()
            if ended is not None or time.monotonic() > until:
                how = "does not answer" if ended is None else f"ended with code {ended}"
                raise BrokerFailed(f"{broker.peer.name} {how}: {_tail(broker.log)}")
            time.sleep(0.05)


def _answers(port: int, level: int, tls: Tls | None) -> bool:
    """Does a CONNECT get a CONNACK that accepts it?"""
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        probe: socket.socket = stack.enter_context(socket.create_connection((HOST, port), 2))
        if tls is not None:
            context = ssl.create_default_context(cafile=tls.ca)
            context.load_cert_chain(tls.client_cert, tls.client_key)
            probe = stack.enter_context(context.wrap_socket(probe, server_hostname=HOST))
        probe.sendall(CONNECT_5 if level == 5 else CONNECT)
        got = b""
        while len(got) < 4 and (more := probe.recv(4 - len(got))):
            got += more
        probe.sendall(b"\xe0\0")
        return got[:1] == b"\x20" and got[3:] == b"\0"
    return False


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:].strip() or "it said nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it, and only it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def make_tls(folder: Path, *, mutual: bool = True) -> Tls:
    """A test authority with a server for 127.0.0.1 and a client, in this folder."""
    authority = trustme.CA()
    server = authority.issue_cert(HOST, "localhost", common_name=HOST)
    client = authority.issue_cert("client@example.org", common_name="bench-client")
    names = ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")
    ca, cert, key, client_cert, client_key = (folder / name for name in names)
    authority.cert_pem.write_to_path(str(ca))
    for made, chain, private in ((server, cert, key), (client, client_cert, client_key)):
        chain.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        made.private_key_pem.write_to_path(str(private))
    return Tls(ca, cert, key, client_cert, client_key, mutual)
