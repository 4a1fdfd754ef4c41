"""Votes and joins (30-cluster section 2): what a majority has agreed on is the only thing that counts."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from policy.world import member
from roostmq.model import Member, Members, NodeId, Version
from roostmq.policy import members as votes
from roostmq.policy.members import Beat, Report

NAMES = [NodeId(name) for name in "abcde"]


def made(count: int, version: int = 1) -> Members:
    nodes = tuple(replace(member(n), slot=i) for i, n in enumerate(NAMES[:count]))
    return Members(Version(version), nodes, tuple((m.node, m.incarnation) for m in nodes))


def beat(node: NodeId, heard_ms: int = 0, read: int = 1) -> Beat:
    return Beat(node, heard_ms, read)


@given(st.integers(2, 5), st.data())
def test_only_a_majority_of_reports_of_this_version_votes(count: int, data: st.DataObject) -> None:
    members = made(count, 3)
    reports = {}
    for node in NAMES[:count]:
        silent = tuple(data.draw(st.lists(st.sampled_from([n for n in NAMES[:count] if n != node]), unique=True)))
        version = data.draw(st.sampled_from([2, 3]))
        incarnation = data.draw(st.sampled_from([1, 9]))
        reports[node] = Report(Version(version), incarnation, silent)
    gone = votes.voted_out(members, reports)
    counted = {n: r for n, r in reports.items() if r.version == 3 and r.incarnation == 1}
    for node in NAMES[:count]:
        enough = sum(node in r.silent for r in counted.values()) >= members.majority
        if gone == node:
            assert enough
        elif gone is None:
            assert not enough


def test_a_report_binds_within_its_version() -> None:
    members = made(3)
    first = votes.report(members, NAMES[0], 1, [beat(NAMES[1], 2_000), beat(NAMES[2])], None)
    assert first.silent == (NAMES[1],)
    again = votes.report(members, NAMES[0], 1, [beat(NAMES[1]), beat(NAMES[2])], first)
    assert again.silent == (NAMES[1],), "it was heard again, and is still not answered"
    later = votes.report(votes.renewed(members), NAMES[0], 1, [beat(NAMES[1]), beat(NAMES[2])], first)
    assert later.silent == ()


@given(st.integers(1, 5), st.lists(st.integers(0, 4), max_size=5))
def test_members_change_only_when_a_majority_has_read_them(count: int, readers: list[int]) -> None:
    members = made(count, 5)
    beats = [beat(n, read=5 if i in readers else 4) for i, n in enumerate(NAMES[:count]) if i > 0]
    have = 1 + len({r for r in readers if 0 < r < count})
    assert votes.read_by_majority(members, beats) == (have > count / 2)


def test_nobody_comes_in_twice_and_slots_are_apart() -> None:
    """A start that was voted out believes what it believed: found by a run in which its old wish let it in again."""
    members = votes.without(made(3), NAMES[1])
    old = Member(NAMES[1], 1, "x:1", slot=1)
    assert votes.joined(members, old) is None
    back = votes.joined(members, replace(old, incarnation=2))
    assert back is not None
    assert [m.slot for m in back.nodes] == [0, 1, 2]
    taken = votes.joined(members, replace(old, node=NodeId("z"), slot=0))
    assert taken is not None
    assert taken.find(NodeId("z")) == replace(old, node=NodeId("z"), slot=1)
    assert back.version == members.version + 1


def test_who_has_to_wait_is_told_why() -> None:
    """Every reason is one that ends by itself; the log of the acting node has it."""
    wish = replace(member(NAMES[1]), incarnation=2)
    there = [beat(NAMES[2], read=2)]
    assert votes.let_in(made(3), wish, there, owns=False) == "an older start of it is a member still"
    members = votes.without(made(3), NAMES[1])
    assert votes.let_in(members, replace(wish, incarnation=1), there, owns=False) == ""
    behind = votes.let_in(members, wish, [beat(NAMES[2], read=1)], owns=False)
    assert behind == "no majority has read members 2 yet: c"
    assert votes.let_in(members, wish, there, owns=True) == "what an older start of it had has no heirs yet"
    back = votes.let_in(members, wish, there, owns=False)
    assert isinstance(back, Members)
    assert back.find(NAMES[1]) is not None
    assert votes.let_in(back, wish, there, owns=False) == "", "it is in"


def test_the_lowest_slot_that_nobody_reports_acts() -> None:
    members = made(3)
    assert votes.acting(members, ()) == NAMES[0]
    assert votes.acting(members, {NAMES[0]}) == NAMES[1]
    assert votes.acting(members, set(NAMES)) == NAMES[0], "two that have reported each other would wait for ever"
