"""An upgrade can be taken back until it is finalized (30-cluster section 4)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.world import member
from roostmq.errors import PlacementError
from roostmq.policy.formats import finalized, stranger

FORMATS = st.tuples(st.integers(1, 4), st.integers(0, 1)).map(lambda f: (f[0], f[0] + f[1]))


@given(st.integers(1, 5), st.lists(FORMATS, min_size=1, max_size=5))
def test_nobody_is_shut_out_by_a_finalize(in_force: int, formats: list[tuple[int, int]]) -> None:
    """Who reads what is in force reads what will be; and nothing newer would be read by all."""
    members = [replace(member(f"n{n}"), formats=f) for n, f in enumerate(formats)]
    if any(stranger(in_force, f) for f in formats):
        with pytest.raises(PlacementError, match=f"format {in_force}"):
            finalized(in_force, members)
        return
    made = finalized(in_force, members)
    assert made >= in_force
    assert all(stranger(made, f) is None for f in formats)
    assert any(stranger(made + 1, f) for f in formats)


def test_who_cannot_read_what_is_written_is_told_which_release_is_needed() -> None:
    assert stranger(2, (1, 2)) is None
    assert "a newer release" in str(stranger(3, (1, 2)))
    assert "an older release" in str(stranger(1, (2, 3)))
    with pytest.raises(PlacementError, match="no members"):
        finalized(1, [])
