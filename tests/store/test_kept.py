"""Files of appends: what nodes write in Rust and backups in Python is one format, and only whole entries are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from roostmq.errors import UnsuitableError
from roostmq.model import PartitionId
from roostmq.policy.newer import Append
from roostmq.store import kept

# as `version_1_is_golden` of engine-nats/src/cache.rs and frame.rs: `{}`, then an EPOCH of 2 bytes at address 9
HEAD = bytes.fromhex("524c43310200000043bfa6a37b7d")
FRAME = bytes.fromhex(
    "524c4e3157af4f9102010201030000000400000000000000050000000200000006000000000000000700000000000000"
    + "00" * 8
    + "6162"
)


def written(path: Path, count: int) -> list[bytes]:
    with path.open("wb") as file:
        kept.begin(file, {})
        for n in range(count):
            kept.add(file, n + 1, FRAME)
    return [FRAME] * count


def test_the_format_is_what_the_engine_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.cache"
    with path.open("wb") as file:
        kept.begin(file, {})
        kept.add(file, 9, b"ab")
    assert path.read_bytes() == HEAD + bytes.fromhex("020000002e19c5c009000000000000006162")
    assert kept.append_of(9, FRAME) == Append(9, PartitionId(0x0102), True, 3, 4, 5, 6)


def test_what_is_not_whole_ends_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.cache"
    frames = written(path, 3)
    whole = path.read_bytes()
    assert [one.read() for one in kept.read(path)] == frames
    for cut in range(1, len(FRAME) + 16):
        path.write_bytes(whole[:-cut])
        assert len(list(kept.read(path))) == 2
    for place in range(len(HEAD) + 16 + len(FRAME), len(HEAD) + 2 * (16 + len(FRAME)), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert len(list(kept.read(path))) == 1


def test_a_head_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.cache"
    written(path, 1)
    path.write_bytes(b"RLC1\2\0\0\0" + path.read_bytes()[8:].replace(b"{}", b"{]"))
    with pytest.raises(UnsuitableError, match="damaged"):
        kept.head_of(path)
    with pytest.raises(UnsuitableError, match="cache_dir"):
        kept.in_folder(tmp_path / "nowhere")
