"""The nouns of a cluster: frozen values that everything else speaks of. Imports nothing of ours.

A *cluster* is nodes that share one ring and one NATS. A *partition* is one of P equal ranges of the ring that client
ids hash onto; the *table* says which node owns it, under which *epoch*, and where its log is. The table alone decides
ownership; *members* says which nodes count in a majority. Both are versioned, and only compare-and-set changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

NodeId = NewType("NodeId", str)
"""Name of a node, given by the operator: it survives restarts."""
PartitionId = NewType("PartitionId", int)
"""0 to P - 1: the top bits of the keyed hash of a client id; what was cut off later has the next numbers."""
Epoch = NewType("Epoch", int)
"""Counts the owners of a partition; never used twice, also not by the same node."""
Version = NewType("Version", int)
"""Counts changes of the table, or of the members; starts at 1."""


class PartitionState(StrEnum):
    """What its owner does with a partition."""

    SERVING = "serving"
    MOVING = "moving"
    """A planned move to `Assignment.target` is under way, the owner still owns. To the owner itself: it is cut."""
    RECOVERING = "recovering"
    """The owner is named and has not said yet that it serves."""


FORMAT_FIRST = 1
"""What is written where nobody has finalized anything, whatever this release reads."""
FORMATS = (1, 1)
"""Oldest and newest version of records and links that this release reads."""


@dataclass(frozen=True, slots=True)
class LogRef:
    """A part of a partition's log: the messages of one subject."""

    stream: str
    subject: str
    served: int
    """An epoch that it has obeyed: a log that knows nothing of it is not the log that it was, and is never begun."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One partition in the table."""

    owner: NodeId | None
    """None only before the first node has joined."""
    epoch: Epoch
    standbys: tuple[NodeId, ...] = ()
    state: PartitionState = PartitionState.RECOVERING
    target: NodeId | None = None
    logs: tuple[LogRef, ...] = ()
    """Oldest first; the last one is written to."""


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """Who owns what."""

    version: Version
    key_id: str
    """Fingerprint of the cluster's hash key: a node with another key is refused."""
    partitions: tuple[Assignment, ...]
    """By partition id."""
    begun_with: int = 0
    """How many there were at the beginning; 0: as many as now."""

    @property
    def roots(self) -> int:
        """How many partitions there were at the beginning, a power of two."""
        return self.begun_with or len(self.partitions)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What operators want of planned moves; heirs of who is gone do not wait for that."""

    paused: bool = False
    """No move begins. Those under way end."""
    at_once: int = 4
    """So many moves at the same time."""
    bytes_per_s: int = 0
    """What a node hands over in a second, on average; 0 is no limit."""
    append_ms_max: int = 0
    """A node whose appends took longer lately begins one move in two seconds, as live traffic waits too; 0: never."""
    leave_slow: bool = False
    """A node whose links are all slow gives its partitions away until they are well again."""
    split_to: int = 0
    """Partitions are cut in two until there are so many; fewer than there are: none is cut."""
    pins: Mapping[PartitionId, NodeId] = field(default_factory=dict)
    """Partitions that stay on a node, or go there, as long as it is a member that is not draining."""
    last: Mapping[PartitionId, NodeId | None] = field(default_factory=dict)
    """What the last change has moved, with who had it before."""
    cause: str = ""
    """What the last change answers to: moves of one cause are undone together."""


@dataclass(frozen=True, slots=True)
class Member:
    """A node that counts in a majority."""

    node: NodeId
    incarnation: int
    """A new one with every start; two nodes with one id are told apart by it."""
    address: str
    """host:port of its links."""
    zone: str = ""
    weight: float = 1.0
    formats: tuple[int, int] = FORMATS
    """Oldest and newest version of records and links that it reads."""
    draining: bool = False
    """Shall own nothing any more: it serves until its partitions have moved."""
    slot: int = 0
    """Its number among the nodes of the cluster, 0 to 15: nobody else has it at the same time."""
    lanes: int = 1
    mqtt: str = ""
    """host:port of its first listener, to be shown."""
    admin: str = ""
    """host:port of its admin port; empty: none."""


@dataclass(frozen=True, slots=True)
class Members:
    """Who counts in a majority."""

    version: Version
    nodes: tuple[Member, ...]
    """By node id."""
    past: tuple[tuple[NodeId, int], ...] = ()
    """The last incarnation of each node that was let in, by node id: none of them comes in a second time."""

    def last(self, node: NodeId) -> int:
        """The last incarnation of a node that was let in; 0: none."""
        return next((incarnation for name, incarnation in self.past if name == node), 0)

    def find(self, node: NodeId) -> Member | None:
        """The member with this id, or None."""
        return next((m for m in self.nodes if m.node == node), None)

    @property
    def majority(self) -> int:
        """How many of them are one."""
        return len(self.nodes) // 2 + 1
