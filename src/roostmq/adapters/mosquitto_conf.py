"""mosquitto.conf as a configuration of ours: Debian's stock file works with what users add to it.

An option that grants, restricts or routes and that we do not have stops the start, unless it is named in `ignore`; one
that is only cosmetic becomes a warning. Mosquitto's conventions (0 means no bound, anonymous access is refused as soon
as a listener is configured) are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roostmq.config import UNBOUNDED, Config, Reader, nearest
from roostmq.errors import ConfigError, UnsupportedOption

BIG = 1_000_000_000
PACKET_BYTES_PROTOCOL = 268_435_460

COSMETIC = frozenset(
    """
    allow_duplicate_messages bind_interface check_retain_source dhparamfile
    enable_control_api http_dir log_facility log_timestamp log_timestamp_format memory_limit
    retry_interval socket_domain store_clean_interval tls_engine tls_engine_kpass_sha1 tls_keyform
    websockets_headers_size websockets_log_level
    """.split()
)
UNSUPPORTED = frozenset(
    """
    accept_protocol_versions address addresses auth_plugin auth_plugin_deny_special_chars bridge_alpn
    bridge_attempt_unsubscribe bridge_bind_address bridge_cafile bridge_capath bridge_certfile bridge_identity
    bridge_insecure bridge_keyfile bridge_max_packet_size bridge_max_topic_alias bridge_outgoing_retain
    bridge_protocol_version bridge_psk bridge_reload_type bridge_require_ocsp bridge_tls_version cleansession clientid
    connection enable_proxy_protocol global_plugin idle_timeout keepalive_interval local_cleansession local_clientid
    local_password local_username notification_topic notifications notifications_local_only password plugin plugin_load
    plugin_use proxy_protocol_v2_require_tls psk_file psk_hint remote_clientid remote_password remote_username
    restart_timeout round_robin start_type threshold topic try_private use_username_as_clientid username
    websockets_origin
    """.split()
)


@dataclass(frozen=True)
class Line:
    """One option with its place."""

    file: str
    number: int
    name: str
    value: str

    def error(self, text: str) -> ConfigError:
        """An error at this line."""
        return ConfigError(f"{self.name}: {text}", file=self.file, line=self.number, option=self.name)

    def whole(self, low: int = 0, high: int = BIG) -> int:
        """The value as a whole number within bounds."""
        if not re.fullmatch(r"-?\d+", self.value):
            raise self.error(f"a whole number is needed, not `{self.value}`")
        number = int(self.value)
        if not low <= number <= high:
            raise self.error(f"{number} is not between {low} and {high}")
        return number

    def flag(self) -> bool:
        """The value as true or false."""
        if self.value.lower() not in ("true", "false", "1", "0"):
            raise self.error(f"true or false is needed, not `{self.value}`")
        return self.value.lower() in ("true", "1")

    def text(self) -> str:
        """The value as a text."""
        if not self.value:
            raise self.error("a value is needed")
        return self.value


def lines_of(path: Path, seen: tuple[Path, ...] = ()) -> Iterator[Line]:
    """Options of a file and of the folders that it includes, in mosquitto's order."""
    if path in seen:
        raise ConfigError("the file includes itself", file=str(path))
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, _, value = line.partition(" ")
        found = Line(str(path), number, name, value.strip())
        if name != "include_dir":
            yield found
            continue
        folder = Path(found.text())
        if not folder.is_dir():
            raise found.error(f"{folder} is not a folder")
        for inner in sorted(p for p in folder.iterdir() if p.suffix == ".conf" and p.is_file()):
            yield from lines_of(inner, (*seen, path))


