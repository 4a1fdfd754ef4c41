"""Restore of a backup into a NATS that knows nothing of the cluster, and of what its nodes have kept beside it.

An append names the one before it by its address, so each comes to the address that it had; where nothing is known of
an address, something small is put there and taken away again. The registry comes last: no node starts before. A restore
begins another *life* of the cluster: what nodes kept in the one before continues only backups of that one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from roostmq.errors import StoreError, UnavailableError, UnsuitableError
from roostmq.model import Epoch, PartitionId
from roostmq.policy.newer import End, Newer, end_of, newer
from roostmq.store import codec, kept
from roostmq.store.access import NatsAccess
from roostmq.store.backup import CHUNK_BYTES, MANIFEST, Tell, read_manifest
from roostmq.store.kept import Kept
from roostmq.store.later import message
from roostmq.store.nats_kv import NatsRegistry, connect
from roostmq.store.streams import LEADER_S, PATIENCE_S, ask

WINDOW = 256
WINDOW_BYTES = 8 * 1024 * 1024
"""Messages that are under way at once, and their bytes."""
LEADER_TRIES = 100
PUT_TRIES = 4


class GivenUpError(UnavailableError):
    """Nobody takes in what is sent: the server that did waited five seconds for more, or leads the stream no longer."""


async def restore(
    access: NatsAccess, folder: Path, replicas: int | None, caches: Sequence[Path], tell: Tell
) -> dict[str, Any]:
    """Put everything there; the manifest, `newer` (by partition, what came from the caches) and `unknown` (by stream,
    how many addresses behind the backup no node has kept: lost, or of owners that nobody obeyed any more).

    `replicas`: copies of everything from now on; None as it was. `caches`: folders in which nodes have kept what they
    stored (`cluster.cache_dir`). Raises UnsuitableError, UnavailableError.
    """
    manifest = await asyncio.to_thread(check, folder)
    found = await asyncio.to_thread(gather, manifest, caches, tell)
    client = await connect(access, f"roost restore {manifest['cluster']}")
    *logs, registry = manifest["streams"]
    made: list[str] = []
    try:
        for stream in manifest["streams"]:
            if await _there(client, stream["name"]):
                text = f"NATS has a stream {stream['name']} already: a restore wants a NATS without this cluster"
                raise UnsuitableError(text)
        for stream in logs:
            await _put(client, folder, stream, replicas, made)
            await _continue(client, folder, stream)
            tell(f"{stream['name']}: as it was backed up, up to {stream['last']}")
        unknown = _unknown(logs, found, tell)
        told = await _replay(client, logs, found, tell)
        await _put(client, folder, registry, replicas, made)
        await _begin_life(access, manifest, told)
    except BaseException:
        await _take_back(client, made, tell)
        raise
    finally:
        await client.close()
    return manifest | {"newer": [_line(p, n) for p, n in told.items()], "unknown": unknown}


async def _there(client: Client, name: str) -> bool:
    """Asked often: servers that are holding an election, as they do when they have just started, answer nothing."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return bool(await ask(client, f"$JS.API.STREAM.INFO.{name}", b"", missing_ok=True, patience_s=LEADER_S))
        except UnavailableError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(LEADER_S / 10)


async def _take_back(client: Client, made: list[str], tell: Tell) -> None:
    """A restore that has failed leaves nothing, so that it can be tried again."""
    for name in made:
        try:
            await ask(client, f"$JS.API.STREAM.DELETE.{name}", b"", missing_ok=True)
        except StoreError as error:
            tell(f"delete the stream {name} before the next try: {error}")


def check(folder: Path) -> dict[str, Any]:
    """The manifest of a backup whose files are what they were. Raises UnsuitableError with the file that is not."""
    manifest = read_manifest(folder)
    for part in (part for stream in manifest["streams"] for part in (stream, *stream["later"])):
        path = folder / part["file"]
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UnsuitableError(f"{path} cannot be read: {error}") from None
        if found != part["sha256"]:
            raise UnsuitableError(f"{path} is not what it was: its SHA-256 differs from that in {MANIFEST}")
    return manifest


