"""Who renews nothing is over, but not before it had time to: a start that nobody has looked at yet is not silent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from policy.world import member

from roostmq.model import NodeId
from roostmq.runtime import lease as module
from roostmq.runtime.lease import ALIVE_S, Lease
from roostmq.store import codec
from roostmq.store.memory import MemoryRegistry


async def test_a_start_that_was_just_let_in_has_its_whole_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)
    registry, mine = MemoryRegistry(), Lease(NodeId("a"))
    old, fresh = (replace(member("b"), incarnation=i) for i in (1, 2))
    await registry.create("alive.b", codec.pack({"incarnation": 1, "at": 0}))
    for _ in range(10):  # it hangs: its entry stays as it was
        now_s += ALIVE_S
        await mine.renew(registry, {NodeId("b")}, look_for_twin=False)
    assert mine.is_over(old, 12.0)
    assert not mine.is_over(fresh, 12.0), "it has come a moment ago"
    for _ in range(7):
        now_s += ALIVE_S
        await mine.renew(registry, {NodeId("b")}, look_for_twin=False)
    assert mine.is_over(fresh, 12.0), "and has renewed nothing since"
