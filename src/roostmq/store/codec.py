"""What stands in the registry, as bytes: JSON of one line with a checksum before it.

    RST1 <crc-32 of the rest, 8 hexadecimal digits> <JSON>

Who reads damaged bytes must stop, not guess: DamagedEntry.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from dataclasses import dataclass
from typing import Any

from roostmq.errors import UnsuitableError
from roostmq.model import (
    Assignment,
    Epoch,
    LogRef,
    Member,
    Members,
    NodeId,
    PartitionId,
    PartitionState,
    PartitionTable,
    Version,
    Wishes,
)

MAGIC = b"RST1"


@dataclass(frozen=True, slots=True)
class Meta:
    """What `cluster init` has laid down: it never changes, but for `life`."""

    name: str
    partitions: int
    key_id: str
    """Fingerprint of the hash key; the key itself is in the join token only."""
    streams: int = 8
    life: int = 0
    """Counts restores: what was kept beside NATS in another life continues no backup of this one."""


def pack(value: Any) -> bytes:
    """Bytes of a value that JSON can hold."""
    body = json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
    return b"%s %08x %s" % (MAGIC, zlib.crc32(body), body)


def unpack(raw: bytes, what: str) -> Any:
    """The value. Raises UnsuitableError if the bytes are damaged or of another version."""
    magic, _, rest = raw.partition(b" ")
    crc, _, body = rest.partition(b" ")
    if magic != MAGIC or crc != b"%08x" % zlib.crc32(body):
        raise UnsuitableError(f"the registry's entry `{what}` is damaged, or of another version: restore it")
    return json.loads(body)


def pack_meta(meta: Meta) -> bytes:
    """Bytes of the laid down facts."""
    facts = dataclasses.asdict(meta)
    return pack(facts if meta.life else {name: value for name, value in facts.items() if name != "life"})


def unpack_meta(raw: bytes) -> Meta:
    """Raises UnsuitableError."""
    return Meta(**unpack(raw, "meta"))


def pack_members(members: Members) -> bytes:
    """Bytes of the members."""
    nodes = [dataclasses.asdict(m) for m in members.nodes]
    return pack({"version": members.version, "nodes": nodes, "past": members.past})


def member_of(raw: dict[str, Any]) -> Member:
    """One member from its JSON."""
    formats = (int(raw["formats"][0]), int(raw["formats"][1]))
    return Member(**(raw | {"node": NodeId(raw["node"]), "formats": formats}))


def unpack_members(raw: bytes) -> Members:
    """Raises UnsuitableError."""
    value = unpack(raw, "members")
    past = tuple((NodeId(node), int(incarnation)) for node, incarnation in value["past"])
    return Members(Version(value["version"]), tuple(member_of(m) for m in value["nodes"]), past)


def pack_wishes(wishes: Wishes) -> bytes:
    """Bytes of what operators want of moves."""
    return pack(dataclasses.asdict(wishes))


def unpack_wishes(raw: bytes) -> Wishes:
    """Raises UnsuitableError."""
    value = unpack(raw, "wishes")
    pins = {PartitionId(int(p)): NodeId(node) for p, node in value["pins"].items()}
    last = {PartitionId(int(p)): NodeId(node) if node is not None else None for p, node in value["last"].items()}
    return Wishes(**(value | {"pins": pins, "last": last}))


STATES = {PartitionState.SERVING: "s", PartitionState.MOVING: "m", PartitionState.RECOVERING: "r"}
LETTERS = {letter: state for state, letter in STATES.items()}


def pack_table(table: PartitionTable) -> bytes:
    """Bytes of the table: a short list for each partition, nodes by number."""
    nodes: dict[NodeId, int] = {}

    def number(node: NodeId | None) -> int:
        return -1 if node is None else nodes.setdefault(node, len(nodes))

    rows = [
        [
            number(a.owner),
            a.epoch,
            STATES[a.state],
            number(a.target),
            [number(n) for n in a.standbys],
            [[r.stream, r.subject, r.served] for r in a.logs],
        ]
        for a in table.partitions
    ]
    told = {"version": table.version, "key_id": table.key_id, "nodes": list(nodes), "partitions": rows}
    return pack(told | ({"begun_with": table.begun_with} if table.begun_with else {}))


def unpack_table(raw: bytes) -> PartitionTable:
    """Raises UnsuitableError."""
    value = unpack(raw, "table")
    nodes = [NodeId(n) for n in value["nodes"]]

    def node(number: int) -> NodeId | None:
        return None if number < 0 else nodes[number]

    partitions = tuple(
        Assignment(
            node(owner),
            Epoch(epoch),
            tuple(nodes[n] for n in standbys),
            LETTERS[state],
            node(target),
            tuple(LogRef(*ref) for ref in logs),
        )
        for owner, epoch, state, target, standbys, logs in value["partitions"]
    )
    return PartitionTable(Version(value["version"]), value["key_id"], partitions, value.get("begun_with", 0))
