"""The rules of docs/formats/durability.md by name, and the log that three machines of model.py share.

`Machine` is one log written in groups and one partition per lane (A, B, C): pieces handed over, a group collected, on its
way, safe; a sync carries out what waited for it. Its faults: a crash that keeps or loses the group on its way, a sync that
fails, a process that is killed while the group is in the page cache. What the records mean is up to each machine.
"""

from types import SimpleNamespace

RULES = {
    "ack-after-sync": "PUBACK and PUBREC (class durable) wait until the Enqueued is safe",
    "dropped-waits-too": "a repeated n that a partition has is answered only when what it has written is safe",
    "held-before-fan-out": "Held is written before the message goes to any lane",
    "same-n": "a repeated unfinished identifier has the same n",
    "n-not-reused": "n goes on above every n ever held, released or not",
    "origin-window-in-enqueued": "the n taken from an origin is in the Enqueued: both or neither survive",
    "pieces-before-mail": "a lane hands its piece to the log before it sends to other lanes",
    "one-queue": "pieces are taken in the one order in which they were handed over, not lane by lane",
    "pubcomp-after-released": "PUBCOMP waits until Released is safe, also for a repeated PUBREL",
    "qos2-leaves-when-safe": "a QoS 2 message leaves only when its Enqueued is safe",
    "pubrel-after-received": "PUBREL waits until Received is safe",
    "identifier-from-index": "a packet identifier is the index mod M",
    "identifier-after-safe-finish": "an identifier is used again when the Acknowledged of the older index is safe",
    "rewrite-after-failed-sync": "after an error the group is written again elsewhere; a later success proves nothing",
    "recovered-is-synced": "what a restart finds in the last whole group is written again and synced before it counts",
    "connack-after-sync": "CONNACK waits until SessionOpened is safe",
    "suback-after-sync": "SUBACK waits until Subscribed is safe",
    "unsuback-after-sync": "UNSUBACK waits until Unsubscribed is safe",
    "interest-before-serving": "after a restart no publish is taken before every lane knows the others' interest",
    "uid-with-incarnation": "a uid carries the incarnation, so an unlogged one is never used again",
    "incarnation-before-serving": "the incarnation is on the disk before anything is served",
    "given-before-dispatch": "GroupGiven is written before the message goes to the member",
    "member-knows-origin": "a member's partition drops a group's message that it has taken",
    "given-again": "after a restart a group gives to the same member what it had given to it",
    "finished-answers-again": "a message given again that the member has finished is reported as done again",
    "returned-answers-again": "what a member returned and is given again under its number is returned again: the window knows that",
    "recovered-counts-as-sent": "after a restart everything in a member's queue counts as sent",
    "dispatch-number-not-reused": "each giving has its own number, above every one ever given, on disk with the group",
    "index-not-reused": "an index goes on above every one ever used, also when a slice finds the queue empty",
    "group-atomic": "a group counts as a whole or not at all",
    "slice-replaces": "a Session with its Queue replaces what was known",
    "session-with-queue": "Session and Queue of one session lie in one piece",
    "skip-unknown": "a record of an unknown session is skipped",
    "origin-counts-when-skipped": "an Enqueued of unknown sessions still takes its n",
    "slice-of-safe": "a slice names only addresses that are safe, and no session with a Moved on its way",
    "address-follows": "a group written again has a new address, in memory too",
    "named-when-safe": "roost.json names a checkpoint when all of it is safe",
    "named-before-delete": "the log before a checkpoint goes only after roost.json names it",
    "dead-when-safe": "a body is dead when the record that finished it is safe",
    "moved-before-delete": "a segment is deleted when the Moved of its bodies are safe",
}
A, B, C = range(3)
LANES = "ABC"
MAY_WAIT = ("Acknowledged",)
"""Nobody is told anything that rests on it: it goes with the lane's next piece, or after a while alone."""


