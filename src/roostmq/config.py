"""Every option with type, unit, default and bounds. Parsed once, frozen.

The tables below are the only list of options: reading, checking, the JSON Schema, the reference and the settings of the
engine all come from them. Sizes are bytes, times carry their unit in the name.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import ipaddress
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from roostmq.errors import ConfigError

UNBOUNDED = 2**32 - 1
ACK_CLASSES = ("memory", "replicated", "durable")


def wrong_filter(text: str) -> str | None:
    """What is wrong with a topic filter (section 4.7 of MQTT), or None."""
    levels = text.split("/")
    if not text or "\0" in text:
        return "a topic filter is not empty and has no NUL"
    if any("#" in level and (level != "#" or i < len(levels) - 1) for i, level in enumerate(levels)):
        return "`#` stands alone on the last level of a topic filter, as in `meters/#`"
    if any("+" in level and level != "+" for level in levels):
        return "`+` stands alone on a level of a topic filter, as in `meters/+/power`"
    if levels[0] == "$share":
        return "messages have a topic and no shared group: leave `$share/GROUP/` out"
    return None


def option(
    default: Any,
    text: str,
    *,
    low: int | None = None,
    high: int | None = None,
    choices: tuple[str, ...] = (),
    key: Callable[[str], str | None] | None = None,
) -> Any:
    """One option: its default, its bounds or choices, what it does; `key` says what is wrong with a name in a table."""
    meta = {"text": text, "low": low, "high": high, "choices": choices, "key": key}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Tls:
    """TLS of a listener; all paths are PEM files."""

    cert_file: str = option("", "Server certificate chain.")
    key_file: str = option("", "Private key of the certificate.")
    ca_file: str | None = option(None, "Authorities that client certificates are checked against.")
    ca_path: str | None = option(None, "Folder with authorities' certificates.")
    crl_file: str | None = option(None, "Revocation list.")
    client_certificates: str = option(
        "none", "Must a client show a certificate?", choices=("none", "optional", "required")
    )
    version_min: str | None = option(None, "Oldest TLS version.", choices=("1.2", "1.3"))
    identity: str = option(
        "none", "What of the client certificate becomes the username.", choices=("none", "common_name", "subject")
    )
    ciphers: tuple[str, ...] = option((), "Cipher suites by IANA or OpenSSL name; empty: the library's choice.")


@dataclass(frozen=True)
class Jwt:
    """JSON Web Tokens in the password field."""

    algorithm: str = option("RS256", "How tokens are signed.", choices=("HS256", "RS256", "ES256"))
    key_file: str = option("", "Shared secret, or public key in PEM.")
    issuer: str | None = option(None, "Required `iss`.")
    audience: str | None = option(None, "Required `aud`.")
    username_claim: str = option("", "Claim that must equal the username; empty: `sub` becomes the username.")
    acl_claim: str = option("", 'Claim with rights: {"publish": [filters], "subscribe": [filters]}.')
    leeway_s: int = option(0, "Tolerated clock difference, seconds.", low=0, high=86_400)


@dataclass(frozen=True)
class Access:
    """Who may do what, for the listeners that name it."""

    allow_anonymous: bool | None = option(
        None,
        "Clients without credentials may connect. Unset: only on loopback, if nothing else is set.",
    )
    password_file: str | None = option(None, "`user:hash` lines; `roost passwd` writes it, mosquitto's is read too.")
    acl_file: str | None = option(None, "Access control list in mosquitto's format.")
    jwt: Jwt | None = option(None, "Tokens as passwords.")
    client_id_prefixes: tuple[str, ...] = option((), "Client ids must begin with one of these.")


@dataclass(frozen=True)
class Listener:
    """One listening socket."""

    host: str = option("127.0.0.1", "Address to bind, IPv4 or IPv6.")
    port: int = option(1883, "Port; 0 picks a free one.", low=0, high=65_535)
    path: str | None = option(None, "Unix socket instead of host and port.")
    websocket: bool = option(False, "MQTT inside WebSocket.")
    websocket_path: str = option("", "Request path of the WebSocket; empty: every path.")
    tls: Tls | None = option(None, "TLS.")
    proxy_from: tuple[str, ...] = option((), "Networks whose PROXY protocol header is required and believed.")
    access: str = option("default", "Name of the access rules.")
    connections_max: int = option(0, "Connections here; 0: no bound of its own.", low=0)
    qos_max: int | None = option(None, "Highest QoS offered here.", low=0, high=2)
    topic_alias_max: int | None = option(None, "Topic aliases a client may use here.", low=0, high=65_535)
    mount_point: str = option("", "Prefix put before every topic of this listener's clients.")
    ack: str | None = option(
        None, "What an acknowledgement here promises; unset: `durability.ack`.", choices=ACK_CLASSES
    )
    ack_lower: bool = option(False, "A message may lower its class by the user property `roost-ack` (MQTT 5).")


@dataclass(frozen=True)
class Limits:
    """Bounds; engine/src/limits.rs says which reason code and counter each has."""

    packet_bytes_max: int = option(1_048_576, "Largest packet accepted, bytes.", low=20, high=268_435_460)
    payload_bytes_max: int = option(0, "Largest payload, bytes; 0: no bound of its own.", low=0, high=268_435_455)
    topic_levels_max: int = option(201, "Levels in a topic or filter.", low=1, high=1_000)
    topic_bytes_max: int = option(65_535, "Length of a topic or filter, bytes.", low=1, high=65_535)
    subscriptions_max: int = option(10_000, "Subscriptions of one session.", low=1)
    queue_messages_max: int = option(10_000, "Messages waiting for one session.", low=1)
    queue_bytes_max: int = option(67_108_864, "Bytes waiting for one session.", low=1)
    queue_user_messages_max: int = option(0, "Messages waiting for all sessions of a user; 0: no bound.", low=0)
    queue_user_bytes_max: int = option(0, "Bytes waiting for all sessions of a user; 0: no bound.", low=0)
    queue_total_messages_max: int = option(0, "Messages waiting for all sessions; 0: no bound.", low=0)
    queue_total_bytes_max: int = option(0, "Bytes waiting for all sessions; 0: no bound.", low=0)
    queue_policy: str = option(
        "drop_newest", "What happens when a queue is full.", choices=("drop_newest", "drop_oldest", "reject")
    )
    inflight_max: int = option(1_024, "Unacknowledged messages towards one client.", low=1, high=65_535)
    inflight_bytes_max: int = option(0, "Unacknowledged bytes towards one client; 0: no bound.", low=0)
    receive_maximum: int = option(1_024, "Receive Maximum announced to clients.", low=1, high=65_535)
    connections_max: int = option(1_000_000, "Connections in total.", low=1)
    connections_per_address_max: int = option(0, "Connections from one address; 0: no bound.", low=0)
    connect_timeout_ms: int = option(10_000, "Time to a complete CONNECT, milliseconds.", low=10, high=3_600_000)
    handshakes_max: int = option(2_000, "Handshakes under way at once.", low=1)
    pending_output_bytes_max: int = option(4_194_304, "Bytes waiting for one socket.", low=1_024)
    retained_max: int = option(1_000_000, "Retained messages.", low=0)
    retained_bytes_max: int = option(1_073_741_824, "Bytes of retained messages.", low=0)
    topic_alias_max: int = option(10, "Topic aliases a client may use.", low=0, high=65_535)
    keep_alive_max_s: int = option(0, "Keep alive is cut to this, seconds; 0: no bound.", low=0, high=65_535)
    session_expiry_max_s: int = option(UNBOUNDED, "Session expiry is cut to this, seconds.", low=0, high=UNBOUNDED)
    auth_queue_max: int = option(1_000, "Passwords waiting to be checked.", low=1)
    auth_failures_max: int = option(10, "Failed logins a minute and address before answers slow down.", low=0)
    ledger_entries_max: int = option(1_024, "Dropped messages remembered by each lane.", low=0)
    lane_queue_max: int = option(100_000, "Messages between two lanes before publishers wait.", low=1)


@dataclass(frozen=True)
class Mqtt:
    """Choices that the standard leaves to a server."""

    qos_max: int = option(2, "Highest QoS offered.", low=0, high=2)
    retain_available: bool = option(True, "Retained messages are offered.")
    allow_empty_client_id: bool = option(True, "An empty client id gets an assigned one.")
    assigned_id_prefix: str = option("auto-", "Prefix of assigned client ids.")
    queue_qos0: bool = option(False, "QoS 0 messages wait for persistent sessions that are away.")
    upgrade_qos: bool = option(False, "Deliver at the subscription's QoS even if published lower.")
    persistent_client_expiration_s: int = option(0, "3.1.1 sessions end so long after it; 0: never.", low=0)
    retain_expiry_s: int = option(0, "Retained messages end after so long; 0: never.", low=0)
    response_information: str = option("", "Response Information for clients that ask; %c is the client id.")
    tcp_nodelay: bool = option(True, "TCP_NODELAY on accepted sockets.")
    outbound_alias_max: int = option(16, "Topic aliases assigned towards a client.", low=0, high=65_535)


@dataclass(frozen=True)
class Durability:
    """Where everything is kept that outlives a connection, and what an acknowledgement promises."""

    data_dir: str | None = option(None, "Directory of the log; unset: the user's data directory (`roost run`).")
    memory: bool = option(False, "Keep everything in memory: it ends with the process.")
    ack: str = option("durable", "What an acknowledgement promises, where nothing else is said.", choices=ACK_CLASSES)
    ack_filters: dict[str, str] = option(
        {}, "Topic filter = class: the least for messages on these topics.", choices=ACK_CLASSES, key=wrong_filter
    )
    sync_every_ms: int = option(
        0, "Milliseconds between two syncs: what a power cut may cost; 0: before every ack.", low=0, high=60_000
    )
    deliver_after_safe: bool = option(False, "QoS 1 reaches subscribers only after it is safe, as QoS 2 does.")
    cache_bytes_max: int = option(67_108_864, "Bodies of waiting messages kept in memory, bytes.", low=0)
    checkpoint_bytes_min: int = option(67_108_864, "Least log between two checkpoints, bytes.", low=65_536)


@dataclass(frozen=True)
class Admin:
    """HTTP for health, metrics and information."""

    enabled: bool = option(True, "Serve it.")
    host: str = option("127.0.0.1", "Address to bind.")
    port: int = option(18_083, "Port; 0 picks a free one.", low=0, high=65_535)


@dataclass(frozen=True)
class Log:
    """What is written to standard error."""

    level: str = option("info", "Least important level.", choices=("debug", "info", "warning", "error"))
    format: str = option("auto", "`auto`: human on a terminal, JSON otherwise.", choices=("auto", "human", "json"))
    connection_messages: bool = option(True, "A line for each connection that comes and goes.")
    file: str | None = option(None, "Append to this file instead.")


@dataclass(frozen=True)
class Sys:
    """The `$SYS` topics."""

    interval_s: int = option(10, "Seconds between updates; 0: off.", low=0, high=86_400)


@dataclass(frozen=True)
class Cluster:
    """This node of a cluster; `roost cluster init` prints what belongs here."""

    name: str = option("", "Name of the cluster: letters, digits, `_` and `-`.")
    node: str = option("", "Name of this node: nobody else has it, and it keeps it.")
    token: str = option("", "Join token that `roost cluster init` has printed.")
    nats: tuple[str, ...] = option((), "Addresses of NATS, such as `nats://10.0.0.1:4222`.")
    links: str = option("127.0.0.1:1885", "Address and port for the links of other nodes.")
    advertise: str | None = option(None, "Where other nodes find `links`, if that is another address.")
    advertise_mqtt: str | None = option(None, "Where clients find this node, to be shown; unset: the first listener.")
    link_tls: str = option(
        "auto", "`always`: links on loopback are encrypted too, as all others are.", choices=("auto", "always")
    )
    zone: str = option("", "Failure zone: a partition's standby is in another one if there is one.")
    weight: float = option(1.0, "Share of the partitions, compared with other nodes.")
    ack_default: str = option(
        "durable",
        "`replicated`: NATS may acknowledge before its disks have it, so a power cut of everything loses messages.",
        choices=("durable", "replicated"),
    )
    assert_sync: bool = option(False, "You have seen to `sync_interval: always` on every nats-server.")
    cache_dir: str | None = option(
        None, "Directory in which this node keeps what it stores once more, for `roost cluster restore --cache`."
    )
    cache_bytes_max: int = option(
        256 * 1024 * 1024, "Bytes kept there; the oldest goes first.", low=1024 * 1024, high=1 << 50
    )
    user: str | None = option(None, "User of NATS.")
    password: str | None = option(None, "Password of that user.")
    nats_token: str | None = option(None, "Token for NATS.")
    nkey_file: str | None = option(None, "File with the seed of an NKey.")
    credentials_file: str | None = option(None, "File with JWT and seed (`.creds`).")
    ca_file: str | None = option(None, "Authority of the servers' certificates; makes TLS required.")
    cert_file: str | None = option(None, "Client certificate for NATS.")
    key_file: str | None = option(None, "Its key.")
    system_user: str | None = option(None, "User of NATS's system account: shows whether NATS syncs.")
    system_password: str | None = option(None, "Password of that user.")

    def check(self) -> None:
        """Raises ConfigError for what is missing or cannot be."""
        for name in ("name", "node", "token"):
            if not getattr(self, name):
                raise ConfigError(
                    f"cluster.{name}: is missing; `roost cluster init` prints it", option=f"cluster.{name}"
                )
        for name in ("name", "node"):
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", getattr(self, name)):
                text = f"cluster.{name}: letters, digits, `_` and `-` make a name, at most 64 of them"
                raise ConfigError(text, option=f"cluster.{name}")
        if not self.nats:
            raise ConfigError("cluster.nats: is missing: where NATS is", option="cluster.nats")
        host, port = address_of(self.links, "cluster.links")
        try:
            unspecified = ipaddress.ip_address(host).is_unspecified
        except ValueError:
            text = f"cluster.links: `{host}` is a name: write the IP address to listen on, and the name in `advertise`"
            raise ConfigError(text, option="cluster.links") from None
        if self.advertise is not None:
            address_of(self.advertise, "cluster.advertise")
        elif unspecified or port == 0:
            text = f"cluster.advertise: is missing: where other nodes find this one, as it listens on {self.links}"
            raise ConfigError(text, option="cluster.advertise")
        if not 0 < self.weight < 1_000:
            raise ConfigError(f"cluster.weight: {self.weight} is not above 0", option="cluster.weight")


def address_of(text: str, place: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"{place}: `{text}` is no address: write it as host:port", option=place)
    return host, int(port)


@dataclass(frozen=True)
class Config:
    """Everything that a broker needs to run."""

    lanes: int = option(0, "Threads that carry traffic; 0: one per core.", low=0, high=64)
    partitions: int = option(64, "Partitions of the client ids, a power of two.", low=1, high=32_768)
    pid_file: str | None = option(None, "Written at start, removed at the end.")
    user: str | None = option(None, "User to become after binding, when started as root.")
    listeners: dict[str, Listener] = option({}, "Listeners by name.")
    access: dict[str, Access] = option({}, "Access rules by name; `default` is used by listeners that name none.")
    limits: Limits = field(default_factory=Limits)
    mqtt: Mqtt = field(default_factory=Mqtt)
    durability: Durability = field(default_factory=Durability)
    admin: Admin = field(default_factory=Admin)
    log: Log = field(default_factory=Log)
    sys: Sys = field(default_factory=Sys)
    cluster: Cluster | None = option(None, "This broker is a node of a cluster.")

    def engine_settings(self) -> dict[str, Any]:
        """The settings of engine/src/settings.rs; raises ConfigError where they would not be safe."""
        names = list(self.access) or ["default"]
        if self.partitions & (self.partitions - 1):
            raise ConfigError(f"partitions: {self.partitions} is not a power of two", option="partitions")
        access = [self._access(name) for name in names]
        filters = self.durability.ack_filters
        listeners = []
        for name, listener in (self.listeners or {"tcp": Listener()}).items():
            if listener.access not in names:
                near = nearest(listener.access, names)
                raise ConfigError(f"listeners.{name}.access: there is no [access.{listener.access}]{near}")
            self._check_safe(name, listener)
            raw = dataclasses.asdict(listener)
            raw["access"] = names.index(listener.access)
            raw["ack"] = listener.ack or self.durability.ack
            listeners.append(raw | {"name": name})
        settings = {
            "lanes": self.lanes,
            "partitions": self.partitions,
            "listeners": listeners,
            "access": access,
            "limits": dataclasses.asdict(self.limits),
            "mqtt": dataclasses.asdict(self.mqtt),
            "data": self._data(),
            "quiet_connections": not self.log.connection_messages,
            "ack_filters": [{"filter": f, "ack": ack} for f, ack in filters.items()],
        }
        return settings

    def _data(self) -> dict[str, Any] | None:
        d = self.durability
        if d.memory and d.data_dir is not None:
            raise ConfigError("durability: memory = true and a data_dir: leave one of them out", option="durability")
        if d.data_dir is None:
            return None
        return {
            "dir": d.data_dir,
            "sync_every_ms": d.sync_every_ms,
            "cache_bytes_max": d.cache_bytes_max,
            "deliver_after_safe": d.deliver_after_safe,
            "checkpoint_bytes_min": d.checkpoint_bytes_min,
        }

    def _access(self, name: str) -> dict[str, Any]:
        rules = self.access.get(name, Access())
        raw = dataclasses.asdict(rules)
        checked = rules.password_file is not None or rules.jwt is not None
        raw["allow_anonymous"] = not checked if rules.allow_anonymous is None else rules.allow_anonymous
        return raw

    def _check_safe(self, name: str, listener: Listener) -> None:
        rules = self.access.get(listener.access, Access())
        certificate = listener.tls is not None and listener.tls.client_certificates == "required"
        if listener.path or is_loopback(listener.host) or rules.allow_anonymous is not None or certificate:
            return
        if rules.password_file is None and rules.jwt is None:
            raise ConfigError(
                f"listeners.{name} is open to the network at {listener.host} and anybody could connect: write "
                f"`password_file = ...` into [access.{listener.access}], or `allow_anonymous = true` if that is meant",
                option=f"listeners.{name}.host",
            )


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Most of the time of a reload would go here."""
    return typing.get_type_hints(cls)


