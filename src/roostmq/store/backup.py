"""Backup of a whole cluster while it runs; into the same folder again, what has come since.

A backup is a folder: of each stream of the log a snapshot, made by NATS at one moment, and files of the appends that
came later, one for each time that it was continued; a snapshot of the registry; and `manifest.json` with the SHA-256 of
each. A partition is in one stream, so what is kept of it is consistent; the registry comes last, so no log obeys an
epoch that its table does not know. The hash key is in the join token only: keep that too.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.errors import Error as NatsError

from roostmq.errors import UnavailableError, UnsuitableError
from roostmq.store import codec, later
from roostmq.store.access import NatsAccess
from roostmq.store.nats_kv import NatsRegistry, connect
from roostmq.store.streams import PATIENCE_S, ask, streams_of

CHUNK_BYTES = 128 * 1024
TRIES = 5
MANIFEST = "manifest.json"
VERSION = 2
Tell = Callable[[str], None]


async def backup(access: NatsAccess, cluster: str, folder: Path, tell: Tell) -> dict[str, Any]:
    """Write a backup into a new or empty folder, or continue the one that is there; the manifest.

    Raises UnsuitableError if something else is there or NATS knows no such cluster, UnavailableError.
    """
    registry = await NatsRegistry.open(access, cluster)
    try:
        entry = await registry.get("meta")
        if entry is None:
            raise UnsuitableError(f"cluster `{cluster}` is half made: run `roost cluster init` again")
        meta = codec.unpack_meta(entry.value)
        before = _continued(folder, meta)
        for _ in range(TRIES):
            owners = await _owners(registry)
            manifest = await _write(access, meta, folder, before, tell)
            if await _owners(registry) == owners:
                _finish(folder, manifest)
                return manifest
            tell("partitions have changed owners meanwhile: once more")
        raise UnavailableError("partitions change owners again and again: try when the cluster is at rest")
    finally:
        await registry.close()


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a backup consists of. Raises UnsuitableError."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UnsuitableError(f"{folder} holds no complete backup: {error}") from None
    if manifest.get("version") != VERSION:
        text = f"{folder}: a backup of version {manifest.get('version')}; this release reads version {VERSION}"
        raise UnsuitableError(text)
    return manifest


def _continued(folder: Path, meta: codec.Meta) -> dict[str, Any] | None:
    """The manifest of the backup that is to be continued, if there is one. Raises UnsuitableError."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not (folder / MANIFEST).exists():
        raise UnsuitableError(f"{folder} is not empty and holds no backup: name another folder")
    manifest = read_manifest(folder)
    if (manifest["cluster"], manifest["key_id"], manifest["life"]) != (meta.name, meta.key_id, meta.life):
        what = "another cluster" if manifest["key_id"] != meta.key_id else "this cluster as it was before a restore"
        raise UnsuitableError(f"{folder} holds a backup of {what}: begin a new one in another folder")
    return manifest


async def _owners(registry: NatsRegistry) -> Any:
    """Under which epochs partitions are owned: registry and logs of a backup must agree on it."""
    entry = await registry.get("table")
    rows = codec.unpack_table(entry.value).partitions if entry is not None else ()
    return [(a.epoch, a.logs) for a in rows]


async def _write(
    access: NatsAccess, meta: codec.Meta, folder: Path, before: dict[str, Any] | None, tell: Tell
) -> dict[str, Any]:
    """Everything but the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    part = before["part"] + 1 if before is not None else 0
    had = {s["name"]: s for s in before["streams"]} if before is not None else {}
    client = await connect(access, f"roost backup {meta.name}")
    *logs, registry = streams_of(meta.name, meta.streams)
    streams = []
    try:
        for name in logs:
            if (stream := had.get(name)) is not None:
                found = await later.write(client, stream, folder / f"{name}.{part}.later")
                streams.append(stream | {"later": [*stream["later"], found.pop("file")], **found})
                tell(f"{name}: {streams[-1]['later'][-1]['messages']} messages more, up to {found['last']}")
            else:
                made = await _snapshot(client, name, folder / f"{name}.snapshot")
                streams.append(made | {"later": [], "fronts": {}, "last": made["state"]["last_seq"]})
                tell(f"{name}: {made['state']['messages']} messages, {made['bytes']} bytes")
        made = await _snapshot(client, registry, folder / f"{registry}.{part}.snapshot")
        streams.append(made | {"later": [], "fronts": {}, "last": made["state"]["last_seq"]})
    finally:
        await client.close()
    facts = {"version": VERSION, "part": part, "cluster": meta.name, "key_id": meta.key_id, "life": meta.life}
    return facts | {"at": int(time.time()), "streams": streams}


def _finish(folder: Path, manifest: dict[str, Any]) -> None:
    """From now on this is the backup; what belongs to none goes."""
    fresh = folder / f"{MANIFEST}.new"
    fresh.write_text(json.dumps(manifest, indent=1) + "\n")
    fresh.replace(folder / MANIFEST)
    wanted = {file["file"] for s in manifest["streams"] for file in (s, *s["later"])}
    for path in (*folder.glob("*.snapshot"), *folder.glob("*.later")):
        if path.name not in wanted:
            path.unlink()


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
