"""A cluster under load and under faults: nothing acknowledged may go, nothing may come twice at QoS 2, order is kept.

Contract: `run(Plan)` starts `roost dev`, lets the checking clients of the crash harness loose on it through all doors, harms
it by seed, drains, and returns a `Result` whose violations say who, what and when. The timing of the machine is its own, so a
seed narrows a run down and does not replay it.

    PYTHONPATH=tests .venv/bin/python -m cluster.chaos --seconds 60 --seed 1 --servers 3
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from durability.book import Book, Result
from durability.link import RETRY_S, Client
from durability.population import DATA_TOPICS, Looker, population
from durability.publishers import Habits, Publisher
from durability.site import BrokerFailed

from cluster.site import ClusterSite
from cluster.weather import both

SETTLE_S = 60.0
STEPS = (
    "controller has announced",
    "owner sends ahead",
    "target gets ahead",
    "owner begins",
    "peer is asked",
    "peer holds",
    "owner seals",
    "owner has sealed",
    "target unpacks",
    "target has it",
    "target decides",
    "target is named",
    "target owns",
    "target has fenced",
    "target speaks",
    "peer goes on",
)
"""Where somebody dies in a planned move, in their order (`engine/src/lane/moving.rs`)."""
CUTS = ("owner has cut", "owner has written", "owner decides", "halves are named")
"""The same where a partition is cut in two (`engine/src/lane/halving.rs`)."""
PARTITIONS_MAX, CUTS_MAX = 256, 1024
"""So many in the end, and where nodes die while they are cut."""


@dataclass
class Plan:
    """What happens in one run."""

    seed: int = 1
    seconds: float = 30.0
    nodes: int = 3
    servers: int = 1
    rate: float = 200.0
    faults: tuple[str, ...] = ("kill", "hang")
    calm_s: tuple[float, float] = (2.0, 6.0)
    sync: str = ""
    """`sync_interval` of NATS; empty: always. Any other is taken with the weaker class only."""
    story: tuple[str, ...] = ()
    """These faults in this order, instead of those that the seed chooses."""

    @property
    def needs_weather(self) -> bool:
        """Links must lead through proxies."""
        return bool({"cut pair", "cut way", "cut off", "slow"} & {*self.faults, *self.story})

    def words(self) -> str:
        return f"cluster chaos: {self.nodes} nodes, {self.servers} servers, {self.seconds:.0f} s, seed {self.seed}"


@dataclass
class Run:
    """One run of a plan."""

    plan: Plan
    folder: Path
    clients: list[Client] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    errors: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.plan.seed)
        self.site = ClusterSite(self.folder, self.plan.nodes, self.plan.servers, random.Random(self.plan.seed))
        # proxies that cut links must be able to read who speaks
        self.site.link_tls = "always" if self.plan.seed % 2 and not self.plan.needs_weather else "auto"
        if self.plan.sync:
            self.site.sync = ("--sync", self.plan.sync, "--ack-default", "replicated")
        self.book = Book(self.plan.seed, time.monotonic())
        self.book.starts = self.site.starts
        self.looker = Looker(self.site, self.book, random.Random(self.plan.seed), "looker", 5, 0)

    async def whole(self) -> Result:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.errors.append(context))
        try:
            await self.site.start()
            if self.plan.needs_weather:
                await self.site.stand_in_the_rain()
            self.clients = population(self.site, self.book, self.rng, self.plan.rate)
            self.tasks = [asyncio.create_task(c.run()) for c in self.clients]
            await asyncio.sleep(2)
            third = time.monotonic() + self.plan.seconds / 3
            end = time.monotonic() + self.plan.seconds
            story = list(self.plan.story)
            while story if self.plan.story else time.monotonic() < end:
                await self.misfortune(story.pop(0) if story else self.rng.choice(self.plan.faults))
                await asyncio.sleep(self.rng.uniform(*self.plan.calm_s))
                if time.monotonic() > third:
                    third = end * 2
                    self.weigh("after a third")
            self.weigh("at the end")
            self.book.checked["healthy after, ms"] = int(1000 * await self.site.until_served(SETTLE_S))
            self.book.checked["partitions at the end"] = await self.site.until_split(SETTLE_S)
            await self.settle()
            await self.probe()
        except BrokerFailed as error:
            self.violate(str(error))
            self.say_waits()
        finally:
            await self.end()
        return self.verdict()

    def weigh(self, when: str) -> None:
        """What nodes and NATS take, MB: it must not grow with time."""
        nodes, disk = self.site.weights()
        self.book.checked[f"{when}: largest node, MB"] = max(nodes, default=0)
        self.book.checked[f"{when}: data of NATS, MB"] = disk

    # ---- what befalls the cluster

    async def misfortune(self, what: str) -> None:
        faults: dict[str, Callable[[], Any]] = {
            "kill": self.kill,
            "hang": self.hang,
            "server": self.server,
            "machine": self.machine,
            "all servers": self.all_servers,
            "blackout": self.blackout,
            "power": self.power,
            "full": self.full,
            "cut pair": self.cut_pair,
            "cut way": self.cut_way,
            "cut off": self.cut_off,
            "slow": self.slow,
            "grow": self.grow,
            "drain": self.drain,
            "split": self.split,
            "restart": self.restart,
        }
        self.book.checked[f"fault: {what}"] += 1
        print(f"{time.monotonic() - self.book.start:7.1f} s  {what}", flush=True)
        if what.startswith("die: "):
            await self.die(what.removeprefix("die: "))
        elif what != "none":
            await faults[what]()

    def victim(self) -> int:
        return self.rng.choice([i for i in range(self.plan.nodes) if i not in self.site.down])

    async def kill(self) -> None:
        i = self.victim()
        self.site.kill_node(i)
        self.site.note()
        await asyncio.sleep(self.rng.choice((0.0, 1.0, 6.0)))
        await self.site.start_node(i)

    async def hang(self) -> None:
        i = self.victim()
        self.site.halt_node(i)
        self.site.note()
        await asyncio.sleep(self.rng.choice((0.7, 3.0, 6.0)))
        self.site.go_on(i)
        await self.site.until_served(SETTLE_S)

    async def server(self) -> None:
        i = self.rng.randrange(self.plan.servers)
        self.site.kill_server(i)
        await asyncio.sleep(self.rng.uniform(0.5, 8.0))
        self.site.start_server(i)

    async def machine(self) -> None:
        i = self.victim()
        self.site.kill_node(i)
        self.site.kill_server(i % self.plan.servers)
        self.site.note()
        await asyncio.sleep(self.rng.uniform(2.0, 12.0))
        self.site.start_server(i % self.plan.servers)
        await self.site.start_node(i)

    async def all_servers(self) -> None:
        for i in range(self.plan.servers):
            self.site.kill_server(i)
        await asyncio.sleep(self.rng.uniform(0.5, 4.0))
        for i in range(self.plan.servers):
            self.site.start_server(i)
        await self.site.until_served(SETTLE_S)

    async def blackout(self) -> None:
        """Everything dies at once, and comes back."""
        for i in range(self.plan.nodes):
            self.site.kill_node(i)
        for i in range(self.plan.servers):
            self.site.kill_server(i)
        self.site.note()
        await asyncio.sleep(self.rng.uniform(0.5, 3.0))
        for i in range(self.plan.servers):
            self.site.start_server(i)
        await asyncio.gather(*(self.site.start_node(i) for i in range(self.plan.nodes)))

    async def power(self) -> None:
        """The power goes for everything: what NATS had not synced is gone. Its servers are traced from the first time on."""
        for i in range(self.plan.nodes):
            self.site.kill_node(i)
        for i in range(self.plan.servers):
            self.site.kill_server(i)
        if self.site.cuts:
            lost = [traced.cut() for traced in self.site.traced.values()]
            self.book.checked["bytes cut off"] += sum(sum(files.values()) for files in lost)
        self.site.cuts = True
        self.site.note()
        for i in range(self.plan.servers):
            self.site.start_server(i)
        await asyncio.gather(*(self.site.start_node(i) for i in range(self.plan.nodes)))

    async def full(self) -> None:
        """The streams of the log take nothing more for a while: nothing of what is kept may go, and nobody has to be woken."""
        await self.site.fill(True)
        await asyncio.sleep(self.rng.uniform(1.0, 6.0))
        await self.site.fill(False)
        await self.site.until_served(SETTLE_S)

    # ---- bad weather between the nodes

    async def cut_pair(self) -> None:
        """Two nodes do not hear each other, everybody else hears both."""
        a, b = self.rng.sample(self.site.slots, 2)
        await self.rain(both([(a, b)]))

    async def cut_way(self) -> None:
        """One direction of one pair."""
        a, b = self.rng.sample(self.site.slots, 2)
        await self.rain({(a, b)})

    async def cut_off(self) -> None:
        """One node is heard by nobody and hears nobody."""
        a = self.rng.choice(self.site.slots)
        await self.rain(both((a, b) for b in self.site.slots if b != a))

    async def rain(self, ways: set[tuple[int, int]]) -> None:
        self.site.weather.cut |= ways
        self.site.note()
        await asyncio.sleep(self.rng.choice((0.5, 2.0, 5.0)))
        self.site.weather.clear()
        self.site.note()
        await self.site.until_served(SETTLE_S)

    async def slow(self) -> None:
        """Everything between two nodes takes longer."""
        a, b = self.rng.sample(self.site.slots, 2)
        delay_s = self.rng.choice((0.02, 0.1, 0.4))
        self.site.weather.slow |= dict.fromkeys(both([(a, b)]), delay_s)
        await asyncio.sleep(self.rng.uniform(2.0, 6.0))
        self.site.weather.clear()

    # ---- changes that nobody should notice

    async def grow(self) -> None:
        """A node more, for a while."""
        await self.site.grow()
        await asyncio.sleep(self.rng.uniform(0.0, 4.0))
        await self.site.shrink()

    async def drain(self) -> None:
        """A node hands over everything, and gets its share again."""
        i = self.victim()
        await self.site.drain(i, True)
        await asyncio.sleep(self.rng.uniform(0.0, 3.0))
        await self.site.drain(i, False)

    async def split(self) -> None:
        """All partitions are cut in two; what comes next may come meanwhile."""
        await asyncio.to_thread(self.site.split, self.victim(), PARTITIONS_MAX)

    async def restart(self) -> None:
        """A node is told to stop, and starts again."""
        await self.site.restart_node(self.victim())

    async def die(self, step: str) -> None:
        """A node dies at a step of a planned move, in the part that it has in it; it comes back, and the move has ended."""
        i = self.victim()
        if step.startswith("controller"):
            slots = await asyncio.to_thread(self.site.slots_now)
            i = min(range(self.plan.nodes), key=lambda n: slots[n])
        self.site.kill_node(i)
        self.site.note()
        self.site.spawn_node(i, ROOST_DIE_AT=step)
        deadline = time.monotonic() + SETTLE_S
        pinned = 0.0
        while self.site.own[i].poll() is None:
            if time.monotonic() > deadline:
                raise BrokerFailed(f"n{i + 1} has not died where `{step}` is: {self.site.log[-3000:]}")
            await asyncio.sleep(0.1)
            if time.monotonic() > pinned + 2:
                pinned = time.monotonic()
                if step in CUTS:
                    await asyncio.to_thread(self.site.split, (i + 1) % self.plan.nodes, CUTS_MAX)
                else:
                    await asyncio.to_thread(self.site.move_some, i, step.split()[0])
        self.book.checked[f"died: {step}"] += 1
        self.site.note()
        await asyncio.sleep(self.rng.choice((0.0, 0.5, 3.0)))
        await self.site.start_node(i)
        await self.site.until_served(SETTLE_S)
        await asyncio.to_thread(self.site.unpin)

    # ---- the end of the run

    async def settle(self) -> None:
        for c in self.clients:
            c.draining = True
        await self.quiet("the drain")

    async def quiet(self, what: str) -> None:
        end = time.monotonic() + SETTLE_S
        while time.monotonic() < end:
            calm = time.monotonic() - self.site.heard > 1.5
            if calm and all(c.settled() for c in self.clients):
                return
            await asyncio.sleep(RETRY_S)
        waiting = [c.name for c in self.clients if not c.settled()]
        self.say_waits()
        self.violate(f"no quiet within {SETTLE_S} s of {what}; not settled: {waiting}")

    def say_waits(self) -> None:
        """What waits in each node, as it says itself."""
        for node in self.site.nodes:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://{node['admin']}/api/v1/cluster") as answer,
            ):
                told = json.load(answer)
                late = [(p["partition"], p["owner"], p["state"]) for p in told["partitions"] if p["state"] != "serving"]
                print(
                    node["id"], {k: told[k] for k in ("not_ready", "age_s", "members_version", "table_version", "log")}
                )
                print(node["id"], [(m["node"], m["slot"], m["heard_ms"]) for m in told["members"]], late, told["waits"])
            found = gauges(node["admin"])
            print(
                node["id"],
                {n: v for n, v in found.items() if v and n.startswith(("part", "publishes_w", "connects_w"))},
            )

    async def probe(self) -> None:
        """One message on each topic tells which subscriptions the cluster has now."""
        topics = [(t, 2) for t in DATA_TOPICS]
        prober = Publisher(self.site, self.book, self.rng, "probe", 5, Habits(topics, drop_share=0))
        prober.draining = True
        self.clients.append(prober)
        self.tasks.append(asyncio.create_task(prober.run()))
        await prober.probe(topics)
        await self.quiet("the probes")
        await self.looker.look()
        if any(v.kind == "retained" for v in self.book.violations):
            self.say_waits()

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        gone = asyncio.CancelledError
        self.errors += [e for e in await asyncio.gather(*self.tasks, return_exceptions=True) if type(e) is not gone]
        for c in self.clients:
            c.drop()
        await asyncio.sleep(0.05)
        await self.site.stop()

    def verdict(self) -> Result:
        assert not self.errors, f"the harness itself failed: {self.errors[:3]}"
        now = time.monotonic()
        for c in self.clients:
            c.owed()
        self.book.compare(now)
        for word in ("a lane has failed", "panicked", "Traceback", "log_damaged", "a task has failed"):
            if word in self.site.log:
                line = next(line for line in self.site.log.splitlines() if word in line)
                self.violate(f"its log says {line}")
        self.book.checked["kills"] = self.site.kills
        seconds = now - self.book.start
        return Result(self.plan.seed, self.plan.words(), seconds, self.book.checked, self.book.violations)

    def violate(self, line: str) -> None:
        self.book.violate("broker", time.monotonic(), line)


def gauges(address: str) -> dict[str, float]:
    """What /metrics says, without labels."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines if line.startswith("roostmq_") and "{" not in line)
    return {name.removeprefix("roostmq_"): float(value) for name, value in pairs}


async def run(plan: Plan, folder: Path) -> Result:
    """Carry the plan out in this folder, which keeps logs and data."""
    return await Run(plan, folder).whole()


def main() -> int:
    parser = argparse.ArgumentParser(prog="cluster.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--servers", type=int, default=1, choices=(1, 3))
    parser.add_argument("--rate", type=float, default=200.0, help="messages per second from all publishers")
    parser.add_argument(
        "--faults",
        default="kill,hang",
        help="of: kill, hang, server, machine, all servers, blackout, power, full, cut pair, cut way, cut off, slow, grow, drain, restart, split",
    )
    parser.add_argument("--sync", default="", help="sync_interval of NATS, with the weaker class of acknowledgement")
    parser.add_argument(
        "--story", default="", help="these faults in this order, instead of those that the seed chooses"
    )
    parser.add_argument(
        "--steps", action="store_true", help="a node dies at each step of a planned move, one after another"
    )
    parser.add_argument("--report", type=Path, help="write the verdict here too")
    a = parser.parse_args()
    plan = Plan(a.seed, a.seconds, a.nodes, a.servers, a.rate, tuple(f.strip() for f in a.faults.split(",")))
    plan.story = (
        tuple(f"die: {s}" for s in STEPS + CUTS) if a.steps else tuple(f.strip() for f in a.story.split(",") if f)
    )
    plan.sync = a.sync
    folder = Path(tempfile.mkdtemp(prefix="roost-chaos-"))
    result = asyncio.run(run(plan, folder))
    print(result.table())
    if a.report is not None:
        a.report.write_text(result.table() + "\n")
    if result.clean:
        shutil.rmtree(folder)
    else:
        print(f"kept: {folder}")
    return 0 if result.clean else 1


if __name__ == "__main__":
    sys.exit(main())
