"""Two ends of a link that meet, part and meet again, as a state machine that is explored completely (docs/formats/link.md).

D dials, A answers. Connections overlap (one direct, one around), break, and end with what was on its way still read by the other. Each
end says a few words whenever it has met the other. Wrong is: a gap in the numbers; at rest, a word that was said since an end met the
other as new, and that the other has not taken since then.

Left out: beats, members (who is voted out is forgotten by both), times.

    PYTHONPATH=tests python -m cluster.model_link [--without RULE] [--each]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

from cluster.explored import Model

RULES = {
    "shown": "who answered counts the connection only when the dialler's beginning has come on it",
    "said": "a connection counts only while its end is still what it said to be in its greeting",
    "known": "an end whose name is known is never new, even if it says that it has not met this one yet",
    "begun": "who met the other as new learns from its first beginning where it begins, on whatever connection that comes",
    "mine": "what the other has received confirms something only if it says that it was from this one",
    "again": "what is not confirmed is sent again on the next connection",
    "once": "a number that was taken is not taken again",
}
World = Any
Step = tuple[Any, ...]


class End(NamedTuple):
    """What an end knows: see `Flow` in engine/src/link/flow.rs."""

    name: int
    peer: int = 0
    next: int = 1
    received: int = 0
    unconfirmed: tuple[int, ...] = ()
    token: int = 0
    """The connection that counts; 0: none."""
    said: tuple[int, ...] = ()
    took: tuple[int, ...] = ()
    met: bool = False
    fresh: bool = False
    """It has met the other as new, and has not heard its beginning yet."""


class Line(NamedTuple):
    """A connection: what is on its way to D and to A, and how far each end is."""

    number: int
    wires: tuple[tuple[Any, ...], tuple[Any, ...]] = ((), ())
    stages: tuple[Any, Any] = ("strange", "strange")
    greetings: tuple[Any, Any] = (None, None)
    """Name and peer that each end has said."""


D, A = 0, 1


class Link:
    """The machine."""

    def __init__(self, on: set[str], words: int, overlaps: int, breaks: int, forgets: bool = False) -> None:
        self.on, self.words, self.overlaps, self.breaks, self.forgets = on, words, overlaps, breaks, forgets

    def first(self) -> World:
        return SimpleNamespace(
            f=self.breaks, ends=(End(1), End(2)), lines=(), names=3, left=(self.words, self.words), lap=self.overlaps, wrong=""
        )  # fmt: skip

    # ---- what can happen

    def steps(self, w: World) -> Iterator[Step]:
        if len(w.lines) < 1 + (w.lap > 0):
            yield "D dials", self.dial
        for line in w.lines:
            for x in (D, A):
                if line.wires[x]:
                    yield f"{'DA'[x]} reads {line.wires[x][0]} on {line.number}", self.read, line.number, x
        for x in (D, A):
            if w.left[x] and w.ends[x].met:
                yield f"{'DA'[x]} says a word", self.say, x

    def faults(self, w: World) -> Iterator[Step]:
        for line in w.lines if w.f else ():
            yield f"line {line.number} breaks", self.snap, line.number
        for x in (D, A) if w.f and self.forgets else ():
            yield f"{'DA'[x]} is another one", self.forget, x

    def dial(self, w: World) -> None:
        w.lap -= bool(w.lines)
        number = next(n for n in range(1, 9) if all(line.number != n for line in w.lines))
        d = w.ends[D]
        hello = (d.name, d.peer, d.received)
        w.lines += (Line(number, ((), (("greeting", hello),)), ("dialled", "strange"), (hello[:2], None)),)

    def say(self, w: World, x: int) -> None:
        end = w.ends[x]
        n = end.next
        w.left = tuple(left - (i == x) for i, left in enumerate(w.left))
        self.set(w, x, next=n + 1, unconfirmed=(*end.unconfirmed, n), said=(*end.said, n))
        if end.token:
            self.send(w, end.token, x, ("frame", n, end.received))

    def forget(self, w: World, x: int) -> None:
        """It begins anew, under another name."""
        for line in w.lines:
            if line.stages[x] != "gone":
                self.drop(w, line.number, x)
        w.ends = tuple(End(w.names) if i == x else end for i, end in enumerate(w.ends))
        w.names += 1

    def snap(self, w: World, number: int) -> None:
        line = self.line(w, number)
        for x in (D, A):
            if line.stages[x] != "gone":
                self.put(w, number, x, (("end",),))
            else:
                self.put(w, number, x, ())

    # ---- a connection

    def line(self, w: World, number: int) -> Line:
        found: Line = next(line for line in w.lines if line.number == number)
        return found

    def change(self, w: World, number: int, **fields: Any) -> None:
        lines = tuple(line._replace(**fields) if line.number == number else line for line in w.lines)
        w.lines = tuple(line for line in lines if line.stages != ("gone", "gone"))

    def put(self, w: World, number: int, x: int, wire: tuple[Any, ...]) -> None:
        wires = self.line(w, number).wires
        self.change(w, number, wires=(wire, wires[A]) if x == D else (wires[D], wire))

    def send(self, w: World, number: int, x: int, what: tuple[Any, ...]) -> None:
        """To the other end."""
        if self.line(w, number).stages[1 - x] != "gone":
            self.put(w, number, 1 - x, (*self.line(w, number).wires[1 - x], what))

    def stage(self, w: World, number: int, x: int, stage: Any, greeting: Any = None) -> None:
        line = self.line(w, number)
        stages = (stage, line.stages[A]) if x == D else (line.stages[D], stage)
        greetings = line.greetings
        if greeting is not None:
            greetings = (greeting, greetings[A]) if x == D else (greetings[D], greeting)
        self.change(w, number, stages=stages, greetings=greetings)

    def drop(self, w: World, number: int, x: int) -> None:
        """It hangs up: what it has sent may still be read."""
        if w.ends[x].token == number:
            self.set(w, x, token=0)
        self.put(w, number, x, ())
        self.send(w, number, x, ("end",))
        self.stage(w, number, x, "gone")

    def set(self, w: World, x: int, **fields: Any) -> None:
        w.ends = tuple(end._replace(**fields) if i == x else end for i, end in enumerate(w.ends))

    # ---- reading

    def read(self, w: World, number: int, x: int) -> None:
        line = self.line(w, number)
        what, *rest = line.wires[x][0]
        self.put(w, number, x, line.wires[x][1:])
        match what:
            case "end":
                self.drop(w, number, x)
            case "greeting" if x == D:
                self.meet(w, number, x, rest[0])
            case "greeting":
                end = w.ends[A]
                self.send(w, number, A, ("greeting", (end.name, end.peer, end.received)))
                self.stage(w, number, A, ("answered", rest[0]), (end.name, end.peer))
                if "shown" not in self.on:
                    self.meet(w, number, A, rest[0])
            case "begin":
                if line.stages[x][0] == "answered":
                    self.meet(w, number, x, line.stages[x][1])
                if w.ends[x].token == number:
                    self.begin(w, number, x, rest[0])
            case "frame":
                self.take(w, number, x, *rest)

    def meet(self, w: World, number: int, x: int, hello: tuple[int, int, int]) -> None:
        end, (name, peer, received) = w.ends[x], hello
        if "said" in self.on and self.line(w, number).greetings[x] != (end.name, end.peer):
            return self.drop(w, number, x)
        new = name != end.peer or (peer != end.name and "known" not in self.on)
        if new and end.peer and w.ends[1 - x].peer == end.name and w.ends[1 - x].name == end.peer:
            w.wrong = f"{'DA'[x]} forgets what both know of each other"
        if new:
            self.set(w, x, unconfirmed=(), received=0, said=(), took=(), met=True, fresh=True)
        elif peer == end.name or "mine" not in self.on:
            self.set(w, x, unconfirmed=tuple(n for n in end.unconfirmed if n > received))
        if not new and "begun" not in self.on:
            self.set(w, x, fresh=False)
        self.set(w, x, peer=name, token=number)
        self.stage(w, number, x, "met")
        end_now = w.ends[x]
        first = end_now.unconfirmed[0] if end_now.unconfirmed else end_now.next
        self.send(w, number, x, ("begin", first))
        if "again" in self.on:
            for n in end_now.unconfirmed:
                self.send(w, number, x, ("frame", n, end_now.received))
        if end.token and end.token != number and any(line.number == end.token for line in w.lines):
            older = end.token
            self.drop(w, older, x)
        return None

    def begin(self, w: World, number: int, x: int, first: int) -> None:
        if w.ends[x].fresh:
            self.set(w, x, received=first - 1, fresh=False)
        elif first > w.ends[x].received + 1:
            w.wrong = f"frames are missing at {'DA'[x]}: {first} comes behind {w.ends[x].received}"

    def take(self, w: World, number: int, x: int, n: int, received: int) -> None:
        end = w.ends[x]
        if end.token != number:
            return self.drop(w, number, x)
        self.set(w, x, unconfirmed=tuple(m for m in end.unconfirmed if m > received))
        if n <= end.received and "once" in self.on:
            return None
        if n > end.received + 1:
            w.wrong = f"a frame is missing at {'DA'[x]}: {n} comes behind {end.received}"
        self.set(w, x, received=n, took=(*end.took, n))
        return None

    # ---- what must hold

    def bad(self, w: World) -> str:
        for x in (D, A):
            took = w.ends[x].took
            if len(set(took)) < len(took):
                return f"{'DA'[x]} took twice: {took}"
        return ""

    def rest(self, w: World) -> str:
        d, a = w.ends
        if not d.token or d.token != a.token:
            return "they do not talk to each other"
        for x, y in ((d, a), (a, d)):
            if x.said != y.took:
                return f"said {x.said}, taken {y.took}"
        return ""


MODEL = Model(
    RULES,
    {
        "overlap": lambda on: Link(on, words=1, overlaps=2, breaks=0),
        "breaks": lambda on: Link(on, words=2, overlaps=0, breaks=2),
        "another": lambda on: Link(on, words=2, overlaps=0, breaks=2, forgets=True),
        "all": lambda on: Link(on, words=1, overlaps=1, breaks=1, forgets=True),
    },
)

if __name__ == "__main__":
    sys.exit(MODEL.main("cluster.model_link", __doc__ or ""))