def gather(manifest: dict[str, Any], caches: Iterable[Path], tell: Tell) -> dict[int, dict[int, Kept]]:
    """What nodes have kept that lies behind the backup: by number of the stream, by address. Raises UnsuitableError."""
    ends = [stream["last"] for stream in manifest["streams"][:-1]]
    found: dict[int, dict[int, Kept]] = {n: {} for n in range(len(ends))}
    for path in (path for folder in caches for path in kept.in_folder(folder)):
        head = kept.head_of(path)
        if (head["cluster"], head["key_id"]) != (manifest["cluster"], manifest["key_id"]):
            raise UnsuitableError(f"{path} is of another cluster")
        if head["life"] != manifest["life"]:
            tell(f"{path}: not used, the cluster has been restored between it and the backup")
            continue
        for one in kept.read(path):
            stream, address = one.append.partition % len(ends), one.append.address
            if address > ends[stream] and found[stream].setdefault(address, one).append != one.append:
                raise UnsuitableError(f"{path} and {found[stream][address].file} disagree about address {address}")
    return found


async def _put(client: Client, folder: Path, stream: dict[str, Any], replicas: int | None, made: list[str]) -> None:
    """The snapshot of a stream, begun again if the server that took it in has given it up.

    It counts as `made` here once NATS lets this restore make it, not before: one that somebody else has made meanwhile
    must not be taken back.
    """
    name = stream["name"]
    config = stream["config"] | ({"num_replicas": replicas} if replicas is not None else {})
    request = json.dumps({"config": config, "state": stream["state"]}).encode()
    for tries_left in reversed(range(PUT_TRIES)):
        told = await ask(client, f"$JS.API.STREAM.RESTORE.{name}", request)
        made.append(name)
        try:
            await _hand_over(client, told["deliver_subject"], folder, stream)
            break
        except GivenUpError:
            if not tries_left:
                raise
            await ask(client, f"$JS.API.STREAM.DELETE.{name}", b"", missing_ok=True)
            made.remove(name)
    for _ in range(LEADER_TRIES):
        try:
            info = await ask(client, f"$JS.API.STREAM.INFO.{name}", b"", patience_s=LEADER_S)
        except UnavailableError:
            info = {"cluster": {}}
        if "cluster" not in info or info["cluster"].get("leader"):
            return
        await asyncio.sleep(LEADER_S / 10)
    raise UnavailableError(f"{name} was restored and has no leader: see whether all servers of NATS run")


async def _hand_over(client: Client, subject: str, folder: Path, stream: dict[str, Any]) -> None:
    """The file of a snapshot, and whether everything of it has arrived."""
    name = stream["name"]
    with (folder / stream["file"]).open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            await _send(client, subject, chunk, name)
    answer = json.loads(await _send(client, subject, b"", name))
    if "error" in answer:
        raise UnsuitableError(f"{name} cannot be restored: {answer['error'].get('description')}")
    got, had = answer["state"], stream["state"]
    if (got["messages"], got["last_seq"]) != (had["messages"], had["last_seq"]):
        text = (
            f"{name}: {got['messages']} messages up to {got['last_seq']}, not {had['messages']} up to {had['last_seq']}"
        )
        raise UnsuitableError(text)


async def _continue(client: Client, folder: Path, stream: dict[str, Any]) -> None:
    """What came to a stream after its snapshot, without what was given back meanwhile."""
    if not stream["later"]:
        return
    base = _base(stream)
    fronts = {int(subject.rpartition(".")[2]): front for subject, front in stream["fronts"].items()}
    for subject, front in stream["fronts"].items():
        await _purge(client, stream, {"filter": subject, "seq": front})
    parts = [one for part in stream["later"] for one in kept.read(folder / part["file"])]
    wanted = [one for one in parts if one.append.address >= fronts.get(one.append.partition, 0)]
    at = await _append(client, base, stream["state"]["last_seq"], wanted)
    await _fill(client, base, stream["last"] - at)
    await _purge(client, stream, {"filter": f"{base}.gap"})


def _unknown(logs: list[dict[str, Any]], found: dict[int, dict[int, Kept]], tell: Tell) -> dict[str, int]:
    told = {}
    for number, stream in enumerate(logs):
        missing = max(found[number], default=stream["last"]) - stream["last"] - len(found[number])
        if missing:
            told[stream["name"]] = missing
            tell(f"{stream['name']}: what was at {missing} addresses behind the backup was kept by no node")
    return told


