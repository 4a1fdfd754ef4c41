"""A machine about a shared group in lane C that gives messages to two members in other lanes.

It models giving, taking, finishing and returning, members that are cut off, and what is given again after a restart. It is
wrong if a message of QoS 2 reaches a member twice, if an acknowledged one reaches nobody, or if the group keeps one for ever.
"""

from durability.model_log import A, B, C, Machine
from durability.model_sessions import Path


class Shares(Machine):
    """A group in C, members X and Y in B (`apart`: Y in A). A partition has one window for the group's origin."""

    def start(self):
        world = dict(next=1, acks=frozenset(), online=frozenset(), down=(), up=(), sent=frozenset(), live=frozenset())
        return ((), 0, ((), ()), 0, frozenset(), 0), world | dict(known=frozenset(), app=())

    def lane(self, z):
        return A if z and self.opt.apart else B

    def apply(self, state, record):
        entries, index, queues, top, taken, last = state
        match record:
            case "Enqueued", i, message:
                entries, index = (*entries, (i, message, None)), i + 1
            case "GroupGiven" | "GroupReturned", i, to:
                entries = tuple((j, m, to if i == j else given) for j, m, given in entries)
                last = max(last, to[1] if to else 0)
            case "Finished", i:
                entries = tuple(e for e in entries if e[0] != i)
            case "Taken", z, j, n, m:
                queues = tuple((*q, (j, n, m)) if z == y else q for y, q in enumerate(queues))
                top, taken = j + 1, taken | {(self.lane(z), n)}
            case "Acknowledged" | "Returned" as kind, z, j:
                n = next((n for k, n, _ in queues[z] if k == j), None)
                queues = tuple(tuple(e for e in q if e[0] != j) if z == y else q for y, q in enumerate(queues))
                if kind == "Returned" and "returned-answers-again" in self.on:
                    taken |= {(self.lane(z), -n)}
            case "NotTaken", z, n:
                taken |= {(self.lane(z), n), (self.lane(z), -n)}
        return entries, index, queues, top, taken, last

    def moves(self, w):
        entries, queues = w.mem[0], w.mem[2]
        if w.next <= self.opt.K and not entries:
            yield f"m{w.next} for the group", self.publish
        for i, _, given in entries:
            for z in sorted(w.online) if given is None else ():
                yield f"the group gives {i} to {'XY'[z]}", self.give, i, z
        for z in (0, 1):
            for box, act in ((w.down, self.take), (w.up, self.told)):
                for mail in [m for m in box if m[0] == z][:1]:
                    yield f"{'to' if box is w.down else 'from'} {'XY'[z]}: {mail[1:]}", act, mail
            if z not in w.online:
                yield f"{'XY'[z]} connects", lambda w, z: Path.set(w, "online", w.online | {z}), z
                continue
            for j, n, m in queues[z]:
                if (z, j) in w.live:
                    yield f"{'XY'[z]} has finished m{m}", self.finish, z, j, n
                elif not self.opt.exactly or "qos2-leaves-when-safe" not in self.on or self.safe(w, z, j):
                    yield f"PUBLISH m{m} to {'XY'[z]}", self.send, z, j, m

    def safe(self, w, z, j):
        return all(r[:3] != ("Taken", z, j) for r in self.pending(w))

    def publish(self, w):
        self.write(w, C, ("Enqueued", w.mem[1], w.next))
        self.when_safe(w, "ack-after-sync", C, "acked", w.next)
        w.next += 1

    def acked(self, w, message):
        w.acks |= {message}

    def give(self, w, i, z):
        n = w.mem[5] + 1
        self.write(w, C, ("GroupGiven", i, (z, n)), late="given-before-dispatch" not in self.on)
        w.down += ((z, n, next(m for j, m, _ in w.mem[0] if i == j)),)

    def take(self, w, mail):
        z, n, m = mail
        w.down = self.without(w.down, mail)
        if (self.lane(z), -n) in w.mem[4]:
            w.up += ((z, n, "back"),)
        elif (self.lane(z), n) in w.mem[4] and "member-knows-origin" in self.on:
            if all(n != k for _, k, _ in w.mem[2][z]) and "finished-answers-again" in self.on:
                w.up += ((z, n, "done"),)
        elif z not in w.online:
            self.write(w, self.lane(z), ("NotTaken", z, n))
            w.up += ((z, n, "back"),)
        else:
            self.write(w, self.lane(z), ("Taken", z, w.mem[3], n, m))

    @staticmethod
    def without(box, mail):
        at = box.index(mail)
        return box[:at] + box[at + 1 :]

    def told(self, w, mail):
        z, n, what = mail
        w.up = self.without(w.up, mail)
        for i in [j for j, _, given in w.mem[0] if given == (z, n)]:
            self.write(w, C, ("Finished", i) if what == "done" else ("GroupReturned", i, None))

    def send(self, w, z, j, message):
        if (z, j) not in w.known or not self.opt.exactly:
            w.app += (message,)
        w.known, w.sent, w.live = w.known | {(z, j)}, w.sent | {(z, j)}, w.live | {(z, j)}

    def finish(self, w, z, j, n):
        self.write(w, self.lane(z), ("Acknowledged", z, j))
        w.up += ((z, n, "done"),)

    def cuts(self, w):
        for z in sorted(w.online):
            yield f"{'XY'[z]} is CUT OFF", self.cut, z

    def cut(self, w, z):
        w.online, w.live = w.online - {z}, frozenset(e for e in w.live if e[0] != z)
        for j, n, _ in w.mem[2][z]:
            if (z, j) not in w.sent:
                self.write(w, self.lane(z), ("Returned", z, j))
                w.up += ((z, n, "back"),)

    def reborn(self, w):
        entries, queues = w.mem[0], w.mem[2]
        if "dispatch-number-not-reused" not in self.on:
            w.mem = *w.mem[:5], max((given[1] for _, _, given in entries if given), default=0)
        w.online = w.live = w.sent = frozenset()
        w.up, w.down = (), ()
        if "recovered-counts-as-sent" in self.on:
            w.sent = frozenset((z, j) for z in (0, 1) for j, _, _ in queues[z])
        if "given-again" in self.on:
            w.down = tuple((*given, m) for _, m, given in entries if given)

    def bad(self, w):
        return f"given to the members: {w.app}" if self.opt.exactly and len(w.app) != len(set(w.app)) else ""

    def rest(self, w):
        if w.mem[0]:
            return f"the group keeps {w.mem[0]} for ever"
        return "" if w.acks <= set(w.app) else f"acknowledged: {sorted(w.acks)}, members got {w.app}"
