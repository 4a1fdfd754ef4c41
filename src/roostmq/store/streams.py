"""The streams of a cluster's log (docs/formats/log-nats.md): made once, by `cluster init`, never again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from roostmq.errors import UnavailableError, UnsuitableError
from roostmq.model import Epoch, LogRef, PartitionId
from roostmq.policy.leaders import Led
from roostmq.store.access import NatsAccess
from roostmq.store.nats_kv import bucket_of, connect

SERVER_MIN = (2, 12)
RETRY_S = 0.25
PATIENCE_S = 30.0
LEADER_S = 2.0
"""A stream without a leader answers nothing."""
NOT_FOUND = 404


def stream_of(cluster: str, number: int) -> str:
    """Name of a stream of the log."""
    return f"ROOST_{cluster}_LOG_{number}"


def streams_of(cluster: str, streams: int) -> list[str]:
    """Names of everything that a cluster has in NATS: its logs, then the registry."""
    return [*(stream_of(cluster, number) for number in range(streams)), f"KV_{bucket_of(cluster)}"]


def log_of(cluster: str, streams: int, partition: PartitionId, served: Epoch) -> LogRef:
    """The log of a partition, which has obeyed this epoch."""
    number = partition % streams
    return LogRef(stream_of(cluster, number), f"roost.{cluster}.log.{number}.{partition}", served)


def settings(cluster: str, number: int, replicas: int, bytes_max: int) -> StreamConfig:
    """What a stream of the log has to be."""
    return StreamConfig(
        name=stream_of(cluster, number),
        subjects=[f"roost.{cluster}.log.{number}.>"],
        storage=StorageType.FILE,
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.NEW,
        max_bytes=bytes_max,
        num_replicas=replicas,
        allow_direct=False,
        deny_delete=True,
        deny_purge=False,
    )


async def make_streams(access: NatsAccess, cluster: str, streams: int, replicas: int, bytes_max: int = 1 << 30) -> None:
    """Make the streams. Raises UnsuitableError (too old, no JetStream, no right, other settings), UnavailableError."""
    client = await connect(access, f"roost init {cluster}")
    try:
        version = client.connected_server_version
        if (version.major, version.minor) < SERVER_MIN:
            raise UnsuitableError(f"nats-server {version} is too old: 2.12 or newer is needed")
        js = client.jetstream(timeout=10)
        for number in range(streams):
            await _patiently(js.add_stream, settings(cluster, number, replicas, bytes_max))
    finally:
        await client.close()


async def _patiently(call: Any, config: StreamConfig) -> None:
    """A cluster of servers that has just started takes a moment to find its leaders."""
    for attempt in range(60):
        try:
            await call(config)
            return
        except NotFoundError as error:
            problem: Exception = error
        except APIError as error:
            if error.code is not None and error.code < 500 and "resources" not in str(error):
                raise UnsuitableError(f"stream {config.name} cannot be made: {error}") from None
            problem = error
        except (NatsError, OSError, TimeoutError) as error:
            problem = error
        await asyncio.sleep(RETRY_S if attempt else 0)
    raise UnavailableError(f"stream {config.name} cannot be made: {problem}")


async def leaders(client: Client, cluster: str, streams: int) -> list[Led]:
    """Who leads the streams of the log and the registry; those that have no leader now are left out.

    Raises UnsuitableError: it may not be asked.
    """

    async def one(name: str) -> Led | None:
        try:
            told = (await ask(client, f"$JS.API.STREAM.INFO.{name}", b"", patience_s=LEADER_S)).get("cluster", {})
        except UnavailableError:
            return None
        others = tuple(r["name"] for r in told.get("replicas") or () if r.get("current") and not r.get("offline"))
        return Led(name, told["leader"], others) if told.get("leader") else None

    found = await asyncio.gather(*map(one, streams_of(cluster, streams)))
    return [led for led in found if led is not None]


async def step_down(client: Client, stream: str, to: str) -> None:
    """Another server leads the stream from now on. Raises as `ask`."""
    wish = json.dumps({"placement": {"preferred": to}}).encode()
    await ask(client, f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", wish, patience_s=LEADER_S)


async def ask(
    client: Client, subject: str, data: bytes, *, missing_ok: bool = False, patience_s: float = PATIENCE_S
) -> dict[str, Any]:
    """An answer of JetStream; empty if there is nothing and that is fine. Raises UnsuitableError, UnavailableError."""
    try:
        answer: dict[str, Any] = json.loads((await client.request(subject, data, timeout=patience_s)).data)
    except (NatsError, OSError, TimeoutError) as error:
        raise UnavailableError(f"NATS does not answer {subject}: {error!r}") from None
    problem = answer.get("error")
    if problem is None:
        return answer
    if missing_ok and problem.get("code") == NOT_FOUND:
        return {}
    raise UnsuitableError(f"{subject}: {problem.get('description')}")