@dataclass
class Draft:
    """What has been read so far."""

    listeners: list[dict[str, Any]] = field(default_factory=list)
    access: list[dict[str, Any]] = field(default_factory=list)
    default: dict[str, Any] = field(default_factory=dict)
    default_access: dict[str, Any] = field(default_factory=dict)
    default_used: bool = False
    per_listener: bool = False
    top: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=lambda: {"packet_bytes_max": PACKET_BYTES_PROTOCOL})
    mqtt: dict[str, Any] = field(default_factory=dict)
    log: dict[str, Any] = field(default_factory=dict)
    sys: dict[str, Any] = field(default_factory=dict)
    durability: dict[str, Any] = field(default_factory=lambda: {"memory": True})
    autosave: bool = False
    store: dict[str, str] = field(default_factory=lambda: {"location": "", "file": "mosquitto.db"})
    warnings: list[str] = field(default_factory=list)

    @property
    def listener(self) -> dict[str, Any]:
        """The listener that the present line belongs to."""
        return self.listeners[-1] if self.listeners else self.default

    @property
    def rules(self) -> dict[str, Any]:
        """The access rules that the present line belongs to."""
        return self.access[-1] if self.per_listener and self.listeners else self.default_access

    def tls(self) -> dict[str, Any]:
        """TLS of the present listener."""
        tls: dict[str, Any] = self.listener.setdefault("tls", {})
        return tls


def _listener(d: Draft, line: Line) -> None:
    words = line.text().split()
    port = Line(line.file, line.number, line.name, words[0]).whole(0, 65_535)
    made: dict[str, Any] = {"port": port}
    if port == 0 and len(words) > 1:
        made = {"path": words[1]}
    else:
        made["host"] = words[1] if len(words) > 1 else "0.0.0.0"
    if made.get("host") == "localhost":
        made["host"] = "127.0.0.1"
    d.listeners.append(made)
    d.access.append({})


def _port(d: Draft, line: Line) -> None:
    d.default["port"] = line.whole(0, 65_535)
    d.default.setdefault("host", "127.0.0.1")
    d.default_used = True


def _bind(d: Draft, line: Line) -> None:
    host = "127.0.0.1" if line.text() == "localhost" else line.text()
    d.listener["host"] = host
    d.default_used |= not d.listeners


def _protocol(d: Draft, line: Line) -> None:
    if line.text() not in ("mqtt", "websockets"):
        raise line.error(f"`{line.value}` is not mqtt or websockets")
    d.listener["websocket"] = line.value == "websockets"
    d.default_used |= not d.listeners


def _max_connections(d: Draft, line: Line) -> None:
    d.listener["connections_max"] = max(0, line.whole(-1))


def _set(place: str, name: str, read: Callable[[Line], Any]) -> Callable[[Draft, Line], None]:
    def handler(d: Draft, line: Line) -> None:
        target = getattr(d, place)
        (target() if callable(target) else target)[name] = read(line)

    return handler


def _unbounded(high: int = BIG) -> Callable[[Line], int]:
    """Mosquitto's 0: no bound."""
    return lambda line: line.whole(0, high) or high


def _require_certificate(d: Draft, line: Line) -> None:
    d.tls()["client_certificates"] = "required" if line.flag() else "optional"


def _identity(value: str) -> Callable[[Draft, Line], None]:
    def handler(d: Draft, line: Line) -> None:
        if line.flag():
            d.tls()["identity"] = value

    return handler


def _tls_version(d: Draft, line: Line) -> None:
    known = {"tlsv1.3": "1.3", "tlsv1.2": "1.2", "tlsv1.1": "1.2", "tlsv1": "1.2"}
    if line.text() not in known:
        raise line.error(f"`{line.value}` is not one of tlsv1.2, tlsv1.3")
    d.tls()["version_min"] = known[line.value]


