"""Files of appends beside NATS: what a node keeps in `cache_dir`, and the later parts of a backup.

Format: docs/formats/log-cache.md. Nodes write it in Rust (`engine-nats/src/cache.rs`).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from roostmq.errors import UnsuitableError
from roostmq.model import PartitionId
from roostmq.policy.newer import Append

MAGIC = b"RLC1"
HEAD = struct.Struct("<II")
ENTRY = struct.Struct("<IIQ")
FRAME = struct.Struct("<4sIBBHIQIIQQQ")
FRAME_MAGIC = b"RLN1"
EPOCH = 2


@dataclass(frozen=True, slots=True)
class Kept:
    """An append and where its bytes are."""

    append: Append
    file: Path
    offset: int
    length: int

    def read(self) -> bytes:
        """Its bytes, header and records."""
        with self.file.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


def append_of(address: int, frame: bytes) -> Append | None:
    """What an append says of itself; None if these are not the bytes of one (docs/formats/log-nats.md)."""
    if len(frame) < FRAME.size:
        return None
    magic, _, kind, _, partition, epoch, first, count, length, before, _, _ = FRAME.unpack_from(frame)
    if magic != FRAME_MAGIC or length != len(frame) - FRAME.size:
        return None
    return Append(address, PartitionId(partition), kind == EPOCH, epoch, first, count, before)


def begin(file: IO[bytes], head: dict[str, Any]) -> None:
    """Write the head of a file."""
    text = json.dumps(head).encode()
    file.write(MAGIC + HEAD.pack(len(text), zlib.crc32(text)) + text)


def add(file: IO[bytes], address: int, frame: bytes) -> None:
    """Write one append."""
    crc = zlib.crc32(frame, zlib.crc32(address.to_bytes(8, "little")))
    file.write(ENTRY.pack(len(frame), crc, address))
    file.write(frame)


def head_of(path: Path) -> dict[str, Any]:
    """What a file begins with: cluster, life, streams. Raises UnsuitableError if it cannot be read."""
    try:
        with path.open("rb") as file:
            magic, rest = file.read(len(MAGIC)), file.read(HEAD.size)
            length, crc = HEAD.unpack(rest)
            text = file.read(length)
        if magic == MAGIC and zlib.crc32(text) == crc:
            found: dict[str, Any] = json.loads(text)
            return found
    except (OSError, struct.error, ValueError) as error:
        raise UnsuitableError(f"{path} cannot be read: {error}") from None
    raise UnsuitableError(f"{path} is no file of appends, or its head is damaged")


def read(path: Path) -> Iterator[Kept]:
    """Its sound appends, in order; ends where one is not whole: a node that is killed leaves half of its last one."""
    with path.open("rb") as file:
        length, _ = HEAD.unpack(file.read(len(MAGIC) + HEAD.size)[len(MAGIC) :])
        offset = len(MAGIC) + HEAD.size + length
        file.seek(offset)
        while len(head := file.read(ENTRY.size)) == ENTRY.size:
            length, crc, address = ENTRY.unpack(head)
            frame = file.read(length)
            if len(frame) < length or zlib.crc32(frame, zlib.crc32(head[8:])) != crc:
                return
            append = append_of(address, frame)
            if append is None:
                return
            yield Kept(append, path, offset + ENTRY.size, length)
            offset += ENTRY.size + length


def in_folder(folder: Path) -> list[Path]:
    """The files of a node, oldest first. Raises UnsuitableError: there is no such folder, or none in it."""
    found = sorted(folder.glob("*.cache"))
    if not found:
        raise UnsuitableError(f"{folder}: no files of a node are there; name the `cache_dir` of one")
    return found
