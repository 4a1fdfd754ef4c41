"""A shared group in one partition and a member in another, each with a log of its own, as a state machine that is explored completely.

The group is owned by C, the member a by A, a second member b always takes at once. One message; owners die, what was on its way between
them is lost or still comes, the member comes and goes, and its session may end. Wrong is: a message of QoS 2 that reached two members, or
one member twice; at rest, a message that nobody has finished (QoS 2: that reached nobody).

The rules are those of engine/src/partition/group.rs and `dispatch` in publish.rs (docs/formats/durability.md, "Groups across logs").
Left out: planned moves (they halt the mail), cuts, more than one message.

    PYTHONPATH=tests python -m cluster.model_group [--without RULE] [--each]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

from cluster.explored import Model

RULES = {
    "given-in-log": "a message goes to a member in another log when the group's log says so",
    "taken-in-log": "it goes on to the member's client when the member's log has it",
    "returned-in-log": "a return is told when the member's log has it, also of what had never come into its queue",
    "burned": "a number that was given back is never taken again: who gives it again is told so again",
    "its-number": "a group hears only of the number under which it gave the message last",
    "counts-as-sent": "what an heir finds in the queue of a session that was connected counts as sent",
    "finished-again": "a number that was taken and is in no queue any more is finished: that is said again",
    "join-again": "members join a group that has a new owner, and are given again what they had",
    "ask-heir": "when somebody else speaks for a partition, all that its sessions had is given to it again",
    "sent-is-over": "what was sent at QoS 2 to a session that ends is finished, not given back",
}
World = Any
Step = tuple[Any, ...]


@cache
def replayed(log: tuple[Any, ...], burns: bool) -> Any:
    """What A's log says."""
    queue: dict[int, int] = {}
    taken, burned, there, away, index = set(), set(), True, False, 0
    for kind, *rest in log:
        match kind:
            case "taken":
                queue[index] = rest[0]
                taken.add(rest[0])
                index += 1
            case "back":
                queue = {i: n for i, n in queue.items() if n != rest[0]}
                if burns:
                    burned.add(rest[0])
                else:
                    taken.discard(rest[0])
            case "acknowledged":
                queue.pop(rest[0], None)
            case "ended":
                there, queue = False, {}
            case "away" | "there":
                away = kind == "away"
    return queue, taken, burned, there, away


