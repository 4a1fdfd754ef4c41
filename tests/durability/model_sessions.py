"""Two machines about one publisher in lane A and one persistent session in lane B.

`Path` models QoS 2 from end to end: Held and Released, the window of an origin, identifiers, Received and Acknowledged. It
is wrong if a message arrives twice, out of order or not at all. `Sessions` models CONNACK, SUBACK, UNSUBACK, interest in
other lanes, uids and incarnations, and class `memory`. It is wrong if something that a client was told does not hold.
"""

from durability.model_log import A, B, Machine

OTHER = 99


class Path(Machine):
    """QoS 2 exactly once and in order; `fed` messages are in the subscriber's queue at the beginning."""

    def start(self):
        fed = self.opt.fed
        world = dict(next=fed + 1, open=(), link=None, mail=(), known=frozenset(), app=(), sub=None, top=-1)
        world |= dict(other=self.opt.other)
        return ((), 0, tuple((i, i + 1, 0) for i in range(fed)), fed, 0, ()), world

    def apply(self, state, record):
        held, last, queue, index, floor, taken = state
        match record:
            case "Held", i, n:
                held, last = tuple(sorted({*held, (i, n)})), max(last, n)
            case "Released", i:
                held = tuple(h for h in held if h[0] != i)
            case "Enqueued", i, message, n, answered:
                queue, index, floor = (*queue, (i, message, 0)), i + 1, max(floor, answered)
                taken = tuple(x for x in (*taken, n) if x > floor)
            case "Received", i:
                queue = tuple((j, m, 1 if i == j else stage) for j, m, stage in queue)
            case "Acknowledged", i:
                queue = tuple(e for e in queue if e[0] != i)
        return held, last, queue, index, floor, taken

    def moves(self, w):
        if self.opt.fed < self.opt.K:
            yield from self.publisher(w)
        if w.mail:
            yield f"B takes n={w.mail[0][1]} m{w.mail[0][2]}", self.arrive
        if w.other:
            yield "B takes a message of another publisher", self.another
        if self.opt.R:
            yield from self.subscriber(w)

    def publisher(self, w):
        if w.link is None:
            yield "the publisher connects", self.set, "link", ()
            return
        asked = {i for i, _ in w.link}
        waiting = [m for m in w.open if m[0] not in asked]
        for i, message, released in waiting[:1]:
            yield f"{'PUBREL' if released else 'PUBLISH again'} {i} m{message}", self.send, i, message, released
        if w.next <= self.opt.K and len(w.open) < self.opt.W and all(m[2] for m in waiting):
            i = min(set(range(1, self.opt.W + 1)) - {m[0] for m in w.open})
            yield f"PUBLISH {i} m{w.next}", self.send, i, w.next, False

    @staticmethod
    def set(w, name, value):
        setattr(w, name, value)

    def send(self, w, i, message, released):
        if message == w.next:
            w.next, w.open = w.next + 1, (*w.open, (i, message, False))
        held, last = dict(w.mem[0]), w.mem[1]
        n = held.get(i, 0)
        if released:
            w.link += ((i, n),)
            if n:
                self.write(w, A, ("Released", i))
            return self.when_safe(w, "pubcomp-after-released", A, "pubcomp", i)
        if not n or "same-n" not in self.on:
            n = last + 1
            self.write(w, A, ("Released", i)) if i in held else None
            self.write(w, A, ("Held", i, n), late="held-before-fan-out" not in self.on)
        w.link += ((i, n),)
        w.mail += ((i, n, message, min(m for _, m in w.mem[0]) - 1),)
        return None

    def arrive(self, w):
        (i, n, message, answered), *rest = w.mail
        w.mail = tuple(rest)
        again = n <= w.mem[4] or n in w.mem[5]
        if not again:
            self.write(w, B, ("Enqueued", w.mem[3], message, n, answered))
        self.when_safe(w, "dropped-waits-too" if again else "ack-after-sync", B, "pubrec", i, n)

    def another(self, w):
        """Of class `memory`: it may be lost, and must not take another's place."""
        w.other -= 1
        self.write(w, B, ("Enqueued", w.mem[3], OTHER, 0, 0))

    def pubrec(self, w, i, n):
        if (i, n) in (w.link or ()) and any(m[0] == i and not m[2] for m in w.open):
            w.link = tuple(e for e in w.link if e[0] != i)
            w.open = tuple((*m[:2], m[2] or m[0] == i) for m in w.open)

    def pubcomp(self, w, i):
        if any(e[0] == i for e in w.link or ()) and any(m[0] == i and m[2] for m in w.open):
            w.link = tuple(e for e in w.link if e[0] != i)
            w.open = tuple(m for m in w.open if m[0] != i)

    def subscriber(self, w):
        queue, pending = w.mem[2], self.pending(w)
        if w.sub is None:
            yield "the subscriber connects", self.attach
            return
        for i, pid, stage in w.sub:
            if stage in (0, 2):
                yield f"{'PUBCOMP' if stage else 'PUBREC'} {pid}", self.answer, i, stage
        entry = next((e for e in queue if e[0] > w.top and not e[2]), None)
        if not entry or len(w.sub) == self.opt.R:
            return
        i, pid = entry[0], self.identifier(w.sub, entry[0])
        ours = any(r[0] == "Enqueued" and r[1] == i for r in pending)
        older = any((j - i) % self.opt.M == 0 for j, _, _ in queue if j < i)
        if "identifier-after-safe-finish" in self.on:
            older |= any(r[0] == "Acknowledged" and (r[1] - i) % self.opt.M == 0 for r in pending)
        if not older and not (ours and "qos2-leaves-when-safe" in self.on):
            yield f"PUBLISH {pid} m{entry[1]} (index {i}) to the subscriber", self.deliver, i, pid, entry[1]

    def identifier(self, sub, i):
        if "identifier-from-index" in self.on:
            return i % self.opt.M
        return min(set(range(self.opt.M + self.opt.R)) - {pid for _, pid, _ in sub})

    def attach(self, w):
        w.sub, w.top = (), -1
        for i, _, stage in w.mem[2]:
            if stage:
                w.sub += ((i, self.identifier(w.sub, i), 1),)
                self.when_safe(w, "pubrel-after-received", B, "pubrel", i)

    def deliver(self, w, i, pid, message):
        w.app += () if pid in w.known else (message,)
        w.known, w.sub, w.top = w.known | {pid}, (*w.sub, (i, pid, 0)), i

    def answer(self, w, i, stage):
        self.write(w, B, ("Acknowledged" if stage else "Received", i))
        w.sub = tuple((j, pid, 1 if i == j else s) for j, pid, s in w.sub if not (stage and i == j))
        if not stage:
            self.when_safe(w, "pubrel-after-received", B, "pubrel", i)

    def pubrel(self, w, i):
        pid = next((pid for j, pid, s in w.sub or () if (j, s) == (i, 1)), None)
        if pid is not None:
            w.known -= {pid}
            w.sub = tuple((j, p, 2 if i == j else s) for j, p, s in w.sub)

    def cuts(self, w):
        if w.link:
            yield "the publisher is CUT OFF", self.set, "link", None
        if w.sub:
            yield "the subscriber is CUT OFF", self.set, "sub", None

    def reborn(self, w):
        held, last, queue, index, floor, taken = w.mem
        if "n-not-reused" not in self.on:
            last = max((n for _, n in held), default=0)
        if "origin-window-in-enqueued" not in self.on:
            floor, taken = 0, ()
        w.mem = held, last, queue, index, floor, taken
        w.link, w.mail, w.sub, w.top = None, (), None, -1

    def seen(self, w):
        return tuple(m for m in (w.app if self.opt.R else [e[1] for e in w.mem[2]]) if m != OTHER)

    def bad(self, w):
        seen = self.seen(w)
        return "" if list(seen) == sorted(set(seen)) else f"twice or out of order: {seen}"

    def rest(self, w):
        seen = self.seen(w)
        return "" if seen == tuple(range(1, self.opt.K + 1)) else f"{seen} of {self.opt.K} delivered"


