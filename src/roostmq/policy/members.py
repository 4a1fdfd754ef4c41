"""Who counts: reports, votes, joins, as functions of what was read. No clock, no I/O.

A node hears from its engine how long every other member has been silent, and how long ago what it answered was said.
It acts on that in three steps, each of which another node can do as well:

1. **Report.** A member that was silent for `SILENT_MS` is reported, naming the version of the members. *A report
   binds*: before it is written, the engine answers that member no more, until a later version that still contains it
   was read. So a member that a majority has reported can have no majority of its own: it acknowledges nothing any more.
2. **Vote.** Who reads reports of a majority of the members about one of them, all naming the present version, takes
   it out, by compare-and-set against that version: one at a time. A vote needs that a majority has read the present
   version, so that any two majorities in a row share a member.
3. **Join.** A node asks to join; the *acting* member (the one with the lowest slot that nobody reports) lets it in,
   when a majority has read the present version, when no older start of it is a member any more, and when the table
   gives it nothing.

Where no majority can be had (a single node, two of them, links and registry at odds) the registry's lease decides: a
member that has not renewed its own entry for `LEASE_MS`, as the observer's clock counts, is taken out by whoever has
(and by a node that asks to join, if no member renews at all).

Source: 30-cluster section 2.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from roostmq.model import Member, Members, NodeId, Version

SILENT_MS = 1_500
LEASE_MS = 12_000
NODES_MAX = 16


@dataclass(frozen=True, slots=True)
class Beat:
    """What the engine knows of another member."""

    node: NodeId
    heard_ms: int
    """Since anything came from it."""
    read: int
    """Version of the members that it has read."""


@dataclass(frozen=True, slots=True)
class Report:
    """Whom a node reports."""

    version: Version
    """Of the members: a report counts for this one only."""
    incarnation: int
    """Of the reporting node."""
    silent: tuple[NodeId, ...]


def is_member(members: Members, node: NodeId, incarnation: int) -> bool:
    """Is this start of the node one of them?"""
    found = members.find(node)
    return found is not None and found.incarnation == incarnation


def read_by_majority(members: Members, beats: Iterable[Beat]) -> bool:
    """Has a majority read the present version? The asking node, a member, has."""
    others = {m.node for m in members.nodes}
    return 1 + sum(b.read >= members.version and b.node in others for b in beats) >= members.majority


def report(members: Members, node: NodeId, incarnation: int, beats: Iterable[Beat], bound: Report | None) -> Report:
    """Whom this node reports now.

    Within one version a report never takes back what it said: whoever was reported and comes back is answered again
    only under a later version.
    """
    silent = {b.node for b in beats if b.heard_ms > SILENT_MS and members.find(b.node) is not None}
    if bound is not None and bound.version == members.version:
        silent |= set(bound.silent)
    return Report(members.version, incarnation, tuple(sorted(silent - {node})))


def voted_out(members: Members, reports: Mapping[NodeId, Report]) -> NodeId | None:
    """A member that a majority of the members reports under the present version; None: nobody."""
    counted = [
        r for node, r in reports.items() if r.version == members.version and is_member(members, node, r.incarnation)
    ]
    for member in members.nodes:
        if sum(member.node in r.silent for r in counted) >= members.majority:
            return member.node
    return None


def renewed(members: Members) -> Members:
    """The same members under a new version: reports that did not come to a majority are over, and bind no more."""
    return replace(members, version=Version(members.version + 1))


def without(members: Members, node: NodeId) -> Members:
    """The members without one of them."""
    rest = tuple(m for m in members.nodes if m.node != node)
    return replace(members, version=Version(members.version + 1), nodes=rest)


def changed(
    members: Members, node: NodeId, *, draining: bool | None = None, weight: float | None = None
) -> Members | None:
    """The members with one of them draining or not, or of another weight; the same if that changes nothing.

    None: the node is no member.
    """
    old = members.find(node)
    if old is None:
        return None
    new = replace(
        old,
        draining=old.draining if draining is None else draining,
        weight=old.weight if weight is None else weight,
    )
    if new == old:
        return members
    nodes = tuple(new if m.node == node else m for m in members.nodes)
    return replace(members, version=Version(members.version + 1), nodes=nodes)


def joined(members: Members, member: Member) -> Members | None:
    """The members with one more, which keeps the slot that it has or gets the lowest free one.

    None: all slots are taken, or this start of the node was let in before. *Nobody comes in twice*: a start that was
    voted out still believes what it believed, and its wish to join may still lie around. Whoever asks for this has
    seen to it that no older start of the node is among them.
    """
    if member.incarnation <= members.last(member.node):
        return None
    rest = tuple(m for m in members.nodes if m.node != member.node)
    taken = {m.slot for m in rest}
    slot = member.slot if member.slot not in taken else None
    if slot is None:
        slot = next((n for n in range(NODES_MAX) if n not in taken), None)
    if slot is None:
        return None
    nodes = tuple(sorted((*rest, replace(member, slot=slot)), key=lambda m: m.node))
    past = tuple(sorted({**dict(members.past), member.node: member.incarnation}.items()))
    return Members(Version(members.version + 1), nodes, past)


def let_in(members: Members, wish: Member, beats: Collection[Beat], *, owns: bool) -> Members | str:
    """The members with who asks to join, or why that has to wait; empty: this start of it was in already.

    `owns`: the table still gives something to an older start of it.
    """
    if members.find(wish.node) is not None:
        return "an older start of it is a member still" if wish.incarnation > members.last(wish.node) else ""
    if wish.incarnation <= members.last(wish.node):
        return ""
    if not read_by_majority(members, beats):
        behind = sorted(b.node for b in beats if b.read < members.version)
        return f"no majority has read members {members.version} yet: {', '.join(behind)}"
    if owns:
        return "what an older start of it had has no heirs yet"
    return joined(members, wish) or f"all {NODES_MAX} slots are taken"


def acting(members: Members, reported: Collection[NodeId]) -> NodeId | None:
    """Who acts for all: the member with the lowest slot that is not reported.

    All are: two that have reported each other, and a third that was voted out, would wait for each other for ever. Then
    it is the one with the lowest slot; what two do at once is kept apart by compare-and-set.
    """
    well = [m for m in members.nodes if m.node not in reported] or list(members.nodes)
    return min(well, key=lambda m: m.slot).node if well else None
