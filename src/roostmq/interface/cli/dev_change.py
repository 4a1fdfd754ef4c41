"""`roost dev add` and `roost dev remove`: a development cluster grows and shrinks while its clients talk.

The running `roost dev` does the work, as it is the parent of all nodes; it listens on loopback, and says in
`DIR/dev.json` where, with a secret that only who may read the folder knows. Request and answers are lines of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roostmq.errors import ConfigError, RoostError, UnavailableError
from roostmq.interface.cli import admin

if TYPE_CHECKING:
    from roostmq.interface.cli.dev import Dev

FILE = "dev.json"
LOOK_S = 0.1
MOVE_S = 300.0
AWAY_S = 60.0
"""So long NATS may be away."""


def parser() -> argparse.ArgumentParser:
    """Options of both."""
    p = argparse.ArgumentParser(prog="roost dev", description="Change a cluster that `roost dev --data DIR` runs.")
    sub = p.add_subparsers(dest="what", required=True, metavar="COMMAND")
    add = sub.add_parser("add", help="start one more node and move its share of the partitions to it")
    remove = sub.add_parser("remove", help="move everything away from a node and stop it")
    remove.add_argument("node", help="name of the node, such as n2")
    for one in (add, remove):
        one.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of the running cluster")
        one.add_argument("--json", action="store_true", help="print one JSON object at the end, nothing else")
    return p


def main(words: list[str]) -> int:
    """Ask the running cluster, show how far it is."""
    options = parser().parse_args(words)
    return asyncio.run(_ask(options))


async def _ask(o: argparse.Namespace) -> int:
    try:
        where = json.loads((o.data / FILE).read_text())
        reader, writer = await asyncio.open_connection("127.0.0.1", where["port"])
    except (OSError, ValueError, KeyError):
        raise ConfigError(f"no cluster runs in {o.data}: start it with `roost dev --data {o.data}`") from None
    request = {"secret": where["secret"], "what": o.what, "node": getattr(o, "node", None)}
    writer.write(json.dumps(request).encode() + b"\n")
    try:
        while line := await reader.readline():
            told = json.loads(line)
            if "error" in told:
                raise RoostError(told["error"])
            if "progress" in told:
                if not o.json:
                    print(told["progress"], file=sys.stderr, flush=True)
                continue
            if o.json:
                print(json.dumps(told))
            else:
                _show(told)
            return 0 if told["digests_equal"] else 1
    finally:
        writer.close()
    raise RoostError("the cluster has stopped meanwhile")


def _show(told: dict[str, Any]) -> None:
    share = f"{told['moved']} of {told['partitions']} partitions moved"
    print(f"{told['node']}: {share} (fewest possible: {told['optimum']})")
    print(f"  sockets closed  {told['sockets_closed']}")
    print(f"  digests         {'equal' if told['digests_equal'] else 'DIFFER: see the logs of the nodes'}")
    print(f"  pause, p99      {told['pause_p99_ms']} ms")


# ---- in the running cluster


@contextlib.asynccontextmanager
async def listen(dev: Dev) -> AsyncIterator[None]:
    """Take requests for a while."""
    secret = secrets.token_hex(16)
    busy = asyncio.Lock()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def tell(**fields: Any) -> None:
            writer.write(json.dumps(fields).encode() + b"\n")

        try:
            request = json.loads(await reader.readline())
            if not secrets.compare_digest(str(request.get("secret")), secret):
                return
            async with busy:
                tell(**await Change(dev, tell).carry_out(request["what"], request["node"]))
        except RoostError as problem:
            tell(error=str(problem))
        except (ValueError, KeyError):
            tell(error="this request cannot be read")
        finally:
            with contextlib.suppress(OSError):
                await writer.drain()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    kept = dev.folder / FILE
    kept.touch(mode=0o600)
    port = server.sockets[0].getsockname()[1]
    kept.write_text(json.dumps({"port": port, "secret": secret, "pid": os.getpid()}) + "\n")
    try:
        yield
    finally:
        kept.unlink(missing_ok=True)
        server.close()


class Change:
    """One node more or less."""

    def __init__(self, dev: Dev, tell: Any) -> None:
        self.dev, self.tell = dev, tell
        self.begun_s = time.time()

    async def carry_out(self, what: str, node: str | None) -> dict[str, Any]:
        """Do it; the figures. Raises RoostError."""
        if what == "remove":
            self.dev.number(node or "")
            if len(self.dev.nodes) == 1:
                raise ConfigError("the last node cannot be removed: stop `roost dev` instead")
        await self._ask(admin.refuse_if_paused, "nothing would come or go")
        before = await self._look()
        closed = await self._closed()
        if what == "add":
            self.tell(progress="a node starts")
            node = await self.dev.add()
        name = str(node)
        plan = await self._plan(before, name, what)
        if what == "remove":
            await self._post(f"/api/v1/cluster/members/{name}", draining=True)
        after = await self._until_moved(name, what, plan)
        result = await self._figures(before, after, name, plan)
        result["sockets_closed"] = await self._closed() - closed
        if what == "remove":
            await self.dev.remove(name)
        else:
            result |= next(n for n in self.dev.describe()["nodes"] if n["id"] == name)
        return result

    async def _plan(self, before: dict[str, Any], name: str, what: str) -> int:
        """How many partitions must move at least."""
        owners = [p["owner"] for p in before["partitions"]]
        return len(owners) // len(self.dev.nodes) if what == "add" else owners.count(name)

    async def _until_moved(self, name: str, what: str, optimum: int) -> dict[str, Any]:
        end_s, shown = time.monotonic() + MOVE_S, -1
        while time.monotonic() < end_s:
            now = await self._look()
            rows = now["partitions"]
            held = sum(p["owner"] == name for p in rows)
            done = held >= optimum if what == "add" else held == 0
            if done and all(p["state"] == "serving" for p in rows):
                return now
            moved = held if what == "add" else optimum - held
            if moved != shown:
                self.tell(progress=f"{moved} of {optimum} partitions have moved")
            shown = moved
            await asyncio.sleep(LOOK_S)
        raise RoostError(f"the partitions have not moved within {MOVE_S:.0f} s; ask `roost cluster doctor`")

    async def _figures(self, before: dict[str, Any], after: dict[str, Any], name: str, optimum: int) -> dict[str, Any]:
        pairs = list(zip(before["partitions"], after["partitions"], strict=False))
        # epochs under which it moved: others may have followed, as when it was cut in two since
        moved = {a["partition"]: range(a["epoch"], b["epoch"]) for a, b in pairs if a["owner"] != b["owner"]}
        pauses: dict[int, int] = {}
        carried, failed = set(), []
        for told in await self._everywhere():
            for move in told["moves"]:
                p = move["partition"]
                if move["what"] == "moved" and move["epoch"] - 1 in moved.get(p, ()):
                    pauses[p] = max(pauses.get(p, 0), move["pause_ms"])
                elif move["what"] == "carried" and move["epoch"] in moved.get(p, ()):
                    carried.add(p)
                elif move["what"] == "failed" and move["at_s"] >= self.begun_s:
                    failed.append(f"partition {p}: {move['why']}")
        ordered = sorted(pauses.values())
        return {
            "node": name,
            "moved": len(moved),
            "partitions": len(pairs),
            "optimum": optimum,
            "digests_equal": carried == set(moved),
            "pause_p99_ms": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] if ordered else 0,
            "failed": failed,
        }

    async def _look(self) -> dict[str, Any]:
        told = await self._everywhere()
        return max(told, key=lambda t: int(t["table_version"]))

    async def _everywhere(self) -> list[dict[str, Any]]:
        asked = (asyncio.to_thread(admin.get, url, "/api/v1/cluster") for url in self.dev.admins().values())
        told = await asyncio.gather(*asked, return_exceptions=True)
        found = [t for t in told if isinstance(t, dict)]
        if not found:
            raise RoostError("no node of the cluster answers")
        return found

    async def _closed(self) -> int:
        """Connections that were closed as their sessions were lost."""
        asked = (asyncio.to_thread(admin.get, url, "/api/v1/info") for url in self.dev.admins().values())
        told = await asyncio.gather(*asked, return_exceptions=True)
        return sum(t["counters"]["sessions_lost"] for t in told if isinstance(t, dict))

    async def _post(self, path: str, **fields: object) -> None:
        await self._ask(admin.post, path, 15, **fields)

    async def _ask(self, what: Callable[..., Any], *args: Any, **fields: object) -> None:
        """Of the first node; NATS may hold an election meanwhile."""
        url, end_s = next(iter(self.dev.admins().values())), time.monotonic() + AWAY_S
        while True:
            try:
                return await asyncio.to_thread(what, url, *args, **fields)
            except UnavailableError as problem:
                if time.monotonic() > end_s:
                    raise
                self.tell(progress=f"{problem}; trying again")
            await asyncio.sleep(1)
