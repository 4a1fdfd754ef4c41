"""This process as a node of a cluster: joins, tells the engine what was agreed on, reports, votes, and acts if it is
its turn.

One loop, a few times a second and at every hint: read what is agreed on, hand it to the engine, decide by the
policies, write by compare-and-set. A step that is interrupted anywhere is simply taken again. If NATS is away nothing
is decided, and everything that was decided goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from roostmq import engine
from roostmq.adapters.join_token import JoinToken
from roostmq.config import Cluster as Options
from roostmq.engine import Event
from roostmq.errors import PlacementError, StaleError, StoreError, UnavailableError
from roostmq.model import (
    Epoch,
    Member,
    Members,
    NodeId,
    PartitionId,
    PartitionState,
    PartitionTable,
    Version,
    Wishes,
)
from roostmq.policy import members as votes
from roostmq.policy.epochs import serving
from roostmq.policy.failover import disown, has_returned, next_table
from roostmq.policy.members import Beat, Report
from roostmq.policy.ring import Ring, build_ring
from roostmq.policy.wishes import noted
from roostmq.runtime.appends import Appends
from roostmq.runtime.lease import ALIVE_S, Lease
from roostmq.runtime.moves import Moves, die_behind
from roostmq.runtime.prepare import access_of, check_format, engine_settings, read_meta, take_slot
from roostmq.runtime.sys_topics import cluster_topics
from roostmq.store import codec
from roostmq.store.nats_kv import NatsRegistry
from roostmq.store.registry import Registry
from roostmq.store.streams import log_of

LOOK_S = 0.25
RETRY_S = 1.0
CALM_S = 1.0
SETTLED_S = 5.0
REPORT_OVER_S = 5.0
DRAIN_S = 20.0
WAKING = frozenset({"served", "carried", "halved", "sealed", "move_failed", "stale"})


class Resigned(Exception):
    """This start of the node is no member any more: it has to begin anew."""


class Cluster:
    """See the top of the file."""

    def __init__(self, options: Options, token: JoinToken, log: Any, say: Callable[[str], None]) -> None:
        self.options, self.token, self.log, self._say = options, token, log, say
        self.node = NodeId(options.node)
        self.incarnation = time.time_ns() // 1_000_000
        self.slot, self.streams = 0, 0
        self.registry: Registry | None = None
        self.members, self._members_revision = Members(Version(0), ()), 0
        self.table: PartitionTable | None = None
        self._table_revision = 0
        self.read_s, self.changed_s = 0.0, time.monotonic()
        """When the registry was read last, and when something in it has changed (monotonic)."""
        self.me: Member | None = None
        self.beats: tuple[Beat, ...] = ()
        self.links: list[dict[str, Any]] = []
        self.log_state: dict[str, Any] = {"state": "starting", "why": []}
        self.served: dict[int, int] = {}
        self.notes: list[dict[str, Any]] = []
        self.crowded: tuple[str, int] | None = None
        self.joined, self._leaving = False, False
        self.moves, self.appends = Moves(self.node), Appends()
        self.wishes, self._wishes_revision = Wishes(), 0
        self._placed: tuple[tuple[int, int, int], bool, bool] | None = None
        """What was asked of the policy last, when it had nothing to change."""
        self._held: dict[str, str] = {}
        """Who wants to come in and has to wait, and why."""
        self._told: tuple[int, int] = (0, 0)
        self._report: Report | None = None
        self._reported_s = 0.0
        self.lease = Lease(self.node)
        self.turned_s: dict[str, float] = {}
        """When the loop, and the engine's links, were heard of last (monotonic)."""
        self._submit: Callable[..., None] = lambda *commands: None

    # ---- before the engine

    async def prepare(self, ended: asyncio.Event) -> dict[str, Any] | None:
        """Reach the registry, take a slot; the engine's settings of this node. None: it was told to end meanwhile.

        Raises ConfigError for another cluster's token, UnsuitableError for credentials that are refused.
        """
        while not ended.is_set():
            try:
                self.registry = await NatsRegistry.open(access_of(self.options), self.options.name)
                meta = await read_meta(self.registry, self.options.name, self.token)
                await check_format(self.registry)
                self.slot = await take_slot(self.registry, self.options.name, self.node)
                await self._read()
                self.streams = meta.streams
                self.incarnation = max(self.incarnation, self.members.last(self.node) + 1)
                self.lease.incarnation = self.incarnation
                if not self.token.secret:
                    self.log.warning("links are not encrypted: the join token is from an older release")
                return engine_settings(self.options, self.token, meta, self.slot, self.incarnation)
            except UnavailableError as problem:
                self.log.warning("NATS is away", error=str(problem))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), RETRY_S)
        return None

    # ---- with the engine

    async def run(self, submit: Callable[..., None], me: Member) -> None:
        """The loop. Raises Resigned, UnsuitableError, ConfigError."""
        self._submit, self.me = submit, me
        while True:
            self.turned_s["control loop"] = time.monotonic()
            with contextlib.suppress(StaleError):  # somebody else was first: read again at once
                try:
                    while await self._step():
                        pass
                    await self._there().changed(LOOK_S)
                except UnavailableError as problem:
                    self.log.warning("the registry is away", error=str(problem))
                    await asyncio.sleep(RETRY_S)

    def on_event(self, event: Event) -> bool:
        """A fact from the engine; True if it was one for the cluster."""
        match event.name:
            case "links":
                self.links, self.turned_s["links"] = event["nodes"], time.monotonic()
                names = {m.slot: m.node for m in self.members.nodes}
                self.beats = tuple(
                    Beat(names[n["slot"]], n["heard_ms"], n["members"]) for n in self.links if n["slot"] in names
                )
            case "log":
                self.log_state = event.fields
                self.log.info("log", **event.fields)
            case "served":
                self.served[event["partition"]] = event["epoch"]
            case "resigned" | "log_damaged" | "log_full" | "not_kept":
                self.notes.append({"event": event.name, **event.fields})
                del self.notes[:-100]
                self.log.warning(event.name, **event.fields)
            case "linked":
                self.log.info("linked", **event.fields)
            case _ if self.moves.on_event(event):
                if event.name not in ("moved", "sealed"):
                    self.log.log(20 if event.name in ("carried", "halved") else 30, event.name, **event.fields)
            case _:
                return False
        if event.name in WAKING and self.registry is not None:
            self.registry.wake()
        return True

    def not_ready(self) -> str | None:
        """Why clients should not come here now."""
        if self.log_state["state"] != "ready":
            return f"the log on NATS is {self.log_state['state']}: {'; '.join(self.log_state['why'])}"
        if not self.joined:
            return "joining the cluster"
        if self.table is None or any(a.owner is None for a in self.table.partitions):
            return "partitions have no owners yet"
        mine = {p: a.epoch for p, a in enumerate(self.table.partitions) if a.owner == self.node}
        coming = sum(self.served.get(p) != epoch for p, epoch in mine.items())
        if coming:
            return f"{coming} partitions are on their way to this node"
        return None

    async def change_member(self, node: NodeId, **fields: Any) -> Members | None:
        """Another weight for a node, or a drain that begins or ends. None: the node is no member. Raises StoreError."""
        while True:
            await self._read()
            made = votes.changed(self.members, node, **fields)
            if made is None or made.version == self.members.version:
                return made
            with contextlib.suppress(StaleError):
                await self._set_members(made)
                return made

    async def read_wishes(self) -> Wishes:
        """What operators want of moves, as the registry says now. Raises StoreError."""
        entry = await self._there().get("wishes")
        if entry is not None and entry.revision != self._wishes_revision:
            self.wishes, self._wishes_revision = codec.unpack_wishes(entry.value), entry.revision
        return self.wishes

    async def change_wishes(self, change: Callable[[Wishes], Wishes]) -> Wishes:
        """Want something else. Raises StoreError."""
        while True:
            made = change(await self.read_wishes())
            with contextlib.suppress(StaleError):
                await self._set_wishes(made)
                return made

    async def _set_wishes(self, made: Wishes) -> None:
        if made != self.wishes:
            value = codec.pack_wishes(made)
            self._wishes_revision = await self._there().replace("wishes", value, self._wishes_revision)
            self.wishes = made

    def shed(self, count: int, to: set[NodeId]) -> None:
        """Send some clients of this node to others, whose addresses they are told."""
        reachable = (m for m in self.members.nodes if m.node in to and not m.mqtt.startswith(("0.0.0.0:", "[::]:")))
        servers = [[m.slot, m.mqtt] for m in reachable if m.mqtt]
        self._submit({"do": "shed", "count": count, "servers": servers})

    def ring_of(self, members: Sequence[Member]) -> Ring:
        """The ring of these members, with the cluster's hash key. Raises PlacementError."""
        return build_ring(members, lambda names: engine.hash_ids(self.token.key_pair, names))

    def acts(self) -> bool:
        """Does this node act for all at this moment, as far as it knows?"""
        silent = self._report.silent if self._report is not None else ()
        return self.joined and votes.acting(self.members, silent) == self.node

    def sys_topics(self) -> dict[str, str]:
        """`$SYS/cluster/` as this node sees it."""
        rows = self.table.partitions if self.table is not None else ()
        versions = (self.members.version, self.table.version if self.table is not None else 0)
        return cluster_topics([m.node for m in self.members.nodes], [a.state.value for a in rows], versions)

    async def drain(self) -> None:
        """Hand over everything that this node owns, if there is somebody to take it, for a while."""
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await self.change_member(self.node, draining=True)
                while self.joined and self.table is not None:
                    others = any(not m.draining for m in self.members.nodes if m.node != self.node)
                    mine = any(a.owner == self.node for a in self.table.partitions)
                    held = (await self.read_wishes()).paused
                    if held or not others or not mine or self.log_state["state"] != "ready":
                        return
                    await asyncio.sleep(0.05)

    async def leave(self) -> None:
        """A stop that was meant: out of the members at once, so that nobody has to vote."""
        self._leaving = True
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(2):
                while self.joined:
                    await self._read()
                    if not votes.is_member(self.members, self.node, self.incarnation):
                        break
                    with contextlib.suppress(StaleError):
                        await self._set_members(votes.without(self.members, self.node))
        if self.registry is not None:
            await self.registry.close()

    # ---- one step

    async def _step(self) -> bool:
        """True if something was changed, so that it is worth looking again at once."""
        await self._read()
        if self._leaving:
            return False
        is_in = votes.is_member(self.members, self.node, self.incarnation)
        # also one that was let in and voted out before it had read either: this start of it never comes in again
        if not is_in and (self.joined or self.members.last(self.node) >= self.incarnation):
            raise Resigned
        if is_in and not self.joined:
            self.joined = True
            self.log.info("joined", members=self.members.version, slot=self.slot)
        if self.joined:
            self._tell_engine()
            if await self._move():  # partitions stand still until this is written: before anything that can wait
                return True
        await self.lease.renew(self._there(), {m.node for m in self.members.nodes}, look_for_twin=not self.joined)
        if not self.joined:
            return await self._ask_to_join()
        reports = await self._reports()
        return await self._vote(reports) or await self._act(reports) or await self._say_served()

    async def _move(self) -> bool:
        """This node's part in planned moves; True if one has ended."""
        if self.table is None:
            return False
        if await self._set_table(self.moves.next_table(self.table)):
            self._tell_engine()  # a new owner fences the log while the others read of it
            return True
        if any(a.state is PartitionState.MOVING and a.owner == self.node for a in self.table.partitions):
            await self.read_wishes()
        append_ms = self.appends.figures()["mean_ms"]
        if orders := list(self.moves.orders(self.table, self.members, self.wishes, append_ms)):
            self._submit(*orders)
        return False

    async def _read(self) -> None:
        entry = await (registry := self._there()).get("members")
        if entry is not None and entry.revision != self._members_revision:
            self.members, self._members_revision = codec.unpack_members(entry.value), entry.revision
            self.changed_s = time.monotonic()
        entry = await registry.get("table")
        if entry is not None and entry.revision != self._table_revision:
            read = codec.unpack_table(entry.value)
            if self.table is not None and has_returned(self.table, read):
                self.changed_s = time.monotonic()  # not at once again
            self.table, self._table_revision = read, entry.revision
        self.read_s = time.monotonic()

    def _tell_engine(self) -> None:
        """Only a member's engine is told: an older table could give it what an older start of this node had.

        Members before the table: who is gone must be known to be gone before somebody else speaks for its
        partitions.
        """
        commands: list[dict[str, Any]] = []
        if self.members.version > self._told[0]:
            nodes = [
                {"slot": m.slot, "incarnation": m.incarnation, "address": m.address, "lanes": m.lanes}
                for m in self.members.nodes
            ]
            commands.append({"do": "members", "version": self.members.version, "nodes": nodes})
        if self.table is not None and self.table.version > self._told[1] and self.members.nodes:
            slots = {m.node: m.slot for m in self.members.nodes}
            rows = [[-1 if a.owner is None else slots.get(a.owner, -1), a.epoch] for a in self.table.partitions]
            served = [max((log.served for log in a.logs), default=0) for a in self.table.partitions]
            commands.append({"do": "table", "version": self.table.version, "partitions": rows, "served": served})
        if commands:
            self._submit(*commands)
        self._told = (self.members.version, self.table.version if self.table is not None else 0)

    def _lapsed(self) -> list[NodeId]:
        """Other members whose leases are over."""
        others = (m for m in self.members.nodes if m.node != self.node)
        return [m.node for m in others if self.lease.is_over(m, votes.LEASE_MS / 1000)]

    async def _ask_to_join(self) -> bool:
        assert self.me is not None
        old = self.members.find(self.node)
        others = [m for m in self.members.nodes if m.node != self.node]
        lapsed = self._lapsed()
        # alone there is nobody whom an older start could mislead
        own_over = old is None or self.lease.is_over(old, votes.LEASE_MS / 1000 if others else 2 * ALIVE_S)
        if len(lapsed) == len(others) and own_over:  # nobody is there who could let it in
            gone = replace(self.members, nodes=())
            if self.table is not None:
                await self._set_table(disown(self.table, self.node))
            made = votes.joined(gone, self.me)
            if made is None:
                raise Resigned
            await self._set_members(made)
            return True
        entry = await self._there().get("joins")
        joins = codec.unpack(entry.value, "joins") if entry is not None else {}
        wish = codec.pack_members(Members(Version(0), (self.me,))).decode()
        if joins.get(self.node) != wish:
            value = codec.pack(joins | {self.node: wish})
            await self._there().replace("joins", value, entry.revision if entry is not None else 0)
        return False

    async def _reports(self) -> dict[NodeId, Report]:
        """All reports, this node's own renewed: it binds before it is written."""
        made = votes.report(self.members, self.node, self.incarnation, self.beats, self._report)
        if made != self._report:
            slots = {m.node: m.slot for m in self.members.nodes}
            self._submit({"do": "bind", "slots": [slots[n] for n in made.silent if n in slots]})
            if made.silent or (self._report is not None and self._report.silent):
                await self._write_report(made)
                if made.silent:
                    self.log.warning("silent", nodes=list(made.silent), members=made.version)
            if self._report is None or self._report.silent != made.silent:
                self._reported_s = time.monotonic()
            self._report = made
        if not made.silent and not any(b.heard_ms > votes.SILENT_MS // 2 for b in self.beats):
            return {self.node: made}
        found = {self.node: made}
        for m in self.members.nodes:
            entry = await self._there().get(f"report.{m.node}") if m.node != self.node else None
            if entry is not None:
                raw = codec.unpack(entry.value, "report")
                silent = tuple(NodeId(n) for n in raw["silent"])
                found[m.node] = Report(Version(raw["version"]), raw["incarnation"], silent)
        return found

    async def _write_report(self, made: Report) -> None:
        value = codec.pack({"version": made.version, "incarnation": made.incarnation, "silent": list(made.silent)})
        entry = await self._there().get(key := f"report.{self.node}")
        await self._there().replace(key, value, entry.revision if entry is not None else 0)

    async def _vote(self, reports: dict[NodeId, Report]) -> bool:
        gone = votes.voted_out(self.members, reports)
        if gone is not None and votes.read_by_majority(self.members, self.beats):
            self.log.warning("voted out", node=gone, members=self.members.version + 1)
            await self._set_members(votes.without(self.members, gone))
            return True
        heard = 1 + sum(b.heard_ms <= votes.SILENT_MS for b in self.beats)
        if heard < self.members.majority and (lapsed := self._lapsed()):
            self.log.warning("lease over", node=lapsed[0], members=self.members.version + 1)
            await self._set_members(votes.without(self.members, lapsed[0]))
            return True
        return False

    async def _act(self, reports: dict[NodeId, Report]) -> bool:
        """What the acting member does for all: let nodes in, give out partitions, end reports that led to nothing."""
        reported = {n for r in reports.values() if r.version == self.members.version for n in r.silent}
        if votes.acting(self.members, reported) != self.node:
            return False
        if self._report is not None and self._report.silent and self._reports_are_over():
            await self._set_members(votes.renewed(self.members))
            return True
        return await self._let_in() or await self._place()

    def _reports_are_over(self) -> bool:
        heard = {b.node: b.heard_ms for b in self.beats}
        back = all(heard.get(n, 0) <= votes.SILENT_MS for n in (self._report.silent if self._report else ()))
        waited = time.monotonic() - self._reported_s > REPORT_OVER_S
        return back and waited and votes.read_by_majority(self.members, self.beats)

    async def _let_in(self) -> bool:
        entry = await self._there().get("joins")
        joins = codec.unpack(entry.value, "joins") if entry is not None else {}
        for node, wish in joins.items():
            member = codec.unpack_members(wish.encode()).nodes[0]
            owns = self.table is not None and any(a.owner == member.node for a in self.table.partitions)
            made = votes.let_in(self.members, member, self.beats, owns=owns)
            if isinstance(made, Members):
                self.log.info("lets in", node=node, members=made.version)
                await self._set_members(made)
                return True
            if made and made != self._held.get(node):
                self.log.info("has to wait", node=node, why=made)
            self._held[node] = made
        return False

    async def _place(self) -> bool:
        if self.table is None:
            return False
        await self.read_wishes()
        base, quiet_s = self.table, time.monotonic() - self.changed_s
        versions = (self.table.version, self.members.version, self._wishes_revision)
        asked = (versions, quiet_s > CALM_S, quiet_s > SETTLED_S)
        if asked == self._placed:
            return False
        ring = self.ring_of(self.members.nodes)
        try:
            made = next_table(self.table, self.members, ring, self.wishes, calm=asked[1], settled=asked[2])
        except PlacementError as problem:
            self.log.error("partitions cannot be placed", error=str(problem))
            self._placed = asked
            return False
        await self._set_wishes(noted(self.wishes, self.table, made, self.members))
        if self.table is not base:  # somebody else of this process has read meanwhile
            raise StaleError("the table")
        changed = await self._set_table(made)
        self._placed = None if changed else asked
        return changed

    async def _say_served(self) -> bool:
        """Partitions that this node serves now, into the table."""
        rows = self.table.partitions if self.table is not None else ()
        news = {
            PartitionId(p): Epoch(epoch)
            for p, epoch in self.served.items()
            if (a := rows[p]).epoch == epoch and a.owner == self.node and a.state is PartitionState.RECOVERING
        }
        if self.table is not None and news:
            logs = {p: log_of(self.options.name, self.streams, p, epoch) for p, epoch in news.items()}
            await self._set_table(serving(self.table, news, logs))
            self.log.info("serves", partitions=sorted(news))
        return bool(news)

    async def _set_members(self, made: Members) -> None:
        value = codec.pack_members(made)
        self._members_revision = await self._there().replace("members", value, self._members_revision)
        self.members, self.changed_s = made, time.monotonic()

    async def _set_table(self, made: PartitionTable) -> bool:
        if self.table is not None and made.version == self.table.version:
            return False
        value = codec.pack_table(made)
        self._table_revision = await self._there().replace("table", value, self._table_revision)
        if self.table is not None:
            pairs = zip(self.table.partitions, made.partitions, strict=False)
            die_behind(self.table, made, self.node)
            moved = [f"{p}: {a.owner} > {b.owner}" for p, (a, b) in enumerate(pairs) if a.epoch != b.epoch]
            if moved:
                self.log.info("table", version=made.version, moved=", ".join(moved))
        self.table = made
        return True

    def _there(self) -> Registry:
        if self.registry is None:
            raise UnavailableError("the registry was not reached yet")
        return self.registry