class Sessions(Machine):
    """A persistent session X in B, and a publisher in A whose session ends with its connection."""

    def start(self):
        world = dict(link=None, top=-1, state="new", told=False, wants=False, out=(), back=())
        world |= dict(
            pub=None,
            next=1,
            open=None,
            promised=frozenset(),
            app=(),
            late=frozenset(),
            number=1,
            incarnation=1,
            stored=1,
        )
        return (None, False, (), 0, frozenset()), world

    def apply(self, state, record):
        uid, subscribed, queue, index, window = state
        match record:
            case "SessionOpened", new:
                uid = new
            case "Subscribed" | "Unsubscribed" as kind, *_:
                subscribed = kind == "Subscribed"
            case "Enqueued", i, message, origin:
                queue, index, window = (*queue, (i, message)), i + 1, window | {origin}
            case "Acknowledged", i:
                queue = tuple(e for e in queue if e[0] != i)
        return uid, subscribed, queue, index, window

    def moves(self, w):
        if w.stored != w.incarnation:
            yield "roost.json has the incarnation", lambda w: Path.set(w, "stored", w.incarnation)
        if w.pub is None and (w.next <= self.opt.K):
            yield "the publisher connects", self.publisher
        elif w.open is None and w.next <= self.opt.K:
            yield f"PUBLISH m{w.next} of {w.pub[0]}", self.publish
        if w.out:
            yield f"B reads {w.out[0]}", self.read_b
        if w.back:
            yield f"A reads {w.back[0]}", self.read_a
        if w.link is None:
            yield "X connects", self.attach
        if w.link != "on":
            return
        if w.state == "new":
            yield "X subscribes", self.subscribe
        elif w.state in ("subscribed", "leaving") and self.opt.leaves:
            yield "X unsubscribes", self.unsubscribe
        for i, message in w.mem[2][:1]:
            if i <= w.top:
                yield f"PUBACK m{message} from X", self.write, B, ("Acknowledged", i)
        for i, message in [e for e in w.mem[2] if e[0] > w.top][:1]:
            yield f"PUBLISH m{message} to X", self.deliver, i, message

    def new_uid(self, w):
        w.number += 1
        return (w.incarnation if "uid-with-incarnation" in self.on else 0), w.number - 1

    def publisher(self, w):
        w.pub = (self.new_uid(w), 0)

    def publish(self, w):
        (uid, n), message = w.pub, w.next
        w.pub, w.next, w.open = (uid, n + 1), message + 1, (message, w.state)
        w.late |= {message} if w.state == "gone" else set()
        if not w.wants:
            return self.acked(w, message)
        w.out += ((message, (uid, n + 1)),)
        return self.acked(w, message) if message in self.opt.memory else None

    def read_b(self, w):
        (message, origin), *rest = w.out
        w.out = tuple(rest)
        if message == "known":
            return self.when_safe(w, "suback-after-sync", B, "suback")
        again = origin in w.mem[4]
        if w.mem[1] and not again:
            self.write(w, B, ("Enqueued", w.mem[3], message, origin))
        return self.when_safe(w, "dropped-waits-too" if again else "ack-after-sync", B, "acked", message)

    def read_a(self, w):
        w.wants, *rest = w.back
        w.back = tuple(rest)
        w.out += (("known", None),) if w.wants else ()

    def acked(self, w, message):
        if w.open and w.open[0] == message:
            w.promised |= {message} if w.open[1] == w.state == "subscribed" else set()
            w.open = None

    def attach(self, w):
        present = w.mem[0] is not None
        w.link = "asked"
        if not present:
            self.write(w, B, ("SessionOpened", self.new_uid(w)))
        self.when_safe(w, "connack-after-sync", B, "connack", present)

    def connack(self, w, present):
        if w.link == "asked":
            w.wrong = "a session that was said to exist is gone" if w.told and not present else w.wrong
            w.link, w.told = "on", True

    def subscribe(self, w):
        w.link = "subscribing"
        self.write(w, B, ("Subscribed",))
        w.back += (True,)

    def suback(self, w):
        if w.link == "subscribing":
            w.link, w.state = "on", "subscribed"

    def unsubscribe(self, w):
        w.link, w.state = "leaving", "leaving"
        self.write(w, B, ("Unsubscribed",))
        w.back += (False,)
        self.when_safe(w, "unsuback-after-sync", B, "unsuback")

    def unsuback(self, w):
        if w.link == "leaving":
            w.link, w.state = "on", "gone"

    def deliver(self, w, i, message):
        w.wrong = f"m{message} was published after UNSUBACK" if message in w.late else w.wrong
        w.app, w.top = w.app + ((message,) if message not in w.app else ()), i

    def cuts(self, w):
        if w.link:
            yield "X is CUT OFF", self.cut, False
        if w.pub:
            yield "the publisher is CUT OFF", self.cut, True

    def cut(self, w, publisher):
        if publisher:
            w.pub = w.open = None
        else:
            w.link, w.top = None, -1

    def reborn(self, w):
        self.cut(w, True)
        self.cut(w, False)
        w.out, w.back, w.wants = (), (), w.mem[1]
        if w.wants and "interest-before-serving" not in self.on:
            w.wants, w.back = False, (True,)
        w.incarnation = w.stored + 1
        if "incarnation-before-serving" in self.on:
            w.stored = w.incarnation
        w.number = 1 if "uid-with-incarnation" in self.on or not w.mem[0] else w.mem[0][1] + 1
        w.promised -= set(self.opt.memory) - set(w.app)

    def bad(self, w):
        return "" if list(w.app) == sorted(w.app) else f"out of order: {w.app}"

    def rest(self, w):
        missing = w.promised - set(w.app)
        return f"acknowledged and never delivered: {sorted(missing)}" if missing else ""