def _duration_s(line: Line) -> int:
    found = re.fullmatch(r"(\d+)\s*([smhdwy]?)", line.text())
    unit = {"": 3600, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
    if not found or (not found[2] and int(found[1]) != 0):
        raise line.error("a number with h, d, w, m or y is needed, for example 14d")
    seconds = int(found[1]) * (2_592_000 if found[2] == "m" else unit[found[2]])
    return min(seconds, UNBOUNDED)


def _log_type(d: Draft, line: Line) -> None:
    levels = {"debug": "debug", "all": "debug", "none": "error", "error": "error", "warning": "warning"}
    order = ["debug", "info", "warning", "error"]
    level = levels.get(line.text(), "info")
    old = d.log.get("level", "error")
    d.log["level"] = min(level, old, key=order.index)


def _log_dest(d: Draft, line: Line) -> None:
    kind, _, rest = line.text().partition(" ")
    if kind == "file":
        d.log["file"] = rest.strip()
    elif kind not in ("stdout", "stderr", "none"):
        d.warnings.append(f"{line.file}, line {line.number}: log_dest {kind} is written to standard error here")


def _prefixes(d: Draft, line: Line) -> None:
    d.rules["client_id_prefixes"] = [line.text()]


def _max_packet(d: Draft, line: Line) -> None:
    d.limits["packet_bytes_max"] = max(20, line.whole(0, PACKET_BYTES_PROTOCOL) or PACKET_BYTES_PROTOCOL)


def _message_size(d: Draft, line: Line) -> None:
    d.limits["payload_bytes_max"] = line.whole(0, 268_435_455)


def _inflight(d: Draft, line: Line) -> None:
    n = line.whole(0, 65_535) or 65_535
    d.limits["inflight_max"] = n
    d.limits["receive_maximum"] = n


def _allow_empty(d: Draft, line: Line) -> None:
    d.mqtt["allow_empty_client_id"] = line.flag()


def _autosave(d: Draft, line: Line) -> None:
    line.text()
    if not d.autosave:
        d.warnings.append(f"{line.file}, line {line.number}: {line.name} has no effect: what is acknowledged is saved")
    d.autosave = True


HANDLERS: dict[str, Callable[[Draft, Line], None]] = {
    "listener": _listener,
    "port": _port,
    "bind_address": _bind,
    "protocol": _protocol,
    "max_connections": _max_connections,
    "mount_point": _set("listener", "mount_point", Line.text),
    "max_qos": _set("listener", "qos_max", lambda line: line.whole(0, 2)),
    "maximum_qos": _set("listener", "qos_max", lambda line: line.whole(0, 2)),
    "max_topic_alias": _set("listener", "topic_alias_max", lambda line: line.whole(0, 65_535)),
    "cafile": _set("tls", "ca_file", Line.text),
    "capath": _set("tls", "ca_path", Line.text),
    "certfile": _set("tls", "cert_file", Line.text),
    "keyfile": _set("tls", "key_file", Line.text),
    "crlfile": _set("tls", "crl_file", Line.text),
    "ciphers": _set("tls", "ciphers", lambda line: re.split(r"[: ,]+", line.text())),
    "ciphers_tls1.3": _set("tls", "ciphers", lambda line: re.split(r"[: ,]+", line.text())),
    "tls_version": _tls_version,
    "require_certificate": _require_certificate,
    "use_identity_as_username": _identity("common_name"),
    "use_subject_as_username": _identity("subject"),
    "allow_anonymous": _set("rules", "allow_anonymous", Line.flag),
    "password_file": _set("rules", "password_file", Line.text),
    "acl_file": _set("rules", "acl_file", Line.text),
    "clientid_prefixes": _prefixes,
    "allow_zero_length_clientid": _allow_empty,
    "auto_id_prefix": _set("mqtt", "assigned_id_prefix", lambda line: line.value),
    "per_listener_settings": lambda d, line: setattr(d, "per_listener", line.flag()),
    "max_keepalive": _set("limits", "keep_alive_max_s", lambda line: line.whole(0, 65_535)),
    "max_packet_size": _max_packet,
    "message_size_limit": _message_size,
    "max_inflight_messages": _inflight,
    "max_inflight_bytes": _set("limits", "inflight_bytes_max", Line.whole),
    "max_queued_messages": _set("limits", "queue_messages_max", _unbounded()),
    "max_queued_bytes": _set("limits", "queue_bytes_max", _unbounded()),
    "global_max_connections": _set("limits", "connections_max", _unbounded()),
    "global_max_clients": _set("limits", "connections_max", _unbounded()),
    "retain_available": _set("mqtt", "retain_available", Line.flag),
    "retain_expiry_interval": _set("mqtt", "retain_expiry_s", _duration_s),
    "upgrade_outgoing_qos": _set("mqtt", "upgrade_qos", Line.flag),
    "queue_qos0_messages": _set("mqtt", "queue_qos0", Line.flag),
    "persistent_client_expiration": _set("mqtt", "persistent_client_expiration_s", _duration_s),
    "set_tcp_nodelay": _set("mqtt", "tcp_nodelay", Line.flag),
    "sys_interval": _set("sys", "interval_s", lambda line: line.whole(0, 86_400)),
    "connection_messages": _set("log", "connection_messages", Line.flag),
    "log_type": _log_type,
    "log_dest": _log_dest,
    "pid_file": _set("top", "pid_file", Line.text),
    "user": _set("top", "user", Line.text),
    "persistence": _set("durability", "memory", lambda line: not line.flag()),
    "persistence_location": _set("store", "location", Line.text),
    "persistence_file": _set("store", "file", Line.text),
    "autosave_interval": _autosave,
    "autosave_on_changes": _autosave,
}


def read_mosquitto_conf(path: Path, ignore: Collection[str] = ()) -> tuple[Config, list[str]]:
    """Read a mosquitto.conf and the files that it includes; returns the configuration and warnings."""
    draft = Draft()
    for line in lines_of(path):
        handler = HANDLERS.get(line.name)
        if handler is not None:
            handler(draft, line)
        elif line.name in ignore:
            draft.warnings.append(f"{line.file}, line {line.number}: {line.name} is ignored as asked")
        elif line.name in COSMETIC:
            draft.warnings.append(f"{line.file}, line {line.number}: {line.name} has no effect here")
        elif line.name in UNSUPPORTED:
            text = f"is not supported and may not be ignored silently; start with `--ignore-unsupported {line.name}`"
            raise UnsupportedOption(f"{line.name} {text}", file=line.file, line=line.number, option=line.name)
        else:
            near = nearest(line.name, [*HANDLERS, *COSMETIC, *UNSUPPORTED])
            raise line.error(f"there is no such option{near}")
    return Reader(lambda name: (str(path), None)).read(_tables(draft)), draft.warnings


def _tables(d: Draft) -> dict[str, Any]:
    """The draft as the tables of our own configuration."""
    raw_listeners = list(zip(d.listeners, d.access, strict=True))
    if d.default_used or not raw_listeners:
        raw_listeners.insert(0, (d.default or {"host": "127.0.0.1", "port": 1883}, {}))
    configured = bool(d.listeners) or d.default_used
    listeners: dict[str, Any] = {}
    access: dict[str, Any] = {}
    if not d.per_listener:
        access["default"] = {"allow_anonymous": not configured, **d.default_access}
    for number, (listener, rules) in enumerate(raw_listeners, 1):
        name = f"listener-{number}"
        listeners[name] = _checked_tls(listener)
        if d.per_listener:
            own = rules if listener is not d.default else d.default_access
            access[name] = {"allow_anonymous": not configured, **own}
            listeners[name]["access"] = name
    tables = {"listeners": listeners, "access": access, "limits": d.limits, "mqtt": d.mqtt, "log": d.log, "sys": d.sys}
    return {**d.top, **tables, "durability": _durability(d)}


def _durability(d: Draft) -> dict[str, Any]:
    """As in mosquitto: off unless asked for; one place for each location and file, from the working directory.

    Mosquitto keeps one file there and we a folder of segments, so its name gets `.d`: both can lie side by side.
    """
    if d.durability["memory"]:
        return {"memory": True}
    file = Path(d.store["location"], d.store["file"])
    folder = file.with_name(file.name + ".d")
    if file.is_file() and file.stat().st_size > 0 and not folder.exists():
        d.warnings.append(f"{file} is mosquitto's and is not read: sessions and retained messages start in {folder}")
    return {**d.durability, "data_dir": str(folder)}


def _checked_tls(listener: dict[str, Any]) -> dict[str, Any]:
    """As in mosquitto a certificate file turns TLS on; authorities alone do not."""
    made = dict(listener)
    tls = dict(made.pop("tls", {}))
    if tls.get("cert_file"):
        if tls.get("ca_file") or tls.get("ca_path"):
            tls.setdefault("client_certificates", "none")
        made["tls"] = tls
    return made