class Groups:
    """The machine. A log is a tuple of records, of which the first `safe` are safe; state is what a log says."""

    def __init__(
        self, on: set[str], faults: int, *, exactly: bool = True, ends: bool = False, c_dies: bool = True
    ) -> None:
        self.on, self.faults_max, self.exactly, self.ends, self.c_dies = on, faults, exactly, ends, c_dies

    def first(self) -> World:
        return SimpleNamespace(
            f=self.faults_max, clog=(), csafe=0, cheld=(), member=True, calls=True, alog=(), asafe=0, aheld=(), online=True,
            sent=frozenset(), down=(), up=(), side=(), btook=frozenset(), app=frozenset(), acks=False, wrong="",
        )  # fmt: skip

    # ---- what the logs say

    def place(self, w: World) -> Any:
        """Where the group's message is: None, (member, n) or "done"."""
        kind, *rest = w.clog[-1] if w.clog else ("returned",)
        return rest[0] if kind == "given" else None if kind == "returned" else "done"

    def last_n(self, w: World) -> int:
        return max((rest[0][1] for kind, *rest in w.clog if kind == "given"), default=0)

    def member_state(self, w: World) -> Any:
        """Queue (n by index), numbers taken, numbers given back, whether the session is there, whether it is away."""
        return replayed(w.alog, "burned" in self.on)

    # ---- steps

    def steps(self, w: World) -> Iterator[Step]:
        if self.place(w) is None:
            if w.member and w.calls:
                yield "C gives it to a", self.give, "a"
            yield "C gives it to b", self.give, "b"
        if w.csafe < len(w.clog) or w.cheld:
            yield "C's log is safe", self.csync
        if w.asafe < len(w.alog) or w.aheld:
            yield "A's log is safe", self.async_
        if w.down:
            yield f"A reads {w.down[0]}", self.take
        if w.up:
            yield f"C reads {w.up[0]}", self.told
        if w.side:
            yield f"b reads {w.side[0]}", self.b_takes
        queue, _, _, there, _ = self.member_state(w)
        if there and not w.online:
            yield "a connects", self.connect
        for index, n in queue.items() if w.online else ():
            if index in w.sent:
                yield f"a has finished {n}", self.finish, index, n
            elif self.is_safe(w, n) or "taken-in-log" not in self.on:
                yield f"PUBLISH {n} to a", self.send, index

    def faults(self, w: World) -> Iterator[Step]:
        if not w.f:
            return
        if w.online:
            yield "a is cut off", self.cut
        there = self.member_state(w)[3]
        if self.ends and there:
            yield "a's session ends", self.end
        for kept in {w.asafe, len(w.alog)}:
            for mail in {True, not w.up}:
                yield f"A dies ({kept} records, mail {'kept' if mail else 'lost'})", self.a_dies, kept, mail
        for kept in {w.csafe, len(w.clog)} if self.c_dies else ():
            for mail in {True, not w.down}:
                yield f"C dies ({kept} records, mail {'kept' if mail else 'lost'})", self.c_ends, kept, mail

    # ---- the group

    def give(self, w: World, who: str) -> None:
        w.clog += (("given", (who, self.last_n(w) + 1)),)
        self.dispatch(w)

    def dispatch(self, w: World) -> None:
        """What is with a member goes there (again)."""
        if "given-in-log" in self.on and (w.csafe < len(w.clog) or w.cheld):
            w.cheld += (self.place(w),)
        else:
            self.post(w, self.place(w))

    @staticmethod
    def post(w: World, place: tuple[str, int]) -> None:
        if place[0] == "a":
            w.down += (place[1],)
        else:
            w.side += (place[1],)

    def csync(self, w: World) -> None:
        w.csafe = len(w.clog)
        held, w.cheld = w.cheld, ()
        for place in held:
            self.post(w, place)

    def told(self, w: World) -> None:
        (what, *rest), w.up = w.up[0], w.up[1:]
        match what:
            case "online":
                w.calls = rest[0]
            case "leave":
                w.member = False
            case "join":
                w.member, w.calls = True, rest[0]
                if self.with_a(w) and "join-again" in self.on:
                    self.dispatch(w)
            case "speaks":
                if self.with_a(w) and "ask-heir" in self.on:
                    self.dispatch(w)
            case "done" | "back":
                if self.place(w) == ("a", rest[0]) or (self.with_a(w) and "its-number" not in self.on):
                    w.clog += (("done",),) if what == "done" else (("returned",),)

    def with_a(self, w: World) -> bool:
        at = self.place(w)
        return at not in (None, "done") and at[0] == "a"

    def b_takes(self, w: World) -> None:
        n, w.side = w.side[0], w.side[1:]
        if n not in w.btook:
            w.app |= {("b", n)}
            w.btook |= {n}
        w.acks = True
        if self.place(w) == ("b", n):
            w.clog += (("done",),)

    def c_ends(self, w: World, kept: int, mail: bool) -> None:
        w.clog, w.csafe, w.cheld = w.clog[:kept], kept, ()
        w.up = ()
        w.down = w.down if mail else ()
        w.member = False
        # a's owner hears that somebody speaks for the group; b joins at once
        if self.member_state(w)[3]:
            w.up += (("join", w.online),)
        at = self.place(w)
        if at not in (None, "done") and at[0] == "b":
            self.post(w, at)

    # ---- the member

    def is_safe(self, w: World, n: int) -> bool:
        return all(record[:2] != ("taken", n) for record in w.alog[w.asafe :])

    def when_safe(self, w: World, mail: tuple[Any, ...]) -> None:
        if "returned-in-log" in self.on and (w.asafe < len(w.alog) or w.aheld):
            w.aheld += (mail,)
        else:
            w.up += (mail,)

    def async_(self, w: World) -> None:
        w.asafe = len(w.alog)
        w.up, w.aheld = w.up + w.aheld, ()

    def take(self, w: World) -> None:
        n, w.down = w.down[0], w.down[1:]
        queue, taken, burned, there, _ = self.member_state(w)
        if n in burned:
            self.when_safe(w, ("back", n))
        elif n in taken:
            if n not in queue.values() and "finished-again" in self.on:
                w.up += (("done", n),)
        elif there and w.online:
            w.alog += (("taken", n),)
        else:
            if "returned-in-log" in self.on:
                w.alog += (("back", n),)
            self.when_safe(w, ("back", n))
            if not there:
                w.up += (("leave",),)  # else it would be given to nobody for ever

    def send(self, w: World, index: int) -> None:
        w.sent |= {index}
        w.app |= {("a", index)}

    def finish(self, w: World, index: int, n: int) -> None:
        w.acks = True
        w.alog += (("acknowledged", index),)
        w.up += (("done", n),)

    def connect(self, w: World) -> None:
        w.online = True
        w.alog += (("there",),)
        w.up += (("online", True),)

    def cut(self, w: World) -> None:
        w.online = False
        queue = self.member_state(w)[0]
        for index, n in queue.items():
            if index not in w.sent:
                w.alog += (("back", n),)
                self.when_safe(w, ("back", n))
        w.alog += (("away", w.sent),)
        w.up += (("online", False),)

    def end(self, w: World) -> None:
        queue = self.member_state(w)[0]
        w.online = False
        w.up += (("leave",),)
        for index, n in queue.items():
            if index in w.sent and self.exactly and "sent-is-over" in self.on:
                w.up += (("done", n),)
                w.acks = True  # it reached a, or may have
            else:
                w.alog += (("back", n),)
                self.when_safe(w, ("back", n))
        w.alog += (("ended",),)

    def a_dies(self, w: World, kept: int, mail: bool) -> None:
        w.alog, w.asafe, w.aheld, w.down = w.alog[:kept], kept, (), ()
        if not mail:
            w.up = ()
        queue, _, _, there, away = self.member_state(w)
        known = [rest[0] for kind, *rest in w.alog if kind == "away"]
        w.sent = frozenset(queue) if not away and "counts-as-sent" in self.on else known[-1] if known else frozenset()
        w.online = False
        if there:
            w.up += (("join", False),)
        for index, n in queue.items():
            if index not in w.sent:
                w.alog += (("back", n),)
                self.when_safe(w, ("back", n))
        w.up += (("speaks",),)

    # ---- what must hold

    def bad(self, w: World) -> str:
        return f"it reached {sorted(w.app)}" if self.exactly and len(w.app) > 1 else ""

    def rest(self, w: World) -> str:
        if self.place(w) != "done":
            return f"the group keeps it for ever: {self.place(w)}"
        return "" if w.acks or (self.exactly and w.app) else "lost"


MODEL = Model(
    RULES,
    {
        "deaths": lambda on: Groups(on, 2),
        "ends": lambda on: Groups(on, 2, ends=True, c_dies=False),
        "at least once": lambda on: Groups(on, 2, exactly=False, ends=True, c_dies=False),
    },
)

if __name__ == "__main__":
    sys.exit(MODEL.main("cluster.model_group", __doc__ or ""))
