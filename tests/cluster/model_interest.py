"""Who subscribes while a partition moves misses nothing: two small machines, explored completely (docs/decisions/0011).

`Live`: a session's partition moves from C to D. The session subscribes at any moment; what is published at the door A after its SUBACK
must come. `Kept`: the partition that keeps a topic's retained message moves from C to D. A publishes a retained message, a session
at B, which does not move, subscribes: it gets the message live, or as the retained one.

Links are first in, first out, each as slow as it likes. Left out: faults (an heir reads the log), other filters.

    PYTHONPATH=tests python -m cluster.model_interest [--without RULE] [--each]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from cluster.explored import Model

RULES = {
    "halt": "the owner seals only when every door has answered the halt",
    "freeze": "a door that has answered it holds what matches until somebody speaks for the partition",
    "rest": "the owner seals only when no SUBACK of its sessions is due",
    "barrier": "a SUBACK waits until every door has confirmed the interest that contains its filter",
    "learn": "what the owner grants behind the halt is wanted while the partition is on its way",
    "first": "a new owner says what its sessions want before, or with, speaking for them",
    "counts": "a keeper answers a question for retained messages behind all that the confirmations speak of",
    "late": "a door in which a matching retained copy waits confirms an interest behind that copy",
    "defer": "who asks for retained messages waits while the partition that keeps them is on its way",
}
C, D = 0, 1
World = Any
Step = tuple[Any, ...]


class Live:
    """The session's partition moves. `asks`: the SUBACK is due; `sub`: it has come."""

    def __init__(self, on: set[str]) -> None:
        self.on = on

    def first(self) -> World:
        return SimpleNamespace(
            f=0, wrong="", owner=C, phase="idle", wants=False, asks=False, lost=False, sub=False, at_door=((), ()),
            at_node=((), ()), interest=(False, False), known=C, halted=False, frozen=False, held=0, due=0, got=0,
            published=0,
        )  # fmt: skip

    def steps(self, w: World) -> Iterator[Step]:
        for n in (C, D):
            if w.at_door[n]:
                yield f"A gets {w.at_door[n][0]} from {'CD'[n]}", self.door, n
            if w.at_node[n]:
                yield f"{'CD'[n]} gets {w.at_node[n][0]}", self.node, n
        if w.published < 2:
            yield "A publishes", self.publish
        if not w.wants and w.phase in ("idle", "halting", "halted"):
            yield "the session subscribes", self.subscribe
        if w.phase == "idle":
            yield "C asks A to halt", self.halt
        if (w.phase == "halted" or ("halt" not in self.on and w.phase == "halting")) and not (
            w.asks and "rest" in self.on
        ):
            yield "C seals", self.seal
        if w.phase == "sealed":
            yield "D owns", self.own

    def faults(self, _: World) -> Iterator[Step]:
        return iter(())

    def subscribe(self, w: World) -> None:
        w.wants = w.asks = True
        say(w, "at_door", C, "want")
        if "barrier" not in self.on:
            w.asks, w.sub = False, True

    def publish(self, w: World) -> None:
        w.published += 1
        w.due += w.sub
        matches = w.frozen or w.interest[w.known]
        if w.halted and matches and "freeze" in self.on:
            w.held += 1
            return
        for n in (C, D):
            if w.interest[n]:
                say(w, "at_node", n, "publish")

    def halt(self, w: World) -> None:
        w.phase = "halting"
        say(w, "at_door", C, "halt")

    def seal(self, w: World) -> None:
        w.phase, w.lost = "sealed", w.asks
        if w.wants:
            say(w, "at_door", C, "unwant")

    def own(self, w: World) -> None:
        w.phase, w.owner = "over", D
        words = ["want"] * w.wants
        words = [*words, "speaks"] if "first" in self.on else ["speaks", *words]
        for word in words:
            say(w, "at_door", D, word)

    def door(self, w: World, n: int) -> None:
        word = take(w, "at_door", n)
        if word in ("want", "unwant"):
            put(w, "interest", n, word == "want")
            if word == "want" and w.halted and n == w.known and "learn" in self.on:
                w.frozen = True
            if word == "want":
                say(w, "at_node", n, "confirm")
        elif word == "halt":
            w.halted, w.frozen = True, w.interest[C]
            say(w, "at_node", C, "halted")
        else:
            w.known, w.halted, w.frozen = n, False, False
            for _ in range(w.held):
                if w.interest[D]:
                    say(w, "at_node", D, "publish")
            w.held = 0

    def node(self, w: World, n: int) -> None:
        word = take(w, "at_node", n)
        if word == "confirm" and w.asks and not w.lost:
            w.asks, w.sub = False, True
        elif word == "halted" and w.phase == "halting":
            w.phase = "halted"
        elif word == "publish" and w.wants and n == w.owner and w.phase != "sealed":
            w.got += 1

    def bad(self, w: World) -> str:
        return f"{w.got} copies of {w.published}" if w.got > w.published else ""

    def rest(self, w: World) -> str:
        if w.asks:
            return "no SUBACK"
        return f"{w.due} were published after the SUBACK, {w.got} came" if w.got < w.due else ""


