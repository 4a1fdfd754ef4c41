"""Balance by what partitions really cost: CPU first, bytes second, within the quotas of `table.py`.

Quotas make partitions even, not work: one partition may have the busy clients. A *pass* looks at the measured load of
every partition and exchanges a few: an overloaded node gives a busy partition and takes a quiet one, so that every
node still owns as many as its quota says and the next plan has nothing to undo.

A pass begins when a node carries more than 1.10 of its fair share of the CPU (or 1.25 of the bytes) and aims at 1.05
(or 1.20). A step is made only if it lowers what is above the aim in CPU, or in bytes, and raises neither: that sum
falls with every step, so the same loads can never bring a partition back, and pass after pass ends at a table that
stays. A pass moves at most a tenth of the load. What is heavier than a whole node's share, a partition or a client,
would only make the next node hot: it is named instead, and what can be is moved out of its way.

Source: 30-cluster section 1, 50-numbers "Cluster" (CPU <= 1.10 after one load-aware pass).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

from roostmq.errors import PlacementError
from roostmq.model import Member, NodeId, PartitionId, PartitionState, PartitionTable
from roostmq.policy.quota import fair_shares
from roostmq.policy.ring import Ring
from roostmq.policy.standbys import choose_standbys
from roostmq.policy.table import Move, Plan

CPU_BEGIN, CPU_AIM = 1.10, 1.05
BYTES_BEGIN, BYTES_AIM = 1.25, 1.20
SHARE_MAX = 0.10
"""The most of the whole load, of CPU and of bytes, that one pass moves."""
STEP_MIN = 1e-4
"""A step that lowers the excess by less than this, of the whole load, is not worth a move."""
STEPS_MAX = 256


@dataclass(frozen=True, slots=True)
class Load:
    """What a partition, or a client, costs: seconds of CPU per second, and bytes kept. Only proportions count."""

    cpu: float
    bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Heavy:
    """Something that no exchange can make fit: more than the fair share of its node, in CPU or in bytes."""

    what: str
    """`partition 7`, or `client NAME`."""
    node: NodeId
    share: float
    """Of the whole load, 0 to 1."""
    fair: float
    """The node's fair share, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass wants."""

    plan: Plan
    """Its moves come in pairs that belong together, one there and one back, or alone where quotas leave room."""
    heavy: tuple[Heavy, ...]
    cpu_before: float
    """Largest over fair share, 1.0 at best."""
    cpu_after: float
    bytes_before: float
    bytes_after: float


def balance(
    table: PartitionTable,
    members: Sequence[Member],
    ring: Ring,
    loads: Sequence[Load],
    clients: Mapping[str, tuple[PartitionId, Load]] | None = None,
    standbys: int = 1,
) -> Pass:
    """One pass. `loads` is by partition; `clients` are the busiest ones, with the partition of each.

    Only partitions that serve are moved. `ring` is that of the members. The table must be as `table.plan` wants it: a
    node gone, draining or over quota comes first, and until then nothing is moved here.
    Raises PlacementError as `quota.fair_shares`, and if there is not one load for each partition.
    """
    if len(loads) != len(table.partitions):
        raise PlacementError(f"{len(loads)} loads for {len(table.partitions)} partitions: one for each is needed")
    shares = fair_shares(len(loads), members)
    fair = {node: float(share) / len(loads) for node, share in shares.items()}
    scales = _Scales(table, loads, fair)
    before = scales.worst()
    limits = {node: (floor(share), ceil(share)) for node, share in shares.items()}
    settled = all(a.owner in limits and a.state is not PartitionState.MOVING for a in table.partitions) and all(
        low <= len(scales.held[node]) <= high for node, (low, high) in limits.items()
    )
    active = [kind for kind, begin in enumerate((CPU_BEGIN, BYTES_BEGIN)) if before[kind] > begin]
    moves = _steps(table, scales, limits, active) if settled and active else []
    owners = [a.owner for a in table.partitions]
    for move in moves:
        owners[move.partition] = move.target
    found = tuple(a.standbys for a in table.partitions)
    if moves:
        found = choose_standbys(table, owners, members, ring, standbys)
    after = scales.worst()
    plan = Plan(table.version, tuple(moves), found)
    heavy = tuple(_heavy(table, scales, fair, clients or {}))
    return Pass(plan, heavy, before[0], after[0], before[1], after[1])


