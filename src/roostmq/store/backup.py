"""Backup of a whole cluster while it runs, and its restore into an empty NATS.

A backup is a folder: a snapshot of each stream of the log, then one of the registry, each made by NATS at one moment,
and `manifest.json` with the SHA-256 of each. A partition is in one stream, so what is kept of it is consistent; the
registry comes last, so no log obeys an epoch that its table does not know. The hash key is in the join token only:
keep that too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.errors import Error as NatsError

from roostmq.errors import UnavailableError, UnsuitableError
from roostmq.store import codec
from roostmq.store.access import NatsAccess
from roostmq.store.nats_kv import NatsRegistry, connect
from roostmq.store.streams import PATIENCE_S, ask, streams_of

CHUNK_BYTES = 128 * 1024
TRIES = 5
MANIFEST = "manifest.json"
Tell = Callable[[str], None]


async def backup(access: NatsAccess, cluster: str, folder: Path, tell: Tell) -> dict[str, Any]:
    """Write a backup into a new or empty folder; the manifest.

    Raises UnsuitableError if something is there already or NATS knows no such cluster, UnavailableError.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UnsuitableError(f"{folder} is not empty: a backup does not replace anything")
    registry = await NatsRegistry.open(access, cluster)
    try:
        entry = await registry.get("meta")
        if entry is None:
            raise UnsuitableError(f"cluster `{cluster}` is half made: run `roost cluster init` again")
        meta = codec.unpack_meta(entry.value)
        for _ in range(TRIES):
            owners = await _owners(registry)
            manifest = await _snapshots(access, cluster, meta, folder, tell)
            if await _owners(registry) == owners:
                return manifest
            tell("partitions have changed owners meanwhile: once more")
        raise UnavailableError("partitions change owners again and again: try when the cluster is at rest")
    finally:
        await registry.close()


async def _owners(registry: NatsRegistry) -> Any:
    """Under which epochs partitions are owned: registry and logs of a backup must agree on it."""
    entry = await registry.get("table")
    rows = codec.unpack_table(entry.value).partitions if entry is not None else ()
    return [(a.epoch, a.logs) for a in rows]


async def _snapshots(access: NatsAccess, cluster: str, meta: codec.Meta, folder: Path, tell: Tell) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    client = await connect(access, f"roost backup {cluster}")
    streams = []
    try:
        for name in streams_of(cluster, meta.streams):
            streams.append(await _snapshot(client, name, folder / f"{name}.snapshot"))
            tell(f"{name}: {streams[-1]['state']['messages']} messages, {streams[-1]['bytes']} bytes")
    finally:
        await client.close()
    manifest = {"version": 1, "cluster": cluster, "key_id": meta.key_id, "at": int(time.time()), "streams": streams}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


async def _snapshot(client: Client, name: str, file: Path) -> dict[str, Any]:
    inbox = client.new_inbox()
    chunks = await client.subscribe(inbox)
    request = {"deliver_subject": inbox, "no_consumers": True, "chunk_size": CHUNK_BYTES}
    told = await ask(client, f"$JS.API.STREAM.SNAPSHOT.{name}", json.dumps(request).encode())
    digest, size = hashlib.sha256(), 0
    try:
        with file.open("wb") as out:
            while True:
                chunk = await chunks.next_msg(PATIENCE_S)
                if chunk.headers and chunk.headers.get("Status", "").startswith("4"):
                    raise UnavailableError(f"{name}: NATS broke the snapshot off: {dict(chunk.headers)}")
                if not chunk.data:
                    break
                out.write(chunk.data)
                digest.update(chunk.data)
                size += len(chunk.data)
                if chunk.reply:
                    await client.publish(chunk.reply, b"")
    except NatsError as error:
        raise UnavailableError(f"{name}: NATS broke the snapshot off: {error!r}") from None
    finally:
        await chunks.unsubscribe()
    return {
        "name": name, "file": file.name, "bytes": size, "sha256": digest.hexdigest(), "config": told["config"],
        "state": told["state"],
    }  # fmt: skip


def check(folder: Path) -> dict[str, Any]:
    """The manifest of a backup whose files are what they were. Raises UnsuitableError with the file that is not."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UnsuitableError(f"{folder} holds no complete backup: {error}") from None
    if manifest.get("version") != 1:
        raise UnsuitableError(f"{folder}: a backup of version {manifest.get('version')}; this release reads version 1")
    for stream in manifest["streams"]:
        file = folder / stream["file"]
        try:
            found = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise UnsuitableError(f"{file} cannot be read: {error}") from None
        if found != stream["sha256"]:
            raise UnsuitableError(f"{file} is not what it was: its SHA-256 differs from that in {MANIFEST}")
    return manifest


async def restore(access: NatsAccess, folder: Path, replicas: int | None, tell: Tell) -> dict[str, Any]:
    """Put everything into a NATS that knows nothing of this cluster; the manifest.

    `replicas`: copies of everything from now on; None as it was. Raises UnsuitableError, UnavailableError.
    """
    manifest = await asyncio.to_thread(check, folder)
    client = await connect(access, f"roost restore {manifest['cluster']}")
    try:
        for stream in manifest["streams"]:
            there = await ask(client, f"$JS.API.STREAM.INFO.{stream['name']}", b"", missing_ok=True)
            if there:
                text = f"NATS has a stream {stream['name']} already: a restore wants a NATS without this cluster"
                raise UnsuitableError(text)
        for stream in manifest["streams"]:
            await _put(client, folder, stream, replicas)
            tell(f"{stream['name']}: {stream['state']['messages']} messages")
    finally:
        await client.close()
    return manifest


async def _put(client: Client, folder: Path, stream: dict[str, Any], replicas: int | None) -> None:
    name = stream["name"]
    config = stream["config"] | ({"num_replicas": replicas} if replicas is not None else {})
    request = json.dumps({"config": config, "state": stream["state"]}).encode()
    told = await ask(client, f"$JS.API.STREAM.RESTORE.{name}", request)
    subject = told["deliver_subject"]
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


async def _send(client: Client, subject: str, data: bytes, name: str) -> bytes:
    try:
        return bytes((await client.request(subject, data, timeout=PATIENCE_S)).data)
    except (NatsError, OSError, TimeoutError) as error:
        raise UnavailableError(f"{name}: NATS broke the restore off: {error!r}") from None
