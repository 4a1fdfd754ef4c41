"""A machine about checkpoints: slices while traffic runs, moved bodies, deleted segments, what a restart reads.

Its log is kept record by record, so that it is replayed from where `roost.json` points. It is wrong if a restart finds
anything but what was safe, if a body lies in a segment that is gone, or if a checkpoint never ends.
"""

from types import SimpleNamespace

from durability.model_log import Machine


class Checkpoint(Machine):
    """Two sessions of one partition. A body lies in the group of its Enqueued or its Moved; a group is a segment.

    In every state what a restart would find now is compared with the fold of all records ever safe, and every body
    must be readable. `log` is what is replayed, `bodies` are segments before it, kept for what is still wanted.
    """

    def first(self):
        begin = (("Opened", 0), ("Enqueued", 0, 0, 1))
        world = dict(log=((0, begin),), bodies=frozenset(), root=0, wait=(), way=(), number=0, failed=False)
        world |= dict(mem=self.replay(((0, begin),), 0), traffic=self.opt.T, moves=self.opt.V, count=0, todo=())
        return SimpleNamespace(f=self.opt.F, wrong="", **world, pure=self.plain(world["mem"]))

    @staticmethod
    def plain(state):
        return tuple(s and (tuple(i for i, _ in s[0]), s[1]) for s in state[:2]), state[2]

    def change(self, state, record, at):
        """Apply for live records and for replay; None if the reader stops here."""
        kind, s, *rest = record
        sessions, n = list(state[:2]), state[2]
        queue, index = (s in (0, 1) and sessions[s]) or ((), 0)
        known = kind in ("Opened", "Session", "Origins", "Began", "End") or sessions[s] is not None
        if not known and "skip-unknown" not in self.on:
            return None
        match kind, *rest:
            case "Origins", new:
                n = new
            case "Enqueued", i, new:
                n = max(n, new) if known or "origin-counts-when-skipped" in self.on else n
                queue, index = (*queue, (i, at)), i + 1
            case "Acknowledged", i, _:
                queue = tuple(e for e in queue if e[0] != i)
            case "Moved", i:
                queue = tuple((j, at if i == j else there) for j, there in queue)
            case "Session", index:
                queue = () if "slice-replaces" in self.on else queue
            case "Queue", entries:
                queue += entries
                index = index if "index-not-reused" in self.on else max((i + 1 for i, _ in queue), default=0)
        if kind == "Ended":
            sessions[s] = None
        elif known and s in (0, 1) and kind not in ("Origins", "Began", "End"):
            sessions[s] = queue, index
        return *sessions, n

    def replay(self, log, root):
        state, active = (None, None, 0), not root
        for number, records in log:
            for record in records:
                active = active or record == ("Began", None, root)
                after = self.change(state, record, number) if active else state
                if after is None:
                    return state
                state = after
        return state

    def write(self, w, *records):
        for record in records:
            if record[0] in ("Opened", "Enqueued", "Acknowledged", "Ended"):
                w.mem = self.change(w.mem, record, None)
        w.wait += records

    def steps(self, w):
        if w.traffic:
            yield from self.changes(w)
        yield from self.checkpoint(w)
        for s in (0, 1) if w.moves else ():
            for i, at in (w.mem[s] or [()])[0]:
                if at in w.bodies and ("Moved", s, i) not in w.wait + w.way:
                    yield f"Moved {s} {i}", self.move, s, i
        for number in sorted(w.bodies - self.wanted(w)):
            yield f"segment {number} is DELETED", self.delete, number
        if w.failed:
            yield "the group is written again in another segment", self.written, False
        elif w.way:
            yield f"SAFE {w.number}: {w.way}", self.synced
        elif w.wait:
            yield f"a group: {w.wait}", self.written, True

    def changes(self, w):
        for s in (0, 1):
            if w.mem[s] is None:
                yield f"Opened {s}", self.traffic, ("Opened", s)
                continue
            queue, index = w.mem[s]
            yield f"Enqueued {s} {index}", self.traffic, ("Enqueued", s, index, w.mem[2] + 1)
            for i, at in queue[:1]:
                yield f"Acknowledged {s} {i}", self.traffic, ("Acknowledged", s, i, at)
            if s:
                yield f"Ended {s}", self.traffic, ("Ended", s, tuple(at for _, at in queue))

    def traffic(self, w, record):
        w.traffic -= 1
        self.write(w, record)

    def checkpoint(self, w):
        here, pending = w.todo[:1], w.wait + w.way
        last = ("name", "trim") if "named-before-delete" in self.on else ("trim", "name")
        if not here and w.count < self.opt.checkpoints:
            yield "a checkpoint begins", self.slice, (0, "Origins", 1, "End", *last), ("Began", None, w.count + 1)
        elif here in ((0,), (1,)):
            state = w.mem[here[0]]
            moving = any(r[:2] == ("Moved", here[0]) for r in pending)
            strict = "slice-of-safe" in self.on
            unsafe = {None, w.number} if strict and w.way else {None}
            if state is None:
                yield "no slice of a session that is gone", self.finish, "skip"
            elif not (strict and moving) and all(at not in unsafe for _, at in state[0]):
                session, queue = ("Session", here[0], state[1]), ("Queue", here[0], state[0])
                whole = "session-with-queue" in self.on
                todo = w.todo[1:] if whole else (here[0] + 2, *w.todo[1:])
                yield f"slice {session} {queue}", self.slice, todo, session, *([queue] if whole else [])
        elif here in ((2,), (3,)):
            queue = ("Queue", here[0] - 2, (w.mem[here[0] - 2] or [()])[0])
            yield f"slice {queue}", self.slice, w.todo[1:], queue
        elif here == ("Origins",):
            yield f"slice Origins {w.mem[2]}", self.slice, w.todo[1:], ("Origins", None, w.mem[2])
        elif here == ("End",):
            yield "the checkpoint ends", self.slice, w.todo[1:], ("End", None, w.count)
        elif here and (("End", None, w.count) not in pending or "named-when-safe" not in self.on):
            yield f"{here[0]} checkpoint {w.count}", self.finish, here[0]

    def slice(self, w, todo, *records):
        w.todo = todo
        w.count += records[0][0] == "Began"
        self.write(w, *records)

    def finish(self, w, what):
        w.todo = w.todo[1:]
        if what == "name":
            w.root = w.count
        if what != "trim":
            return
        began = next((k for k, (_, rs) in enumerate(w.log) if ("Began", None, w.count) in rs), 0)
        w.bodies |= {number for number, _ in w.log[:began]}
        w.log = w.log[began:]

    def wanted(self, w):
        """Segments whose bodies are needed, by what is in memory and by what a crash would bring back."""
        pending = w.wait + w.way
        moved = {r[1:] for r in pending if r[0] == "Moved" and "moved-before-delete" not in self.on}
        wanted = {at for s in (0, 1) for i, at in (w.mem[s] or [()])[0] if (s, i) not in moved}
        if "dead-when-safe" in self.on:
            wanted |= {r[3] for r in pending if r[0] == "Acknowledged"}
            wanted |= {at for r in pending if r[0] == "Ended" for at in r[2]}
        return wanted

    def move(self, w, s, i):
        w.moves -= 1
        self.write(w, ("Moved", s, i))

    def delete(self, w, number):
        w.bodies -= {number}

    def placed(self, w, old, new):
        *sessions, n = w.mem
        w.mem = *(s and (tuple((i, new if at == old else at) for i, at in s[0]), s[1]) for s in sessions), n

    def written(self, w, fresh):
        old, w.number, w.failed = w.number, 1 + max(w.number, w.log[-1][0]), False
        if fresh:
            w.way, w.wait, old = w.wait, (), None
        if fresh or "address-follows" in self.on:
            self.placed(w, old, w.number)

    def synced(self, w):
        for record in w.way:
            w.mem = self.change(w.mem, record, w.number) if record[0] == "Moved" and w.mem[record[1]] else w.mem
        w.log, w.pure = (*w.log, (w.number, w.way)), self.after(w, w.way)
        w.way = ()

    def after(self, w, records):
        """What the records mean to a reader that has read everything from the beginning."""
        state = tuple(s and (tuple((i, None) for i in s[0]), s[1]) for s in w.pure[0]) + w.pure[1:]
        for record in records:
            if record[0] in ("Opened", "Enqueued", "Acknowledged", "Ended"):
                state = self.change(state, record, None)
        return self.plain(state)

    def faults(self, w):
        if not w.f:
            return
        yield "CRASH", self.crash, False
        if w.way:
            yield "CRASH, the group on its way is on the disk", self.crash, True
            if not w.failed:
                yield "the SYNC FAILS", self.sync_fails

    def crash(self, w, kept):
        if kept:
            self.synced(w)
        w.mem, w.wait, w.way, w.todo, w.failed = self.replay(w.log, w.root), (), (), (), False

    def bad(self, w):
        ends = [()] + ([w.way] if w.way else [])
        if "group-atomic" not in self.on:
            ends = [w.way[:k] for k in range(len(w.way) + 1)]
        for records in ends:
            log = (*w.log, (w.number, records)) if records else w.log
            found, meant = self.replay(log, w.root), self.after(w, records)
            if self.plain(found) != meant:
                return f"a restart finds {self.plain(found)} instead of {meant}"
            lost = {at for s in found[:2] for _, at in (s or [()])[0]} - w.bodies - {number for number, _ in log}
            if lost:
                return f"a restart finds bodies in segments that are gone: {lost}"
        return ""

    def rest(self, w):
        return f"the checkpoint waits for ever: {w.todo}" if w.todo else ""
