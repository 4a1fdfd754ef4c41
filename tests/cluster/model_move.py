"""A planned move of one partition as a state machine that is explored completely (docs/decisions/0011).

C owns the partition, D is the target, A is the door of a publisher. Links are first in, first out, each as slow as it likes. A message
of class `memory` (bound `mem`) is in the queue only, all others are in the log too. Faults: C or D is killed, or voted out while it
lives on. Wrong is: a message twice, or before an earlier one; an acknowledged one that the owner has not (of class `memory`
only if nobody went out); at rest, something without an answer.

Left out: append and fence are one step (the log has a model of its own), interest is known to all, A is never out.

    PYTHONPATH=tests python -m cluster.model_move [--without RULE] [--each]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from cluster.explored import Model

RULES = {
    "halt": "the owner seals only when every door has answered the halt, behind all that it had said",
    "cas": "to own and to take back are compare-and-set on the same entry of the table",
    "luggage": "the target goes on with what was sealed, so that nothing is lost that is not in the log",
    "behind": "a door holds back for the new owner until what it asked before is answered",
    "ask-again": "what an owner that is out was asked and did not answer is asked once more, first",
    "fence": "the log refuses an older epoch, and who is refused acknowledges nothing",
}
C, D = 0, 1
World = Any
Step = tuple[Any, ...]


class Move:
    """The machine. A node is (epoch under which it acts or 0, queue, sealed); `bags` are sealed partitions: (epoch, queue)."""

    def __init__(self, on: set[str], messages: int, mem: tuple[int, ...], faults: int) -> None:
        self.on, self.messages, self.mem, self.budget = on, messages, mem, faults

    def first(self) -> World:
        nodes = ((1, (), False), (0, (), False))
        return SimpleNamespace(
            f=self.budget, wrong="", table=(C, 1), out=-1, dead=False, log=(), fenced=1, nodes=nodes, bags=(None, None),
            phase="idle", to_node=((), ()), to_door=((), ()), carried=(), next=1, to=C, known=1, halted=False, gone=False,
            pending=(), asked=(), acked=frozenset(),
        )  # fmt: skip

    # ---- what can happen

    def steps(self, w: World) -> Iterator[Step]:
        if w.next <= self.messages:
            yield f"A publishes m{w.next}", self.publish
        for n in (C, D):
            if w.to_node[n] and not (w.dead and w.out == n):
                yield f"{'CD'[n]} gets {w.to_node[n][0]}", self.at_node, n
            if w.to_door[n]:
                yield f"A gets {w.to_door[n][0]} from {'CD'[n]}", self.at_door, n
            owner, epoch = w.table
            if owner == n and w.nodes[n][0] < epoch and w.out != n:
                yield f"{'CD'[n]} reads that it owns under {epoch}", self.take, n
        if w.out != C:
            if w.phase == "idle" and w.nodes[C][0] == w.table[1] and w.table[0] == C:
                yield "C asks A to halt", self.halt
            if w.phase in ("halting", "halted") and not w.nodes[C][2] and w.nodes[C][0]:
                if w.phase == "halted" or "halt" not in self.on:
                    yield "C seals", self.seal
                yield "C calls it off", self.call_off
            if w.nodes[C][2] and w.bags[C] and (w.table == (C, w.bags[C][0]) or "cas" not in self.on):
                yield "C takes it back", self.take_back
        if w.carried and w.out != D:
            yield "D gets the luggage", self.arrive
        runs = not (w.dead and w.out == D)  # one that was voted out may be about to write
        if w.bags[D] and runs and (w.table == (C, w.bags[D][0]) or ("cas" not in self.on and w.table[0] == C)):
            yield "D owns by the table", self.own
        if w.out == D == w.table[0]:
            yield "the table gives C what D owns", self.inherit
        if w.out >= 0 and not w.gone:
            yield f"A reads that {'CD'[w.out]} is out", self.read_vote

    def faults(self, w: World) -> Iterator[Step]:
        if w.f and w.out < 0:
            for n in (C, D):
                yield f"{'CD'[n]} is killed and voted out", self.vote, n, True
                yield f"{'CD'[n]} is voted out while it lives", self.vote, n, False

    # ---- the door

    def publish(self, w: World) -> None:
        m, w.next = w.next, w.next + 1
        self.route(w, m)

    def route(self, w: World, m: int) -> None:
        if self.waits(w):
            w.pending += (m,)
        else:
            self.ask(w, m)

    def ask(self, w: World, m: int) -> None:
        w.asked += ((m, w.to),)
        put(w, "to_node", w.to, w.to_node[w.to] + (("publish", m),))

    def at_door(self, w: World, n: int) -> None:
        (what, *rest), left = w.to_door[n][0], w.to_door[n][1:]
        put(w, "to_door", n, left)
        if w.gone and n == w.out:
            return
        match what:
            case "halt":
                if (rest[0], n) == (w.known, w.to):
                    w.halted = True
                    put(w, "to_node", n, w.to_node[n] + (("halted", rest[0]),))
            case "go on":
                if w.halted and rest[0] == w.known:
                    w.halted = False
            case "done":
                if (rest[0], n) in w.asked:
                    w.asked = tuple(a for a in w.asked if a != (rest[0], n))
                    w.acked |= {rest[0]}
            case "speaks":
                if rest[0] > w.known:
                    w.known, w.to, w.halted = rest[0], n, False
        self.release(w)

    def waits(self, w: World) -> bool:
        behind = any(n != w.to for _, n in w.asked) and "behind" in self.on
        return w.halted or behind or (w.gone and w.to == w.out)

    def release(self, w: World) -> None:
        if self.waits(w):
            return
        pending, w.pending = w.pending, ()
        for m in pending:
            self.ask(w, m)

    def read_vote(self, w: World) -> None:
        w.gone = True
        again = tuple(m for m, n in w.asked if n == w.out)
        w.asked = tuple((m, n) for m, n in w.asked if n != w.out)
        if "ask-again" in self.on:
            w.pending = tuple(sorted(again + w.pending))
        if w.to == w.out:
            w.halted = False
        self.release(w)

    # ---- the nodes

    def at_node(self, w: World, n: int) -> None:
        (what, rest), left = w.to_node[n][0], w.to_node[n][1:]
        put(w, "to_node", n, left)
        epoch, queue, sealed = w.nodes[n]
        if what == "halted":
            if w.phase == "halting" and epoch == rest:
                w.phase = "halted"
            return
        if not epoch or sealed:
            return
        if rest not in self.mem:
            if w.fenced > epoch and "fence" in self.on:
                put(w, "nodes", n, (0, queue, sealed))
                return
            if rest not in w.log:
                w.log += (rest,)
        if rest not in queue:
            put(w, "nodes", n, (epoch, (*queue, rest), sealed))
        put(w, "to_door", n, w.to_door[n] + (("done", rest),))

    def halt(self, w: World) -> None:
        w.phase = "halting"
        put(w, "to_door", C, w.to_door[C] + (("halt", w.nodes[C][0]),))

    def call_off(self, w: World) -> None:
        w.phase = "over"
        put(w, "to_door", C, w.to_door[C] + (("go on", w.nodes[C][0]),))

    def seal(self, w: World) -> None:
        epoch, queue, _ = w.nodes[C]
        put(w, "nodes", C, (epoch, queue, True))
        put(w, "bags", C, (epoch, queue))
        w.carried = ((epoch, queue),)

    def arrive(self, w: World) -> None:
        put(w, "bags", D, w.carried[0])
        w.carried = ()

    def own(self, w: World) -> None:
        w.table = (D, w.table[1] + 1)

    def inherit(self, w: World) -> None:
        w.table = (C, w.table[1] + 1)

    def take_back(self, w: World) -> None:
        if "cas" in self.on:
            w.table = (C, w.table[1] + 1)
        else:  # it simply goes on
            put(w, "nodes", C, (w.nodes[C][0], w.nodes[C][1], False))
            put(w, "to_door", C, w.to_door[C] + (("go on", w.nodes[C][0]),))
            put(w, "bags", C, None)
            w.phase = "over"

    def take(self, w: World, n: int) -> None:
        epoch = w.table[1]
        w.fenced = max(w.fenced, epoch)
        bag = w.bags[n]
        fits = bag and bag[0] + 1 == epoch and "luggage" in self.on
        queue = bag[1] if fits else w.log
        if fits and tuple(m for m in queue if m not in self.mem) != w.log:
            queue = w.log  # its old owner went on after all
        put(w, "nodes", n, (epoch, queue, False))
        put(w, "bags", n, None)
        w.phase = "over"
        put(w, "to_door", n, w.to_door[n] + (("speaks", epoch),))

    def vote(self, w: World, n: int, dead: bool) -> None:
        w.out, w.dead = n, dead
        owner, epoch = w.table
        if owner == n:
            w.table = (1 - n, epoch + 1)
        if dead:
            put(w, "to_node", n, ())
            if n == C:
                w.carried = ()

    # ---- what must hold

    def bad(self, w: World) -> str:
        if len(set(w.log)) < len(w.log):
            return f"twice in the log: {w.log}"
        for name, queue in (("log", w.log), *(("queue", q) for e, q, _ in w.nodes if e == w.table[1])):
            logged = tuple(m for m in queue if m not in self.mem)
            if list(logged) != sorted(logged) or (w.out < 0 and list(queue) != sorted(queue)):
                return f"out of order in the {name}: {queue}"
        if any(m not in w.log for m in w.acked if m not in self.mem):
            return f"acknowledged and not in the log: {sorted(w.acked)} {w.log}"
        return ""

    def rest(self, w: World) -> str:
        if len(w.acked) < self.messages:
            return f"never answered: {set(range(1, self.messages + 1)) - w.acked}"
        owner, epoch = w.table
        if w.nodes[owner][0] != epoch:
            return "nobody serves it"
        missing = [m for m in w.acked if m not in w.nodes[owner][1] and (m not in self.mem or w.out < 0)]
        return f"its owner has not: {missing}" if missing else ""


def put(w: World, name: str, n: int, value: Any) -> None:
    """One of a pair."""
    pair = list(getattr(w, name))
    pair[n] = value
    setattr(w, name, tuple(pair))


MODEL = Model(
    RULES,
    {
        "log": lambda on: Move(on, messages=3, mem=(), faults=1),
        "memory": lambda on: Move(on, messages=3, mem=(1, 2), faults=0),
        "both": lambda on: Move(on, messages=3, mem=(2,), faults=1),
    },
)

if __name__ == "__main__":
    sys.exit(MODEL.main("cluster.model_move", __doc__ or ""))
