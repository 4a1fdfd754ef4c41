"""The crash harness: a broker under load is killed with `kill -9` again and again, and nothing acknowledged may go.

Contract: `run(Plan)` starts a real broker on a fresh data directory, lets checking clients loose on it, kills and
restarts it, drains, and returns a `Result` whose violations say who, what and when. One seed decides what the clients
do and when the broker dies; the timing of the machine is its own, so a seed narrows a run down and does not replay it.

    PYTHONPATH=tests .venv/bin/python -m durability.crash --kills 100 --seed 1 --lanes 3
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wire import CONNACK, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, SUBACK, UNSUBACK

from durability.book import Book, Result
from durability.link import RETRY_S, Client
from durability.population import DATA_TOPICS, Looker, population
from durability.publishers import Habits, Publisher
from durability.site import BrokerFailed, Site

MOMENTS = (PUBACK, PUBREC, PUBCOMP, PUBREL, PUBLISH, SUBACK, UNSUBACK, CONNACK)
TRAP_S = 0.8
OTHER_LANES = (1, 2, 3)


@dataclass
class Plan:
    """What happens in one run; times in seconds, rate in messages per second."""

    seed: int = 1
    kills: int = 3
    lanes: int = 1
    memory: bool = False
    between_s: tuple[float, float] = (0.6, 2.0)
    rate: float = 300.0
    load_s: float = 1.0
    quiet_s: float = 0.7
    drain_s: float = 30.0

    def words(self) -> str:
        where = "--memory" if self.memory else "--data"
        return f"crash harness: {where}, {self.kills} kills, {self.lanes} lanes, seed {self.seed}"


class Run:
    """One run of a plan."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.rng = plan, random.Random(plan.seed)
        self.site = Site(folder, None if plan.memory else folder / "data", plan.lanes)
        self.book = Book(plan.seed, time.monotonic())
        self.book.starts = self.site.starts
        self.looker = Looker(self.site, self.book, random.Random(plan.seed), "looker", 5, 0)
        self.clients: list[Client] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.errors: list[Any] = []

    async def whole(self) -> Result:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.errors.append(context))
        try:
            await self.site.start()
            self.clients = population(self.site, self.book, self.rng, self.plan.rate)
            self.tasks = [asyncio.create_task(c.run()) for c in self.clients]
            await asyncio.sleep(self.plan.load_s)
            for _ in range(self.plan.kills):
                await self.misfortune()
            await asyncio.sleep(self.plan.load_s)
            await self.settle()
            if not self.plan.memory:
                await self.restart_cleanly()
            await self.probe()
        except BrokerFailed as error:
            self.violate(str(error))
        finally:
            await self.end()
        return self.verdict()

    # ---- what befalls the broker

    async def misfortune(self) -> None:
        """Load for a while, then kill -9 at some moment, now and then once more while it starts; start again."""
        await asyncio.sleep(self.rng.uniform(*self.plan.between_s))
        if not self.site.alive():
            self.violate(f"it ended by itself: {self.site.log[-1500:]}")
            self.site.bury()
        elif self.rng.random() < 0.4:
            self.site.kill()
        else:
            await self.site.kill_at(self.rng.choice(MOMENTS), self.rng.randint(1, 40), TRAP_S)
        await asyncio.sleep(self.rng.uniform(0, 0.2))
        lanes = self.rng.choice(OTHER_LANES) if self.rng.random() < 0.3 else self.plan.lanes
        if self.rng.random() < 0.15:
            early = self.site.start_s * self.rng.uniform(0.4, 1.0)
            if not await self.site.start(lanes, kill_after_s=early):
                self.book.checked["killed while starting"] += 1
        if not self.site.alive():
            await self.site.start(lanes)
        if self.rng.random() < 0.5:
            await self.looker.look()

    async def restart_cleanly(self) -> None:
        code = await self.site.stop()
        if code != 0:
            self.violate(f"exit code {code} after SIGTERM")
        self.book.checked["clean stops"] += 1
        await self.site.start()

    # ---- the end of the run

    async def settle(self) -> None:
        """No more new messages, everybody online, until nothing is owed and nothing comes."""
        for c in self.clients:
            c.draining = True
        await self.quiet("the drain")

    async def quiet(self, what: str) -> None:
        end = time.monotonic() + self.plan.drain_s
        while time.monotonic() < end:
            if not self.site.alive():
                self.violate(f"it ended by itself: {self.site.log[-1500:]}")
                return
            calm = time.monotonic() - self.site.heard > self.plan.quiet_s
            if calm and all(c.settled() for c in self.clients):
                return
            await asyncio.sleep(RETRY_S)
        waiting = [c.name for c in self.clients if not c.settled()]
        self.violate(f"no quiet within {self.plan.drain_s} s of {what}; not settled: {waiting}")

    async def probe(self) -> None:
        """One message on each topic tells which subscriptions the broker has now."""
        await self.quiet("the last start")
        topics = [(t, 2) for t in DATA_TOPICS]
        prober = Publisher(self.site, self.book, self.rng, "probe", 5, Habits(topics, drop_share=0))
        prober.draining = True
        self.clients.append(prober)
        self.tasks.append(asyncio.create_task(prober.run()))
        await prober.probe(topics)
        await self.quiet("the probes")
        await self.looker.look()

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.errors += [e for e in await asyncio.gather(*self.tasks, return_exceptions=True) if type(e) is not _GONE]
        for c in self.clients:
            c.drop()
        await asyncio.sleep(0.05)
        code = await self.site.stop()
        if code != 0:
            self.violate(f"exit code {code} after SIGTERM at the end")

    def verdict(self) -> Result:
        assert not self.errors, f"the harness itself failed: {self.errors[:3]}"
        now = time.monotonic()
        for c in self.clients:
            c.owed()
        self.book.compare(now)
        for word in ("a lane has failed", "panicked"):
            if word in self.site.log:
                line = next(line for line in self.site.log.splitlines() if word in line)
                self.violate(f"its log says {line}")
        self.book.checked["kills"] = self.site.kills
        seconds = now - self.book.start
        return Result(self.plan.seed, self.plan.words(), seconds, self.book.checked, self.book.violations)

    def violate(self, line: str) -> None:
        self.book.violate("broker", time.monotonic(), line)


_GONE = asyncio.CancelledError


async def run(plan: Plan, folder: Path) -> Result:
    """Carry the plan out in this folder, which keeps the broker's log and data."""
    return await Run(plan, folder).whole()


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="durability.crash", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="kill -9 so often (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--seconds-between", default="0.6,2.0", metavar="A,B", help="between start and kill")
    parser.add_argument("--rate", type=float, default=300.0, help="messages per second from all publishers")
    parser.add_argument("--load-s", type=float, default=1.0, help="load before the first and after the last kill")
    parser.add_argument("--memory", action="store_true", help="a broker that forgets: must report losses")
    parser.add_argument("--keep", action="store_true", help="keep the folder of a clean run too")
    return parser.parse_args(words)


def main() -> int:
    a = arguments()
    low, _, high = a.seconds_between.partition(",")
    between = float(low), float(high or low)
    plan = Plan(a.seed, a.kills, a.lanes, a.memory, between, a.rate, a.load_s)
    folder = Path(tempfile.mkdtemp(prefix="roost-crash-"))
    result = asyncio.run(run(plan, folder))
    print(result.table())
    if result.clean and not a.keep:
        shutil.rmtree(folder)
    else:
        print(f"kept: {folder}")
    return 0 if result.clean else 1


if __name__ == "__main__":
    sys.exit(main())
