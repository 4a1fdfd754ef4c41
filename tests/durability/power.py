"""The power-cut harness: a real broker under load on the file layer, and what it has acknowledged against each cut.

Contract: while checking clients work on one broker, they are stopped now and then for some milliseconds and what they
know is kept, with the length of the journal before and after (`Shot`). Whatever they were told was told when the
journal had the first length, and nothing that they did later can be in the journal up to the second one. So for each
cut between the two, the directory is built as the power cut could have left it (`image.py`), a real broker is started
on it, the clients go on from what they knew, everything is drained, and compared as after a `kill -9` (`crash.py`).
Cuts befall the first start, the load, the starts after a kill, and starts on what another cut has left.

    PYTHONPATH=tests .venv/bin/python -m durability.power --cuts 300 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import io
import pickle
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from durability import crash
from durability.book import Book, Result, Violation
from durability.image import Disk, Note, between, ends, notes
from durability.layer import Layer
from durability.link import Client, Link
from durability.population import Looker, population
from durability.publishers import Publisher
from durability.site import CONFIG, BrokerFailed, Site
from durability.subscribers import Churner, Passer, Subscriber

TOGETHER = 3
AGAIN_SHARE = 0.25
FIRST_SHARE = 0.5
DIE_S = 1.0
MISSING_S = 3.0
DRAIN_S = 20.0
FAULTS = "write=EIO sync=EIO names=EIO one_in=6"
MORE_CONFIG = "[durability]\ncheckpoint_bytes_min = 1000000\ncache_bytes_max = 100000\n"


@dataclass
class Plan:
    """What happens in one load and after it; times in seconds."""

    seed: int = 1
    cuts: int = 16
    shots: int = 8
    kills: int = 1
    lanes: int = 1
    rate: float = 200.0
    between_s: float = 0.25
    frozen_s: float = 0.02
    delays_us: tuple[int, ...] = (0, 1000, 5000, 20000)
    faults: bool = False

    def crash_plan(self) -> crash.Plan:
        return crash.Plan(self.seed, self.kills, self.lanes, rate=self.rate, quiet_s=0.15, drain_s=DRAIN_S)

    def words(self) -> str:
        faults = ", a disk that refuses now and then" * self.faults
        return f"power cuts: {self.cuts} cuts, {self.kills} kills, {self.lanes} lanes, seed {self.seed}{faults}"


# ---- what the clients know


class Pickler(pickle.Pickler):
    """What the clients know, without the broker, the sockets and who waits for them."""

    def persistent_id(self, obj: Any) -> str | None:
        if isinstance(obj, Site):
            return "site"
        return "nothing" if isinstance(obj, Link | asyncio.Future) else None


class Unpickler(pickle.Unpickler):
    """The same again, for another broker."""

    def __init__(self, raw: bytes, site: Site) -> None:
        super().__init__(io.BytesIO(raw))
        self.site = site

    def persistent_load(self, pid: str) -> Site | None:
        return self.site if pid == "site" else None


@dataclass
class Shot:
    """What all clients knew at one moment, and between which lengths of the journal a cut fits it."""

    what: str
    at: float
    low: int
    raw: bytes
    high: int = 0


class Watched(Site):
    """A site that rings when a packet of one kind has come and was dealt with: right after an acknowledgement."""

    bell: tuple[int, asyncio.Event] | None = None

    def saw(self, kind: int) -> None:
        super().saw(kind)
        if self.bell is not None and self.bell[0] == kind:
            self.bell[1].set()
            self.bell = None

    async def wait_for(self, kind: int, within_s: float) -> None:
        rung = asyncio.Event()
        self.bell = (kind, rung)
        try:
            await asyncio.wait_for(rung.wait(), within_s)
        except TimeoutError:
            self.bell = None


class Load(crash.Run):
    """Clients on one broker under the layer, and the shots of them."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        super().__init__(plan.crash_plan(), folder)
        self.power = plan
        self.site = self.watched = Watched(folder, folder / "data", plan.lanes, CONFIG + MORE_CONFIG)
        self.book.starts = self.site.starts
        self.layer = Layer(folder, folder / "data")
        self.site.env = self.layer.env
        self.shots: list[Shot] = []

    async def whole(self) -> Result:
        try:
            self.clients = population(self.site, self.book, self.rng, self.plan.rate)
            if self.power.faults:  # what a broker in trouble answers to these is no promise
                self.clients = [c for c in self.clients if not isinstance(c, Churner | Passer)]
            await self.start("the first start")
            self.tasks = [asyncio.create_task(c.run()) for c in self.clients]
            for life in range(self.power.kills + 1):
                await asyncio.sleep(2 * self.power.between_s)
                for _ in range(self.power.shots // (self.power.kills + 1)):
                    refuses = FAULTS if self.power.faults and self.rng.random() < 0.5 else ""
                    self.layer.play(f"delay={self.rng.choice(self.power.delays_us)} {refuses}")
                    await asyncio.sleep(self.rng.uniform(0.5, 1.5) * self.power.between_s)
                    await self.watched.wait_for(self.rng.choice(crash.MOMENTS), self.power.between_s)
                    self.freeze()
                self.layer.play("")
                if life < self.power.kills:
                    await self.die()
                    await self.start("a start after a kill")
        except BrokerFailed as error:
            self.violate(str(error))
        finally:
            self.layer.play("")
            await self.end()
        self.check_layer()
        return self.report()

    # ---- shots

    def shoot(self, what: str) -> Shot:
        out = io.BytesIO()
        low, now = self.layer.size(), time.monotonic()
        Pickler(out, pickle.HIGHEST_PROTOCOL).dump((self.book, self.clients))
        self.shots.append(Shot(what, now, low, out.getvalue()))
        return self.shots[-1]

    def freeze(self) -> None:
        """In the middle of work: the broker goes on with what it was sent last, and the clients do nothing."""
        bursts = self.rng.random() < 0.5
        for c in self.clients:
            if bursts and isinstance(c, Publisher) and c.connected:
                c.burst()
        shot = self.shoot("load")
        time.sleep(self.rng.uniform(0, 2) * self.power.frozen_s)
        shot.high = self.layer.size()

    async def start(self, what: str) -> None:
        """While it starts nobody is connected: what the clients know does not change."""
        shot = self.shoot(what)
        await self.site.start()
        shot.high = self.layer.size()

    async def die(self) -> None:
        """A kill between two changes, so that the journal and the directory agree."""
        self.layer.play("die")
        end = time.monotonic() + DIE_S
        while self.site.alive() and time.monotonic() < end:
            await asyncio.sleep(0.01)
        self.site.kill()
        self.site.bury()
        self.site.kills += 1
        self.layer.play("")

    # ---- the end

    def check_layer(self) -> None:
        """Is the directory what the journal says? Otherwise every cut would be a fiction."""
        disk = Disk(random.Random(0))
        for note in notes(self.layer.journal.read_bytes()):
            disk.play(note)
        for name in disk.differs(self.layer.data):
            self.violate(f"the file layer has missed a change of {name}")
        self.book.checked["notes in the journal"] += sum(disk.seen.values())
        self.book.checked["syncs that failed"] += disk.seen["S!"]
        self.book.checked["renames in the journal"] += disk.seen["R"]

    def report(self) -> Result:
        """The load has no drain: only what no broker may do at any time counts."""
        assert not self.errors, f"the harness itself failed: {self.errors[:3]}"
        seconds = time.monotonic() - self.book.start
        told = [v for v in self.book.violations if not (self.power.faults and "CONNACK 0x97" in v.line)]
        return Result(self.plan.seed, self.power.words(), seconds, self.book.checked, told)


# ---- what a cut leaves, and who comes back to it


@dataclass
class Cut:
    """The power goes at this place of the journal; `again`: and once more, while the broker starts on what is left."""

    shot: Shot
    place: int
    seed: int
    again: bool = False

    def words(self) -> str:
        return f"cut at {self.place} in {self.shot.what}, seed {self.seed}{', and again in the start' * self.again}"


def rebuild(journal: list[Note], place: int, rng: random.Random, base: Path | None, to: Path) -> Counter[str]:
    """The directory as a cut at this place could have left it; what there was to lose."""
    disk = Disk(rng)
    if base is not None:
        disk.load(base)
    for note in journal:
        if note.end > place:
            break
        disk.play(note)
    lost = disk.unsafe()
    disk.cut()
    disk.write(to)
    return lost


class After(crash.Run):
    """The clients go on after the cut, on a broker that begins with what it left."""

    def __init__(self, plan: crash.Plan, folder: Path, cut: Cut) -> None:
        super().__init__(plan, folder)
        self.cut = cut
        self.site.config.write_text(CONFIG + MORE_CONFIG)
        self.book, self.clients = Unpickler(cut.shot.raw, self.site).load()
        self.book.violations.clear()
        self.book.checked.clear()
        self.site.starts = self.book.starts
        self.looker = Looker(self.site, self.book, self.rng, "looker", 5, 0)
        for c in self.clients:
            self.wake(c)

    def wake(self, c: Client) -> None:
        c.draining = True
        if c.connected:
            c.connected, c.lost_at = False, self.cut.shot.at

    async def whole(self) -> Result:
        try:
            await self.site.start()
            self.tasks = [asyncio.create_task(go_on(c)) for c in self.clients]
            await self.probe()
        except BrokerFailed as error:
            self.violate(str(error))
        finally:
            await self.end()
        if "damaged" in self.site.log.replace('"damaged": 0', ""):
            self.violate(f"it calls damage what a power cut leaves: {self.site.log[-1500:]}")
        return self.verdict()

    async def quiet(self, what: str) -> None:
        """Quiet is soon believed when nothing is missing, and late when something is: a slow machine loses nothing."""
        soon, before = self.plan.quiet_s, len(self.book.violations)
        await super().quiet(what)
        if len(self.book.violations) == before and self.missing():
            self.plan = replace(self.plan, quiet_s=MISSING_S)
            await super().quiet(what)
            self.plan = replace(self.plan, quiet_s=soon)

    def missing(self) -> bool:
        scratch: Book = object.__new__(Book)
        scratch.__dict__.update(self.book.__dict__, violations=[], checked=Counter())
        scratch.compare(time.monotonic())
        return bool(scratch.violations)


async def go_on(c: Client) -> None:
    """As `run`, of a client that is no newcomer and begins nothing."""
    if isinstance(c, Churner) and c.clean and c.known is None:
        # Its Clean Start had no answer. It may have been carried out: the identifiers it still holds would be of no session.
        await c.renew()
    if isinstance(c, Passer):
        await c.reconnect()
        c.leave()
        await asyncio.Event().wait()
    elif isinstance(c, Subscriber):
        while True:
            if not c.connected:
                await c.reconnect()
            await c.stay()
    else:
        await c.run()


# ---- a whole run


@dataclass
class Verdict:
    """All cuts of a run together."""

    words: str
    seed: int
    checked: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def add(self, result: Result, words: str) -> None:
        self.checked.update(result.checked)
        self.violations += [Violation(v.kind, f"{v.line} [{words}]") for v in result.violations]

    def result(self) -> Result:
        return Result(self.seed, self.words, time.monotonic() - self.begun, self.checked, self.violations)


def choose(shots: list[Shot], places: list[int], count: int, rng: random.Random) -> list[Cut]:
    """Cuts all over the shots. The first place of each is the sharpest: all that was acknowledged was so just then."""
    made: list[Cut] = []
    while len(made) < count:
        for shot in rng.sample(shots, len(shots)):
            mine = between(places, shot.low, shot.high)
            place = mine[0] if rng.random() < FIRST_SHARE else rng.choice(mine)
            made.append(Cut(shot, place, rng.getrandbits(32), rng.random() < AGAIN_SHARE))
    return made[:count]


async def one(plan: Plan, journal: list[Note], cut: Cut, folder: Path, verdict: Verdict) -> None:
    """Rebuild, start, drain, compare."""
    rng = random.Random(cut.seed)
    folder.mkdir()
    lost = await asyncio.to_thread(rebuild, journal, cut.place, rng, None, folder / "data")
    if cut.again:
        lost += await interrupted(plan, folder, rng)
    result = await After(replace(plan.crash_plan(), seed=cut.seed), folder, cut).whole()
    verdict.add(result, cut.words())
    verdict.checked["cuts"] += 1
    verdict.checked[f"cuts in {cut.shot.what}"] += 1
    verdict.checked["cuts in a start after a cut"] += cut.again
    verdict.checked["cuts with something unsynced"] += bool(lost)
    verdict.checked.update({f"unsynced {what}": n for what, n in lost.items()})
    if result.violations:
        (folder / "shot").write_bytes(cut.shot.raw)
    else:
        shutil.rmtree(folder)


async def interrupted(plan: Plan, folder: Path, rng: random.Random) -> Counter[str]:
    """A start on what the cut has left, and another cut in it; `folder/data` is what that one leaves."""
    base = (folder / "data").rename(folder / "base") if (folder / "data").exists() else None
    if base is not None:
        shutil.copytree(base, folder / "data")
    site = Site(folder, folder / "data", plan.lanes, CONFIG + MORE_CONFIG)
    layer = Layer(folder, folder / "data")
    site.env = layer.env
    await site.start()
    site.kill()
    shutil.rmtree(folder / "data")
    raw = layer.journal.read_bytes()
    return await asyncio.to_thread(rebuild, notes(raw), rng.choice(ends(raw)), rng, base, folder / "data")


async def run(plan: Plan, folder: Path) -> Result:
    """One load, all its cuts; what was violated stays in the folder."""
    verdict = Verdict(plan.words(), plan.seed)
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    load = Load(plan, folder)
    verdict.add(await load.whole(), "load")
    raw = load.layer.journal.read_bytes()
    journal, rng = notes(raw), random.Random(plan.seed)
    gate = asyncio.Semaphore(TOGETHER)

    async def gated(i: int, cut: Cut) -> None:
        async with gate:
            await one(plan, journal, cut, folder / f"cut-{i}", verdict)

    cuts = choose(load.shots, ends(raw), plan.cuts, rng)
    await asyncio.gather(*(gated(i, cut) for i, cut in enumerate(cuts)))
    assert not errors, f"the harness itself failed: {errors[:3]}"
    return verdict.result()


def main() -> int:
    parser = argparse.ArgumentParser(prog="durability.power", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cuts", type=int, default=300, help="cut so often (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--each", type=int, default=30, help="cuts of one load (default %(default)s)")
    parser.add_argument("--rate", type=float, default=200.0, help="messages per second from all publishers")
    a = parser.parse_args()
    whole = Verdict(f"power cuts: {a.cuts}, seed {a.seed}", a.seed)
    for turn, done in enumerate(range(0, a.cuts, a.each)):
        lanes = (1, 3)[turn % 2]
        plan = Plan(a.seed * 1000 + turn, min(a.each, a.cuts - done), 12, 2, lanes, a.rate, faults=turn % 3 == 2)
        folder = Path(tempfile.mkdtemp(prefix="roost-power-"))
        result = asyncio.run(run(plan, folder))
        whole.add(result, plan.words())
        if result.clean:
            shutil.rmtree(folder)
        else:
            print(f"kept: {folder}", "\n".join(result.lines(3)), sep="\n", flush=True)
    print(whole.result().table())
    return 0 if whole.result().clean else 1


if __name__ == "__main__":
    sys.exit(main())
