"""Who renews nothing is over, but not before it had time to: a start that nobody has looked at yet is not silent."""

from __future__ import annotations

from dataclasses import replace

import pytest
import structlog
from policy.world import member

from roostmq.adapters.join_token import JoinToken
from roostmq.config import Cluster as Options
from roostmq.model import Members, NodeId, Version
from roostmq.runtime import lease as module
from roostmq.runtime.cluster import Cluster, Resigned
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


async def test_a_start_that_was_in_and_out_again_before_it_noticed_begins_anew() -> None:
    """Nobody lets it in a second time, so it would wait for ever; one that was never in waits."""
    token = JoinToken("fleet", 8, "00" * 16)
    mine = Cluster(Options(name="fleet", node="a", token=token.pack()), token, structlog.get_logger(), print)
    mine.registry, mine.incarnation, mine.me = MemoryRegistry(), 7, replace(member("a"), incarnation=7)
    others = (replace(member("b"), incarnation=3),)
    await mine.registry.create("members", codec.pack_members(Members(Version(1), others, ((NodeId("a"), 6),))))
    await mine._step()
    assert not mine.joined
    value = codec.pack_members(Members(Version(3), others, ((NodeId("a"), 7),)))
    await mine.registry.replace("members", value, mine._members_revision)
    with pytest.raises(Resigned):
        await mine._step()
