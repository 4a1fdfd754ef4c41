"""A node that is slow by itself leaves and comes back, only if that is allowed, and one at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy.world import member
from roostmq.model import Members, NodeId, Version
from roostmq.policy.leaving import SLOW_S, WELL_S, Leaving, is_slow, looked, shall_leave, shall_return

ME = NodeId("a")
THREE = Members(Version(1), tuple(member(n) for n in "abc"))
SLOW = Leaving(slow=True, since_s=100.0)


@pytest.mark.parametrize(("ways", "slow"), [([], False), ([500], False), ([500, 3], False), ([150, 101], True)])
def test_it_is_its_own_network_only_if_every_way_is_slow(ways: list[int], slow: bool) -> None:
    assert is_slow(ways) == slow


def test_it_leaves_after_a_while_and_only_if_it_may() -> None:
    ripe = 100.0 + SLOW_S
    assert shall_leave(SLOW, THREE, ME, True, ripe)
    assert not shall_leave(SLOW, THREE, ME, True, ripe - 0.1)
    assert not shall_leave(SLOW, THREE, ME, False, ripe)
    assert not shall_leave(SLOW, Members(Version(1), THREE.nodes[:2]), ME, True, ripe), "one of two does not leave"
    other = Members(Version(1), (*THREE.nodes[:2], member("c", draining=True)))
    assert not shall_leave(SLOW, other, ME, True, ripe), "somebody leaves already"


def test_it_comes_back_when_it_was_well_for_a_while() -> None:
    gone = replace(SLOW, left=True)
    assert looked(gone, [150, 200], 130.0) == gone
    well = looked(gone, [3, 4], 130.0)
    assert not shall_return(well, True, 130.0 + WELL_S - 0.1)
    assert shall_return(well, True, 130.0 + WELL_S)
    assert shall_return(gone, False, 131.0), "it may no more"
    assert not shall_return(replace(well, left=False), True, 1_000.0), "who was asked to drain stays"
    assert looked(well, [150, 200], 140.0).slow
