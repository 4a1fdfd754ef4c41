"""Streams are spread over the servers, one step at a time, and then left alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from roostmq.policy.leaders import Led, crowded, hand_over

SERVERS = ("a", "b", "c")


def led(leaders: str, servers: tuple[str, ...] = SERVERS) -> list[Led]:
    return [Led(f"s{n}", x, tuple(s for s in servers if s != x)) for n, x in enumerate(leaders)]


@given(st.text("abc", min_size=1, max_size=17))
def test_it_ends_with_nobody_crowded(leaders: str) -> None:
    """Each step takes one from who leads most, and there are fewer steps than streams."""
    found = led(leaders)
    for _ in range(len(found)):
        step = hand_over(found)
        if step is None:
            break
        before = Counter(x.leader for x in found)
        moved = next(x for x in found if x.stream == step[0])
        assert before[moved.leader] == max(before.values())
        assert step[1] in moved.others
        found = [replace(x, leader=step[1], others=(*x.others, x.leader)) if x is moved else x for x in found]
    assert hand_over(found) is None
    assert crowded(found) is None
    counts = Counter(x.leader for x in found)
    assert max(counts.values()) <= -(-len(found) // len({"a", "b", "c"})) + 1


def test_nearly_even_is_left_alone() -> None:
    assert hand_over(led("aaaabbbcc")) is None
    assert crowded(led("aaaaabbcc")) == ("a", 5)


def test_only_to_a_copy_that_has_everything() -> None:
    """With two servers down, or one server alone, there is nothing to do; it is still said that one leads them all."""
    alone = [replace(x, others=()) for x in led("aaaaaaaaa")]
    assert crowded(alone) is None, "no other server has a copy"
    assert hand_over(alone) is None
    one = [replace(x, others=("b",)) if n == 4 else replace(x, others=()) for n, x in enumerate(led("aaaaaaaaa"))]
    assert crowded(one) == ("a", 9)
    assert hand_over(one) == ("s4", "b")
    assert hand_over([]) is None
