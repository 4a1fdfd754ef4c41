"""What is in force is kept in the registry: a release that does not read it is refused, whatever it reads itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from policy.world import member

from roostmq.errors import PlacementError, UnsuitableError
from roostmq.runtime import prepare
from roostmq.store import codec
from roostmq.store.memory import MemoryRegistry


async def test_a_cluster_that_was_never_finalized_writes_the_first_format() -> None:
    """Also for a later release, which reads newer ones beside it, or not any more."""
    registry = MemoryRegistry()
    await prepare.check_format(registry)
    later = [replace(member(name), formats=(2, 3)) for name in "ab"]
    with pytest.raises(PlacementError, match="writes format 1"):
        await prepare.finalize(registry, later)


async def test_what_is_in_force_is_kept_and_never_goes_back() -> None:
    registry = MemoryRegistry()
    both = [replace(member(name), formats=(1, 2)) for name in "ab"]
    assert await prepare.finalize(registry, both) == (1, 2)
    assert await prepare.finalize(registry, both) == (2, 2)
    with pytest.raises(UnsuitableError, match="a newer release is needed"):
        await prepare.check_format(registry)
    entry = await registry.get("format")
    assert entry is not None
    assert codec.unpack(entry.value, "format") == {"version": 2}