def is_loopback(host: str) -> bool:
    """True if only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """`; did you mean ...?` for a name that is almost right."""
    found = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f"; did you mean `{found[0]}`?" if found else ""


Where = Callable[[str], tuple[str | None, int | None]]


class Reader:
    """Turns plain tables into the dataclasses above, checking every value.

    `where` tells file and line of a dotted option name, for errors.
    """

    def __init__(self, where: Where = lambda name: (None, None)) -> None:
        self._where = where

    def read(self, raw: Mapping[str, Any]) -> Config:
        """Read a whole configuration."""
        value = self._table(Config, raw, "")
        assert isinstance(value, Config)
        return value

    def fail(self, name: str, text: str) -> ConfigError:
        """An error about an option, with its place."""
        file, line = self._where(name)
        return ConfigError(f"{name}: {text}", file=file, line=line, option=name)

    def _table(self, cls: type, raw: Any, prefix: str) -> Any:
        if not isinstance(raw, Mapping):
            raise self.fail(prefix.rstrip("."), "a table is needed here")
        hints = _hints(cls)
        known = {f.name: f for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key, value in raw.items():
            name = f"{prefix}{key}"
            if key not in known:
                raise self.fail(name, f"there is no such option{nearest(key, known)}")
            values[key] = self._value(hints[key], value, name, known[key].metadata)
        return cls(**values)

    def _value(self, hint: Any, value: Any, name: str, meta: Mapping[str, Any]) -> Any:
        args = typing.get_args(hint)
        if isinstance(hint, types.UnionType):
            if value is None:
                return None
            hint = next(a for a in args if a is not type(None))
            args = typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            return self._table(typing.cast(type, hint), value, f"{name}.")
        if typing.get_origin(hint) is dict:
            named = dataclasses.is_dataclass(args[1])
            return self._named(args[1], value, name) if named else self._pairs(args[1], value, name, meta)
        if typing.get_origin(hint) is tuple:
            if isinstance(value, str):
                value = [part.strip() for part in value.split(",") if part.strip()]
            if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
                raise self.fail(name, "a list of texts is needed")
            return tuple(value)
        return self._scalar(hint, value, name, meta)

    def _named(self, cls: type, value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self.fail(name, "a table of named tables is needed")
        fields = {f.name for f in dataclasses.fields(cls)}
        if cls is Access and value and all(k in fields for k in value):
            value = {"default": value}  # [access] without a name
        return {key: self._table(cls, raw, f"{name}.{key}.") for key, raw in value.items()}

    def _pairs(self, cls: type, value: Any, name: str, meta: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self.fail(name, "a table is needed here")
        for key in value:
            if wrong := meta["key"](key):
                raise self.fail(f"{name}.{key}", wrong)
        return {key: self._scalar(cls, raw, f"{name}.{key}", meta) for key, raw in value.items()}

    def _scalar(self, hint: type, value: Any, name: str, meta: Mapping[str, Any]) -> Any:
        if hint is bool and not isinstance(value, bool):
            raise self.fail(name, f"true or false is needed, not {value!r}")
        if hint is int and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.fail(name, f"a whole number is needed, not {value!r}")
        if hint is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self.fail(name, f"a number is needed, not {value!r}")
        if hint is str and not isinstance(value, str):
            raise self.fail(name, f"a text is needed, not {value!r}")
        low, high, choices = meta.get("low"), meta.get("high"), meta.get("choices")
        if low is not None and value < low:
            raise self.fail(name, f"{value} is below the least value, {low}")
        if high is not None and value > high:
            raise self.fail(name, f"{value} is above the greatest value, {high}")
        if choices and value not in choices:
            raise self.fail(name, f"`{value}` is not one of {', '.join(choices)}{nearest(str(value), choices)}")
        return value
