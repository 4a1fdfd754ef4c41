"""What has come to a stream of the log since a backup: read from the stream's leader into a file.

*Front* of a log is its first message; what lies before it was given back, which a later message names. So the fronts
must be the same before and after the read: then everything from them up to the last message was there all the time.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from pathlib import Path
from typing import IO, Any

from nats.aio.client import Client
from nats.errors import Error as NatsError

from roostmq.errors import UnavailableError, UnsuitableError
from roostmq.store import kept
from roostmq.store.streams import NOT_FOUND, PATIENCE_S, ask

WINDOW = 256
"""Messages that are asked for at once."""
TRIES = 20


async def write(client: Client, stream: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write what follows the backup of a stream (its entry in the manifest).

    Returns `file` (its entry in the manifest), `last` (address of the last message) and `fronts` (by subject).
    Raises UnsuitableError: the stream is not the one that it was. UnavailableError.
    """
    name, last = stream["name"], stream["last"]
    info = await ask(client, f"$JS.API.STREAM.INFO.{name}", b'{"subjects_filter": ">"}')
    subjects = sorted(info["state"].get("subjects") or {})
    if info["state"]["last_seq"] < last:
        text = f"{name} ends at {info['state']['last_seq']}, the backup of it at {last}: it has lost data since"
        raise UnsuitableError(text)
    messages = 0
    with path.open("wb") as file:
        kept.begin(file, {"stream": name, "behind": last})
        for _ in range(TRIES):
            fronts = await fronts_of(client, name, subjects)
            end = (await ask(client, f"$JS.API.STREAM.INFO.{name}", b""))["state"]["last_seq"]
            messages += await _copy(client, name, last + 1, end, file)
            last = end
            if await fronts_of(client, name, subjects) == fronts:
                break
        else:
            raise UnavailableError(f"{name}: logs are given back again and again while they are read: try later")
    size, digest = path.stat().st_size, await asyncio.to_thread(_sha256, path)
    told = {"file": path.name, "bytes": size, "sha256": digest, "messages": messages}
    return {"file": told, "last": last, "fronts": fronts}


async def fronts_of(client: Client, name: str, subjects: list[str]) -> dict[str, int]:
    """Address of the first message of each subject."""
    found = await asyncio.gather(*(message(client, name, {"seq": 1, "next_by_subj": s}) for s in subjects))
    return {s: m[0] for s, m in zip(subjects, found, strict=True) if m is not None}


async def message(client: Client, name: str, which: dict[str, Any]) -> tuple[int, bytes] | None:
    """Address and bytes of a message, from the leader. Raises UnsuitableError, UnavailableError."""
    try:
        raw = (await client.request(f"$JS.API.STREAM.MSG.GET.{name}", json.dumps(which).encode(), PATIENCE_S)).data
    except (NatsError, OSError, TimeoutError) as error:
        raise UnavailableError(f"NATS does not answer for {name}: {error!r}") from None
    answer = json.loads(raw)
    problem = answer.get("error")
    if problem is None:
        found = answer["message"]
        return found["seq"], base64.b64decode(found.get("data") or "")
    if problem.get("code") == NOT_FOUND:
        return None
    raise UnsuitableError(f"{name}: {problem.get('description')}")


async def _copy(client: Client, name: str, first: int, last: int, file: IO[bytes]) -> int:
    """Messages from one address to another; how many there were."""
    copied = 0
    while first <= last:
        window = range(first, min(first + WINDOW, last + 1))
        found = await asyncio.gather(*(message(client, name, {"seq": n}) for n in window))
        for there in filter(None, found):
            kept.add(file, *there)
            copied += 1
        first = window.stop
        if not any(found) and (ahead := await message(client, name, {"seq": first, "next_by_subj": ">"})) is not None:
            first = max(first, ahead[0])
        elif not any(found):
            break
    return copied


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
