"""A partition that is cut in two, as a state machine that is explored completely (docs/decisions/0014).

C owns the partition, D inherits if C dies, A is the door of a publisher. Odd messages are for a session that is cut off, even ones for
one that stays. Subscribers take messages meanwhile, which is written too. A cut may be given up after its state was written, and be
tried again. Wrong is: a message delivered twice, or before an earlier one of its session; an acknowledged one that nobody has; at
rest, something without an answer.

Left out, as the model of a move has it: doors that were not asked, votes on the living, links that lose.

    PYTHONPATH=tests python -m cluster.model_split [--without RULE] [--each]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from cluster.explored import Model

RULES = {
    "halt": "the owner cuts only when the door has answered the halt, behind all that it had said",
    "written": "the table makes it two only when the log of the new one has its whole state",
    "named": "what an earlier attempt left in that log counts no more: reading begins with the state that is named",
    "keep": "who reads the old log leaves out what the table says is elsewhere",
    "whole": "an owner that gets it back undivided goes on with what it was before the cut",
    "both": "a door sends on only when somebody speaks for both halves",
}
C, D = 0, 1
World = Any
Step = tuple[Any, ...]


def is_upper(m: int) -> bool:
    """Is it for the session that is cut off?"""
    return m % 2 == 1


def played(records: tuple[Any, ...]) -> tuple[int, ...]:
    """The queue that these records make."""
    queue: tuple[int, ...] = ()
    for what, rest in records:
        match what:
            case "put":
                queue += () if rest in queue else (rest,)
            case "got":
                queue = tuple(m for m in queue if m != rest)
            case "state":
                queue += tuple(m for m in rest if m not in queue)
    return queue


class Cut:
    """The machine. `old` and `new` are what the living owner has of both halves: (epoch, queue), or None."""

    def __init__(self, on: set[str], messages: int, faults: int, attempts: int) -> None:
        self.on, self.messages, self.budget, self.attempts = on, messages, faults, attempts

    def first(self) -> World:
        return SimpleNamespace(
            f=self.budget, tries=self.attempts, owner=C, epoch=1, two=False, log=(), new_log=(), named=0, phase="idle",
            old=(1, ()), new=None, cut=None, wrote=False, to_node=(), to_door=(), next=1, known=1, known_new=0,
            halted=False, pending=(), asked=frozenset(), acked=frozenset(), delivered=(), wrong="",
        )  # fmt: skip

    # ---- what can happen

    def steps(self, w: World) -> Iterator[Step]:
        if w.next <= self.messages:
            yield f"A publishes m{w.next}", self.publish
        if w.to_node:
            yield f"{'CD'[w.owner]} gets {w.to_node[0]}", self.at_node
        if w.to_door:
            yield f"A gets {w.to_door[0]}", self.at_door
        for name in ("old", "new"):
            half = getattr(w, name)
            if half and half[0] == w.epoch and half[1] and w.phase in ("idle", "halting", "halted"):
                yield f"the subscriber takes m{half[1][0]}", self.deliver, name
        if w.owner == C and w.phase == "idle" and w.tries and not w.two and w.old and w.old[0] == w.epoch:
            yield "C asks A to halt", self.halt
        if w.phase == "halted" or (w.phase == "halting" and "halt" not in self.on):
            yield "C cuts", self.divide
        if w.phase == "cut":
            if not w.wrote:
                yield "C writes the new half", self.write
            if w.wrote or "written" not in self.on:
                yield "the table makes it two", self.decide
            yield "the table gives it back", self.give_back
        if w.phase == "decided" and (w.old is None or w.old[0] < w.epoch):
            yield "the owner takes the old half", self.take_old
        if w.phase == "decided" and w.two and (w.new is None or w.new[0] < w.epoch):
            yield "the owner takes the new half", self.take_new

    def faults(self, w: World) -> Iterator[Step]:
        if w.f and w.owner == C:
            yield "C dies, D inherits", self.die

    # ---- the door

    def publish(self, w: World) -> None:
        m, w.next = w.next, w.next + 1
        self.send(w, m)

    def send(self, w: World, m: int) -> None:
        if w.halted:
            w.pending += (m,)
            return
        w.asked |= {m}
        w.to_node += (("publish", m),)

    def at_door(self, w: World) -> None:
        (what, rest), w.to_door = w.to_door[0], w.to_door[1:]
        match what:
            case "halt":
                w.halted = True
                w.to_node += (("halted", rest),)
            case "done":
                w.asked -= {rest}
                w.acked |= {rest}
            case "old":
                w.known = rest
            case "new":
                w.known_new = rest
        spoken = w.known == w.epoch and (not w.two or w.known_new == w.epoch)
        if (what in ("new", "old") and spoken) or (what == "old" and "both" not in self.on):
            w.halted = False
            pending, w.pending = w.pending, ()
            for m in pending:
                self.send(w, m)

    # ---- the owner

    def at_node(self, w: World) -> None:
        (what, rest), w.to_node = w.to_node[0], w.to_node[1:]
        if what == "halted":
            w.phase = "halted" if w.phase == "halting" else w.phase
            return
        name = "new" if w.two and is_upper(rest) else "old"
        half = getattr(w, name)
        if half is None or half[0] != w.epoch or w.phase == "cut":
            return  # nobody is there who could answer
        epoch, queue = half
        if rest not in self.seen(w, name):
            self.append(w, name, ("put", rest))
            setattr(w, name, (epoch, (*queue, rest)))
        w.to_door += (("done", rest),)

    def seen(self, w: World, name: str) -> set[int]:
        """What was taken once: origins go with both halves."""
        return {rest for what, rest in w.log + w.new_log if what == "put"}

    def append(self, w: World, name: str, record: tuple[str, Any]) -> None:
        if name == "old":
            w.log += (record,)
        else:
            w.new_log += (record,)

    def deliver(self, w: World, name: str) -> None:
        epoch, queue = getattr(w, name)
        self.append(w, name, ("got", queue[0]))
        setattr(w, name, (epoch, queue[1:]))
        w.delivered += (queue[0],)

    def halt(self, w: World) -> None:
        w.phase, w.tries = "halting", w.tries - 1
        w.to_door += (("halt", w.epoch),)

    def divide(self, w: World) -> None:
        w.phase, w.cut, w.wrote = "cut", w.old[1], False

    def write(self, w: World) -> None:
        state = tuple(m for m in w.cut if is_upper(m))
        w.new_log += (("state", state),)
        if "named" in self.on:
            w.named = len(w.new_log) - 1
        w.wrote = True

    def decide(self, w: World) -> None:
        w.two, w.epoch, w.phase = True, w.epoch + 1, "decided"

    def give_back(self, w: World) -> None:
        w.epoch, w.phase = w.epoch + 1, "decided"

    def take_old(self, w: World) -> None:
        if w.cut is None:
            queue = played(w.log)
            if w.two and "keep" in self.on:
                queue = tuple(m for m in queue if not is_upper(m))
        elif w.two or "whole" not in self.on:
            queue = tuple(m for m in w.cut if not is_upper(m))
        else:
            queue = w.cut
        self.speak(w, "old", queue)

    def take_new(self, w: World) -> None:
        kept = w.cut is not None and w.wrote
        queue = tuple(m for m in w.cut if is_upper(m)) if kept else played(w.new_log[w.named :])
        self.speak(w, "new", queue)

    def speak(self, w: World, name: str, queue: tuple[int, ...]) -> None:
        setattr(w, name, (w.epoch, queue))
        w.to_door += ((name, w.epoch),)
        there = [w.old] + ([w.new] if w.two else [])
        if all(half and half[0] == w.epoch for half in there):
            w.phase, w.cut = "idle", None

    def die(self, w: World) -> None:
        """What C had in its memory is gone; A asks D once more for what was not answered, first."""
        w.owner, w.epoch, w.f = D, w.epoch + 1, w.f - 1
        w.old = w.new = w.cut = None
        w.to_node, w.to_door, w.phase, w.halted = (), (), "decided", True
        w.pending, w.asked = tuple(sorted((*w.asked, *w.pending))), frozenset()

    # ---- what must hold

    def bad(self, w: World) -> str:
        if len(set(w.delivered)) < len(w.delivered):
            return f"delivered twice: {w.delivered}"
        for upper in (True, False):
            mine = [m for m in w.delivered if is_upper(m) == upper]
            if mine != sorted(mine):
                return f"delivered out of order: {mine}"
        return ""

    def rest(self, w: World) -> str:
        if len(w.acked) < self.messages:
            return f"never answered: {set(range(1, self.messages + 1)) - w.acked}"
        has = {*w.delivered, *(w.old[1] if w.old else ()), *(w.new[1] if w.new else ())}
        missing = w.acked - has
        return f"acknowledged, and nobody has it: {sorted(missing)}" if missing else ""


MODEL = Model(
    RULES,
    {
        "fault": lambda on: Cut(on, messages=3, faults=1, attempts=1),
        "twice": lambda on: Cut(on, messages=2, faults=1, attempts=2),
        "long": lambda on: Cut(on, messages=4, faults=0, attempts=2),
    },
)

if __name__ == "__main__":
    sys.exit(MODEL.main("cluster.model_split", __doc__ or ""))
