"""What stands in the registry is read as it was written, and never half (30-cluster section 2: our own checksum)."""

from __future__ import annotations

import base64
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy.world import member, placed

from roostmq.adapters.join_token import JoinToken, read_token
from roostmq.errors import ConfigError, UnsuitableError
from roostmq.model import Members, NodeId, Version
from roostmq.store import codec


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, unique=True), st.integers(0, 2**53))
def test_members_and_tables_come_back(names: list[str], incarnation: int) -> None:
    nodes = tuple(member(name) for name in sorted(names))
    members = Members(Version(7), nodes, ((NodeId("a"), incarnation),))
    assert codec.unpack_members(codec.pack_members(members)) == members
    table = placed(nodes)
    assert codec.unpack_table(codec.pack_table(table)) == table


def test_a_large_table_is_small() -> None:
    nodes = tuple(member(name) for name in "abcd")
    assert len(codec.pack_table(placed(nodes, 1024))) < 64 * 1024


@settings(deadline=None)
@given(st.data())
def test_damage_is_never_read(data: st.DataObject) -> None:
    raw = bytearray(codec.pack_table(placed((member("a"), member("b")))))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UnsuitableError, match="damaged"):
        codec.unpack_table(bytes(raw))


def test_a_join_token_is_whole_or_refused() -> None:
    token = JoinToken("fleet", 64, "00" * 16, "ab" * 32)
    text = token.pack()
    assert read_token(f" {text}\n") == token
    for wrong in (text[:-1], text[1:], text[:20] + "A" + text[21:], ""):
        with pytest.raises(ConfigError, match=r"cluster\.token"):
            read_token(wrong)


def test_a_token_of_the_time_before_links_were_encrypted_is_read() -> None:
    """What `pack` wrote then: three fields."""
    body = b'["fleet",64,"00000000000000000000000000000000"]'
    old = "roost1-" + base64.urlsafe_b64encode(zlib.crc32(body).to_bytes(4, "big") + body).decode().rstrip("=")
    assert read_token(old) == JoinToken("fleet", 64, "00" * 16)