class Kept:
    """The keeper moves. `sent`: copies that A has sent to each; `told`: the counts with A's confirmation to B."""

    def __init__(self, on: set[str]) -> None:
        self.on = on

    def first(self) -> World:
        return SimpleNamespace(
            f=0, wrong="", owner=C, phase="idle", kept=False, to_a=((), (), ()), to_b=((), (), ()),
            to_node=((), (), ()), a=(C, False), b=(C, False), missing=2, interest=False, held=False, published=False,
            sent=(0, 0), had=(0, 0), told=None, asked="", asks=(), late=False, live=False, found=None,
        )  # fmt: skip

    def steps(self, w: World) -> Iterator[Step]:
        for n in (C, D):
            for door in ("to_a", "to_b"):
                if getattr(w, door)[n]:
                    yield f"{door[3:].upper()} gets {getattr(w, door)[n][0]} from {'CD'[n]}", self.door, door, n
            if w.to_node[n]:
                yield f"{'CD'[n]} gets {w.to_node[n][0]}", self.node, n
        if w.to_a[2]:
            yield "A gets what B wants", self.interest
        if w.to_b[2]:
            yield f"B gets {w.to_b[2][0][0]} from A", self.from_a
        if not w.published:
            yield "A publishes", self.publish
        if not w.asked:
            yield "B's session subscribes", self.subscribe
        if w.asked == "granted" and (not w.b[1] or "defer" not in self.on):
            yield "B asks the keeper", self.ask
        if w.phase == "idle":
            yield "C asks both to halt", self.halt
        if w.phase == "halting" and not w.missing:
            yield "C seals", self.seal
        if w.phase == "sealed":
            yield "D owns", self.own
        for ask in w.asks:
            n, counts = ask
            ready = counts is None or w.had[n] >= counts[n] or "counts" not in self.on
            if ready and (w.owner, w.phase == "sealed") == (n, False):
                yield f"{'CD'[n]} answers B", self.answer, ask

    def faults(self, _: World) -> Iterator[Step]:
        return iter(())

    def publish(self, w: World) -> None:
        w.published = True
        if w.interest:
            say(w, "to_b", 2, ("message", None))
        if w.a[1]:
            w.held = True
        else:
            self.copy(w)

    def copy(self, w: World) -> None:
        put(w, "sent", w.a[0], w.sent[w.a[0]] + 1)
        say(w, "to_node", w.a[0], "copy")

    def subscribe(self, w: World) -> None:
        w.asked = "waits"
        say(w, "to_a", 2, "want")

    def interest(self, w: World) -> None:
        take(w, "to_a", 2)
        w.interest = True
        if w.held and "late" in self.on:
            w.late = True
        else:
            say(w, "to_b", 2, ("confirm", w.sent))

    def from_a(self, w: World) -> None:
        word, counts = take(w, "to_b", 2)
        if word == "message":
            w.live = True
        else:
            w.asked, w.told = "granted", counts

    def ask(self, w: World) -> None:
        w.asked = "asks"
        w.asks = ((w.b[0], w.told),)

    def answer(self, w: World, ask: Any) -> None:
        w.asks = tuple(a for a in w.asks if a != ask)
        w.found = w.kept

    def halt(self, w: World) -> None:
        w.phase = "halting"
        for door in ("to_a", "to_b"):
            say(w, door, C, "halt")

    def seal(self, w: World) -> None:
        # a question that is here is answered first: it belongs to what has to be at rest
        if any(n == C for n, _ in w.asks):
            return
        w.phase = "sealed"

    def own(self, w: World) -> None:
        w.phase, w.owner = "over", D
        for door in ("to_a", "to_b"):
            say(w, door, D, "speaks")

    def door(self, w: World, door: str, n: int) -> None:
        word = take(w, door, n)
        name = door[3:]
        if word == "halt":
            setattr(w, name, (C, True))
            say(w, "to_node", C, "halted")
            return
        setattr(w, name, (D, False))
        if name == "a":
            if w.held:
                w.held = False
                self.copy(w)
            if w.late:
                w.late = False
                say(w, "to_b", 2, ("confirm", w.sent))

    def node(self, w: World, n: int) -> None:
        word = take(w, "to_node", n)
        if word == "halted":
            w.missing -= 1
        else:
            w.kept = True
            put(w, "had", n, w.had[n] + 1)

    def bad(self, _: World) -> str:
        return ""

    def rest(self, w: World) -> str:
        if w.asked != "asks" or w.asks:
            return "the question was not answered"
        return "" if w.live or w.found else "neither live nor retained"


def say(w: World, name: str, n: int, word: Any) -> None:
    """Behind all that was said."""
    put(w, name, n, (*getattr(w, name)[n], word))


def take(w: World, name: str, n: int) -> Any:
    """What was said first."""
    word, *rest = getattr(w, name)[n]
    put(w, name, n, tuple(rest))
    return word


def put(w: World, name: str, n: int, value: Any) -> None:
    """One of a few."""
    all_of = list(getattr(w, name))
    all_of[n] = value
    setattr(w, name, tuple(all_of))


MODEL = Model(RULES, {"live": Live, "kept": Kept})

if __name__ == "__main__":
    sys.exit(MODEL.main("cluster.model_interest", __doc__ or ""))
