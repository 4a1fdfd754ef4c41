"""Scenarios of the partition table as text: a command, a line of four dashes, what is then seen, an empty line.

`cd tests && python -m policy.table_scenario --rewrite` writes what is seen now into the files; read the difference.

    cluster 16 standbys=2     an empty table of so many partitions
    join a b zone=x weight=2  members more (at once)            leave a     a member less, its partitions still its own
    drain a | undrain a       may own nothing | may own again   weight a 2  another weight
    plan                      say what should move              apply       let it move at once
    announce 4                begin up to so many moves         own [3]     moves end (all, or of these partitions)
    back [3]                  moves fail after the seal         serve [3]   owners serve
    off [3]                   moves fail before it
    die a                     a member is gone, heirs take its partitions
    load 1 3=5 7=20           CPU of every partition, and of some
    client NAME 3 20          a client of partition 3 with so much CPU
    balance                   a pass, applied and served        table       every partition
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from policy.world import member, ring_of, serve
from roostmq.errors import PlacementError
from roostmq.model import Member, NodeId, PartitionId, PartitionState, PartitionTable
from roostmq.policy import balance, epochs, table

SCENARIOS = Path(__file__).parent / "scenarios"


class Cluster:
    """A table and its members, driven by commands."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.now: PartitionTable = table.empty_table(16, "key")
        self.standbys = 1
        self.loads: list[balance.Load] = []
        self.clients: dict[str, tuple[PartitionId, balance.Load]] = {}

    def run(self, line: str) -> str:
        """What is seen after a command."""
        name, *words = line.split()
        options = dict(word.split("=", 1) for word in words if "=" in word)
        plain = [word for word in words if "=" not in word]
        try:
            return "\n".join(getattr(self, f"do_{name}")(plain, options))
        except PlacementError as error:
            return f"refused: {error}"

    def do_cluster(self, words: list[str], options: dict[str, str]) -> Iterator[str]:
        self.now, self.standbys = table.empty_table(int(words[0]), "key"), int(options.get("standbys", "1"))
        yield f"version {self.now.version}"

    def do_join(self, words: list[str], options: dict[str, str]) -> Iterator[str]:
        for name in words:
            self.members.append(member(name, zone=options.get("zone", ""), weight=float(options.get("weight", "1"))))
        yield self.who()

    def do_leave(self, words: list[str], _: dict[str, str]) -> Iterator[str]:
        self.members = [m for m in self.members if m.node not in words]
        yield self.who()

    def do_drain(self, words: list[str], _: dict[str, str]) -> Iterator[str]:
        self.members = [replace(m, draining=m.draining or m.node in words) for m in self.members]
        yield self.who()

    def do_undrain(self, words: list[str], _: dict[str, str]) -> Iterator[str]:
        self.members = [replace(m, draining=m.draining and m.node not in words) for m in self.members]
        yield self.who()

    def do_weight(self, words: list[str], _: dict[str, str]) -> Iterator[str]:
        self.members = [replace(m, weight=float(words[1])) if m.node == words[0] else m for m in self.members]
        yield self.who()

    def do_plan(self, _: list[str], __: dict[str, str]) -> Iterator[str]:
        yield from self.told(self.plan())

    def do_apply(self, _: list[str], __: dict[str, str]) -> Iterator[str]:
        plan = self.plan()
        yield from self.told(plan)
        yield from self.seen(epochs.apply(self.now, plan))

    def do_announce(self, words: list[str], _: dict[str, str]) -> Iterator[str]:
        yield from self.seen(epochs.announce(self.now, self.plan(), int(words[0])))

    def do_own(self, words: list[str], _: dict[str, str]) -> Iterator[str]:
        yield from self.seen(self.each(words, epochs.own))

    def do_back(self, words: list[str], _: dict[str, str]) -> Iterator[str]:
        yield from self.seen(self.each(words, epochs.give_back))

    def do_off(self, words: list[str], _: dict[str, str]) -> Iterator[str]:
        yield from self.seen(self.each(words, epochs.call_off))

    def do_serve(self, words: list[str], _: dict[str, str]) -> Iterator[str]:
        which = map(int, words) if words else range(len(self.now.partitions))
        yield from self.seen(epochs.serving(self.now, {PartitionId(p): self.now.partitions[p].epoch for p in which}))

    def do_die(self, words: list[str], _: dict[str, str]) -> Iterator[str]:
        self.members = [m for m in self.members if m.node not in words]
        load = Counter(a.owner for a in self.now.partitions)
        yield from self.seen(epochs.take_over(self.now, self.members, ring_of(self.members), load, self.standbys))

    def do_load(self, words: list[str], options: dict[str, str]) -> Iterator[str]:
        self.loads = [balance.Load(float(options.get(str(p), words[0]))) for p in range(len(self.now.partitions))]
        yield f"{sum(load.cpu for load in self.loads):g} in total"

    def do_client(self, words: list[str], _: dict[str, str]) -> Iterator[str]:
        self.clients[words[0]] = PartitionId(int(words[1])), balance.Load(float(words[2]))
        yield f"{len(self.clients)} known"

    def do_balance(self, _: list[str], __: dict[str, str]) -> Iterator[str]:
        ring = ring_of(self.members)
        found = balance.balance(self.now, self.members, ring, self.loads, self.clients, self.standbys)
        yield f"cpu {found.cpu_before:.3f} -> {found.cpu_after:.3f} of the fair share"
        yield from (f"{h.what} at {h.node}: {h.share:.3f} of all, fair is {h.fair:.3f}" for h in found.heavy)
        yield from self.told(found.plan)
        yield from self.seen(serve(epochs.apply(self.now, found.plan)))

    def do_table(self, _: list[str], __: dict[str, str]) -> Iterator[str]:
        for p, a in enumerate(self.now.partitions):
            target = f" to {a.target}" if a.target else ""
            yield f"{p:2} {a.owner} epoch {a.epoch} {a.state}{target}, standby {' '.join(a.standbys) or 'none'}"

    def plan(self) -> table.Plan:
        return table.plan(self.now, self.members, ring_of(self.members), self.standbys)

    def each(self, words: list[str], act: Callable[[PartitionTable, PartitionId], PartitionTable]) -> PartitionTable:
        now = self.now
        moving = [p for p, a in enumerate(now.partitions) if a.state is PartitionState.MOVING]
        for p in map(int, words) if words else moving:
            now = act(now, PartitionId(p))
        return now

    def who(self) -> str:
        def one(m: Member) -> str:
            return f"{m.node}{'@' + m.zone if m.zone else ''} x{m.weight:g}{' draining' if m.draining else ''}"

        return ", ".join(map(one, self.members)) or "nobody"

    def told(self, plan: table.Plan) -> Iterator[str]:
        yield f"moves {len(plan.moves)} of {len(plan.standbys)}, {100 * plan.share:.1f} % of the clients"
        ways = Counter((move.source or "nobody", move.target) for move in plan.moves)
        for source, target in sorted(ways):
            moved = [str(m.partition) for m in plan.moves if ((m.source or "nobody"), m.target) == (source, target)]
            yield f"  {source} -> {target}: {' '.join(moved)}"

    def seen(self, after: PartitionTable) -> Iterator[str]:
        """The next table, in short."""
        changed = [
            p for p, (a, b) in enumerate(zip(self.now.partitions, after.partitions, strict=True)) if a.epoch != b.epoch
        ]
        self.now = after
        owned: Counter[NodeId | None] = Counter(a.owner for a in after.partitions)
        spare = Counter(node for a in after.partitions for node in a.standbys)
        states = Counter(str(a.state) for a in after.partitions)
        nodes = sorted({*owned, *spare, *(m.node for m in self.members)} - {None})
        yield f"version {after.version}, {', '.join(f'{n} {state}' for state, n in sorted(states.items()))}"
        yield "  " + ", ".join(f"{node} {owned[node]}+{spare[node]}" for node in nodes)
        if changed:
            yield f"  new epochs: {' '.join(f'{p}:{after.partitions[p].epoch}' for p in changed)}"


def play(text: str) -> str:
    """The scenario with what is really seen."""
    cluster, out = Cluster(), []
    blocks = [block for block in text.strip().split("\n\n") if block.strip()]
    for block in blocks:
        told = block.partition("\n----")[0].splitlines()
        commands = [line for line in told if line and not line.startswith("#")]
        seen = [line for command in commands for line in cluster.run(command).splitlines()]
        out.append("\n".join([*told, "----", *seen] if commands else told))
    return "\n\n".join(out) + "\n"


if __name__ == "__main__":
    for path in sorted(SCENARIOS.glob("table-*.txt")):
        played = play(path.read_text())
        if played != path.read_text():
            print(f"{path.name}: differs")
            if "--rewrite" in sys.argv:
                path.write_text(played)