async def _replay(
    client: Client, logs: list[dict[str, Any]], found: dict[int, dict[int, Kept]], tell: Tell
) -> dict[PartitionId, Newer]:
    """Say what is newer, then put it there."""
    told: dict[PartitionId, Newer] = {}
    for number, stream in enumerate(logs):
        there = found[number]
        partitions = sorted({one.append.partition for one in there.values()})
        ends = {p: await _end(client, stream, p) for p in partitions}
        mine = newer(ends, (one.append for one in there.values()))
        for p, n in mine.items():
            gap = f"; {n.left_out} appends more cannot be used: {n.why}" if n.why else ""
            tell(f"partition {p}: {len(n.appends)} appends with {n.records} records are newer than the backup{gap}")
        addresses = sorted(append.address for n in mine.values() for append in n.appends)
        await _append(client, _base(stream), stream["last"], [there[address] for address in addresses])
        await _purge(client, stream, {"filter": f"{_base(stream)}.gap"})
        told |= mine
    return told


def _base(stream: dict[str, Any]) -> str:
    """What its subjects begin with."""
    return str(stream["config"]["subjects"][0]).removesuffix(".>")


async def _end(client: Client, stream: dict[str, Any], partition: PartitionId) -> End:
    """Up to where the log of a partition goes."""
    found = await message(client, stream["name"], {"last_by_subj": f"{_base(stream)}.{partition}"})
    append = kept.append_of(*found) if found is not None else None
    return end_of(append) if append is not None else End()


async def _append(client: Client, base: str, at: int, wanted: Sequence[Kept]) -> int:
    """Put appends at the addresses that they had, behind `at`; the last address."""
    under_way: list[asyncio.Task[int]] = []
    size = 0
    for one in wanted:
        append = one.append
        await _fill(client, base, append.address - at - 1)
        at = append.address
        under_way.append(asyncio.ensure_future(_publish(client, f"{base}.{append.partition}", one.read(), at)))
        await asyncio.sleep(0)  # in this order
        size += one.length
        if len(under_way) == WINDOW or size > WINDOW_BYTES:
            await asyncio.gather(*under_way)
            under_way, size = [], 0
    await asyncio.gather(*under_way)
    return at


async def _publish(client: Client, subject: str, data: bytes, address: int) -> int:
    answer = json.loads(await _send(client, subject, data, subject))
    if answer.get("seq") != address:
        why = answer.get("error", {}).get("description", f"it came to {answer.get('seq')}: somebody else writes there")
        raise UnsuitableError(f"{subject}: nothing can be put at address {address}: {why}")
    return address


async def _fill(client: Client, base: str, count: int) -> None:
    """So many addresses of which nothing is known."""
    for first in range(0, count, WINDOW):
        much = min(WINDOW, count - first)
        await asyncio.gather(*(_send(client, f"{base}.gap", b"-", base) for _ in range(much)))


async def _purge(client: Client, stream: dict[str, Any], what: dict[str, Any]) -> None:
    await ask(client, f"$JS.API.STREAM.PURGE.{stream['name']}", json.dumps(what).encode())


async def _send(client: Client, subject: str, data: bytes, name: str) -> bytes:
    try:
        return bytes((await client.request(subject, data, timeout=PATIENCE_S)).data)
    except NoRespondersError:
        raise GivenUpError(f"{name}: NATS has given the restore up; when all its servers run, try again") from None
    except (NatsError, OSError, TimeoutError) as error:
        raise UnavailableError(f"{name}: NATS broke the restore off: {error!r}") from None


async def _begin_life(access: NatsAccess, manifest: dict[str, Any], told: dict[PartitionId, Newer]) -> None:
    """The registry learns of the epochs that the logs obey, and that this is another life."""
    registry = await NatsRegistry.open(access, manifest["cluster"])
    try:
        entry = await registry.get("table")
        if entry is not None and told:
            table = codec.unpack_table(entry.value)
            rows = tuple(
                replace(a, epoch=Epoch(max(a.epoch, told[p].end.epoch))) if (p := PartitionId(n)) in told else a
                for n, a in enumerate(table.partitions)
            )
            raised = replace(table, version=type(table.version)(table.version + 1), partitions=rows)
            await registry.replace("table", codec.pack_table(raised), entry.revision)
        entry = await registry.get("meta")
        if entry is not None:
            meta = replace(codec.unpack_meta(entry.value), life=manifest["life"] + 1)
            await registry.replace("meta", codec.pack_meta(meta), entry.revision)
    finally:
        await registry.close()


def _line(partition: PartitionId, found: Newer) -> dict[str, Any]:
    return {
        "partition": partition, "appends": len(found.appends), "records": found.records, "up_to": found.end.address,
        "left_out": found.left_out, "why": found.why,
    }  # fmt: skip