class _Scales:
    """What each node carries, in shares of the whole; kind 0 is CPU, kind 1 bytes."""

    def __init__(self, table: PartitionTable, loads: Sequence[Load], fair: Mapping[NodeId, float]) -> None:
        totals = (sum(load.cpu for load in loads) or 1.0, sum(load.bytes for load in loads) or 1.0)
        self.totals = totals
        self.loads = [(load.cpu / totals[0], load.bytes / totals[1]) for load in loads]
        self.fair = fair
        self.aims = {node: (CPU_AIM * share, BYTES_AIM * share) for node, share in fair.items()}
        self.held: dict[NodeId, set[int]] = {node: set() for node in fair}
        self.sums = {node: [0.0, 0.0] for node in fair}
        for p, a in enumerate(table.partitions):
            if a.owner is not None and a.owner in self.held:
                self.put(p, a.owner)

    def put(self, p: int, node: NodeId) -> None:
        """Lay a partition on a node."""
        self.held[node].add(p)
        self._sum(node)

    def take(self, p: int, node: NodeId) -> None:
        """Take a partition away from a node."""
        self.held[node].discard(p)
        self._sum(node)

    def _sum(self, node: NodeId) -> None:
        """Anew each time and in one order, so that the same table always gives the same sums."""
        held = sorted(self.held[node])
        self.sums[node] = [sum(self.loads[p][kind] for p in held) for kind in (0, 1)]

    def worst(self) -> tuple[float, float]:
        """Largest load over fair share, in CPU and in bytes."""
        cpu, size = (max((self.sums[n][kind] / self.fair[n] for n in self.fair), default=1.0) for kind in (0, 1))
        return cpu, size

    def excess(self, node: NodeId, kind: int, more: float = 0.0) -> float:
        """How far a node is, or with so much more would be, above the aim."""
        return max(0.0, self.sums[node][kind] + more - self.aims[node][kind])

    def gain(self, source: NodeId, target: NodeId, kind: int, shift: float) -> float:
        """By how much the excess of two nodes falls if so much goes from one to the other."""
        now = self.excess(source, kind) + self.excess(target, kind)
        return now - self.excess(source, kind, -shift) - self.excess(target, kind, shift)


@dataclass(frozen=True, slots=True)
class _Step:
    """An exchange: `there` goes from source to target, `back` (if any) the other way."""

    source: NodeId
    target: NodeId
    there: int
    back: int | None
    gain: float
    cost: tuple[float, float]
    """Load that moves, CPU and bytes."""


def _steps(
    table: PartitionTable, scales: _Scales, limits: Mapping[NodeId, tuple[int, int]], active: Sequence[int]
) -> list[Move]:
    """Make steps until none helps or the pass has moved what it may; each partition moves once at most."""
    loose = {p for p, a in enumerate(table.partitions) if a.state is PartitionState.SERVING}
    left = [SHARE_MAX, SHARE_MAX]
    moves: list[Move] = []
    for _ in range(STEPS_MAX):
        step = next((s for kind in active for s in _best(scales, limits, loose, left, kind)), None)
        if step is None:
            break
        moves += _carry_out(step, scales, loose)
        left = [have - cost for have, cost in zip(left, step.cost, strict=True)]
    return moves


def _carry_out(step: _Step, scales: _Scales, loose: set[int]) -> Iterator[Move]:
    both = ((step.there, step.source, step.target), (step.back, step.target, step.source))
    for p, source, target in both:
        if p is not None:
            scales.take(p, source)
            scales.put(p, target)
            loose.discard(p)
            yield Move(PartitionId(p), source, target)


def _best(
    scales: _Scales, limits: Mapping[NodeId, tuple[int, int]], loose: set[int], left: Sequence[float], kind: int
) -> Iterator[_Step]:
    """For each overloaded node, the fullest first, its best step; the quietest node that can help is asked first."""

    def full(node: NodeId) -> tuple[float, NodeId]:
        return scales.sums[node][kind] / scales.fair[node], node

    nodes = sorted(scales.fair, key=full)
    for source in reversed(nodes):
        if scales.excess(source, kind) < STEP_MIN:
            return
        for target in nodes:
            if target == source:
                break
            found = list(_exchanges(scales, limits, loose, left, (source, target, kind)))
            if found:
                most = max(step.gain for step in found)
                good = (step for step in found if step.gain >= most / 2)
                yield max(good, key=lambda s: (s.gain / sum(s.cost), -s.there))
                break


def _exchanges(
    scales: _Scales,
    limits: Mapping[NodeId, tuple[int, int]],
    loose: set[int],
    left: Sequence[float],
    where: tuple[NodeId, NodeId, int],
) -> Iterator[_Step]:
    """Every step between two nodes that helps in one kind and harms in none."""
    source, target, kind = where
    backs: list[int | None] = [*sorted(scales.held[target] & loose)]
    if len(scales.held[source]) > limits[source][0] and len(scales.held[target]) < limits[target][1]:
        backs.append(None)
    other = 1 - kind
    for there in sorted(scales.held[source] & loose):
        a = scales.loads[there]
        for back in backs:
            b = (0.0, 0.0) if back is None else scales.loads[back]
            cost = (a[0] + b[0], a[1] + b[1])
            if a[kind] - b[kind] < STEP_MIN or cost[0] > left[0] or cost[1] > left[1]:
                continue
            gain = scales.gain(source, target, kind, a[kind] - b[kind])
            if gain >= STEP_MIN and scales.gain(source, target, other, a[other] - b[other]) >= 0.0:
                yield _Step(source, target, there, back, gain, cost)


def _heavy(
    table: PartitionTable,
    scales: _Scales,
    fair: Mapping[NodeId, float],
    clients: Mapping[str, tuple[PartitionId, Load]],
) -> Iterator[Heavy]:
    """What weighs more than its node's fair share, the heaviest kind counted; partitions first, then clients."""
    lines = [(f"partition {p}", p, shares) for p, shares in enumerate(scales.loads)]
    for name, (home, load) in sorted(clients.items()):
        lines.append((f"client {name}", int(home), (load.cpu / scales.totals[0], load.bytes / scales.totals[1])))
    for what, p, shares in lines:
        owner = table.partitions[p].owner
        if owner is not None and owner in fair and max(shares) > fair[owner]:
            yield Heavy(what, owner, max(shares), fair[owner])
