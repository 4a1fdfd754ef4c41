"""Before the engine starts: reach the registry, see that it is the right one, take a number for this node."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from roostmq import engine
from roostmq.adapters.join_token import JoinToken
from roostmq.config import Cluster as Options
from roostmq.errors import ConfigError, StaleError, UnsuitableError
from roostmq.model import FORMAT_FIRST, Member, NodeId
from roostmq.policy.formats import finalized, stranger
from roostmq.policy.members import NODES_MAX
from roostmq.store import codec
from roostmq.store.access import NatsAccess
from roostmq.store.registry import Registry


def access_of(options: Options) -> NatsAccess:
    """How NATS is reached."""
    return NatsAccess(
        options.nats,
        options.user,
        options.password,
        options.nats_token,
        options.nkey_file,
        options.credentials_file,
        options.ca_file,
        options.cert_file,
        options.key_file,
    )


def key_id(token: JoinToken) -> str:
    """Fingerprint of a hash key."""
    return f"{engine.hash_ids(token.key_pair, [b'roostmq key'])[0]:016x}"


async def read_meta(registry: Registry, name: str, token: JoinToken) -> codec.Meta:
    """What was laid down. Raises ConfigError for another cluster's token, UnsuitableError if it is half made."""
    entry = await registry.get("meta")
    if entry is None:
        raise UnsuitableError(f"cluster `{name}` is half made: run `roost cluster init` again")
    meta = codec.unpack_meta(entry.value)
    if meta.key_id != key_id(token) or meta.partitions != token.partitions:
        raise ConfigError("cluster.token: belongs to another cluster", option="cluster.token")
    return meta


async def check_format(registry: Registry) -> None:
    """Raises UnsuitableError if this release cannot read what the cluster writes."""
    if (why := stranger((await _format(registry))[0])) is not None:
        raise UnsuitableError(why)


async def finalize(registry: Registry, members: Sequence[Member]) -> tuple[int, int]:
    """Put the newest format that all members read in force: what was, and what is.

    Raises PlacementError if one does not read what is in force, StaleError.
    """
    was, revision = await _format(registry)
    made = finalized(was, members)
    if made != was:
        await registry.replace("format", codec.pack({"version": made}), revision)
    return was, made


async def _format(registry: Registry) -> tuple[int, int]:
    """The version of records and links that is in force, and the revision of its entry (0: never finalized)."""
    entry = await registry.get("format")
    if entry is None:
        return FORMAT_FIRST, 0
    return int(codec.unpack(entry.value, "format")["version"]), entry.revision


async def take_slot(registry: Registry, name: str, node: NodeId) -> int:
    """A number for this node, for good."""
    while True:
        entry = await registry.get("slots")
        slots: dict[str, int] = codec.unpack(entry.value, "slots") if entry is not None else {}
        if node in slots:
            return slots[node]
        free = next((n for n in range(NODES_MAX) if n not in slots.values()), None)
        if free is None:
            raise ConfigError(f"cluster `{name}` has {NODES_MAX} nodes: no more are possible")
        with contextlib.suppress(StaleError):
            value = codec.pack(slots | {node: free})
            await registry.replace("slots", value, entry.revision if entry is not None else 0)


def engine_settings(o: Options, token: JoinToken, meta: codec.Meta, slot: int, incarnation: int) -> dict[str, Any]:
    """What the engine must know of the cluster."""
    sync = "any" if o.ack_default == "replicated" else "asserted" if o.assert_sync else "always"
    nats = access_of(o).engine_settings() | {"cluster": o.name, "streams": meta.streams, "sync": sync}
    if o.system_user is not None:
        nats |= {"system_user": o.system_user, "system_password": o.system_password}
    if o.cache_dir is not None:
        head = {"cluster": o.name, "key_id": meta.key_id, "life": meta.life, "node": o.node}
        nats |= {"cache_dir": o.cache_dir, "cache_bytes_max": o.cache_bytes_max, "cache_head": json.dumps(head)}
    site = {"slot": slot, "incarnation": incarnation, "links": o.links, "nats": nats}
    if token.secret:
        site |= {"secret": token.secret, "encrypt_loopback": o.link_tls == "always"}
    return {"key": token.key, "partitions": token.partitions, "data": None, "cluster": site}