class Machine:
    """The log and its faults. A subclass gives `start`, `apply`, `moves`, `cuts`, `reborn`, `bad` and `rest`."""

    def __init__(self, on, **options):
        self.on, self.opt = frozenset(on), SimpleNamespace(**options)

    def first(self):
        """The log: on disk, in memory, pieces not handed over, waiting, being collected, on their way."""
        mem, world = self.start()
        log = dict(disk=mem, mem=mem, made=(), wait=(), got=(), look=0, way=(), failed=False, hole=False, cache=())
        return SimpleNamespace(f=self.opt.F, wrong="", **log, **world)

    def fold(self, state, pairs):
        for _, record in pairs:
            if record[0] != "!":
                state = self.apply(state, record)
        return state

    def write(self, w, lane, record, late=False):
        """Applied in memory at once; `late` is what happens when a rule about the order is missing."""
        w.mem = self.apply(w.mem, record)
        w.made += ((lane, record),)
        if not late and record[0] not in MAY_WAIT and "pieces-before-mail" in self.on:
            self.hand_over(w, lane)

    def when_safe(self, w, rule, lane, effect, *args):
        """The effect goes with the last record that this lane has on its way; at once if there is none."""
        for part in ("made", "wait", "got", "way"):
            pairs = getattr(w, part)
            if rule in self.on and any(other == lane for other, _ in pairs):
                return setattr(w, part, (*pairs, (lane, ("!", effect, *args))))
        return getattr(self, effect)(w, *args)

    @staticmethod
    def pending(w):
        return [record for _, record in w.way + w.got + w.wait + w.made]

    def steps(self, w):
        yield from self.moves(w)
        for lane in sorted({lane for lane, _ in w.made}):
            yield f"lane {LANES[lane]} hands over its piece", self.hand_over, lane
        if w.failed and "rewrite-after-failed-sync" in self.on:
            yield "the group is written again in a new segment", self.written_again
        elif w.failed:
            yield "the sync is tried again and says ok", self.sync_again
        elif w.way:
            yield f"SAFE: {self.show(w.way)}", self.synced
        elif w.look or w.wait:
            one = "one-queue" in self.on
            label = f"a group: {self.show(w.wait)}" if one else f"the log looks at lane {LANES[w.look]}"
            yield label, self.collect, one

    @staticmethod
    def show(pairs):
        return ", ".join(" ".join(map(str, record)) for _, record in pairs)

    def faults(self, w):
        if not w.f:
            return
        yield from self.cuts(w)
        yield "CRASH" + (", the group on its way is lost" if w.way else ""), self.crash, False
        if w.way:
            yield "CRASH, the group on its way is on the disk", self.crash, True
            if not w.failed:
                yield "the SYNC FAILS", self.sync_fails
            if "recovered-is-synced" not in self.on:
                yield "KILLED, the group on its way is in the page cache", self.killed

    def hand_over(self, w, lane):
        w.wait += tuple(p for p in w.made if p[0] == lane)
        w.made = tuple(p for p in w.made if p[0] != lane)

    def collect(self, w, one):
        if one:
            w.way, w.wait = w.wait, ()
            return
        w.got += tuple(p for p in w.wait if p[0] == w.look)
        w.wait = tuple(p for p in w.wait if p[0] != w.look)
        w.look = (w.look + 1) % len(LANES)
        if not w.look:
            w.way, w.got = w.got, ()

    def synced(self, w):
        way, w.way = w.way, ()
        if not w.hole:
            w.disk = self.fold(w.disk, w.cache + way)
        w.cache = ()
        for _, (kind, *rest) in way:
            if kind == "!":
                getattr(self, rest[0])(w, *rest[1:])

    def sync_fails(self, w):
        w.failed = True

    def written_again(self, w):
        w.failed = False

    def sync_again(self, w):
        w.failed, w.hole = False, True
        self.synced(w)

    def crash(self, w, kept):
        if kept and not w.hole:
            w.disk = self.fold(w.disk, w.cache + w.way)
        w.mem = w.disk
        w.made = w.wait = w.got = w.way = w.cache = ()
        w.look, w.failed, w.hole = 0, False, False
        self.reborn(w)

    def killed(self, w):
        """The restart sees what was written, but a power cut may still take it."""
        cache, hole = w.cache + w.way, w.hole or w.failed
        if not w.hole:
            w.disk, w.mem = w.disk, self.fold(w.disk, cache)
        w.made = w.wait = w.got = w.way = ()
        w.cache, w.look, w.failed, w.hole = cache, 0, False, hole
        self.reborn(w)
