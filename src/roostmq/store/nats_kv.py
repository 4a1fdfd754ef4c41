"""A registry in a NATS key-value bucket.

Reads go to the leader of the bucket's stream (no direct access), so they see every change that was acknowledged. The
hint is a plain subscription to the bucket's subjects: no consumer, nothing that could get stuck or must be repaired
after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import APIError, BadRequestError, KeyWrongLastSequenceError, NoKeysError, NotFoundError
from nats.js.kv import KeyValue

from roostmq.errors import StaleError, UnavailableError, UnsuitableError
from roostmq.store.access import NatsAccess
from roostmq.store.registry import Entry

PATIENCE_S = 2.0
WRONG_SEQUENCE = (10071, 10164)


def bucket_of(cluster: str) -> str:
    """Name of a cluster's bucket."""
    return f"ROOST_{cluster}"


async def connect(access: NatsAccess, name: str) -> Client:
    """A connection that is tried again for ever once it was there.

    Raises UnavailableError if no server answers now, UnsuitableError for credentials that are refused.
    """

    async def quiet(error: Exception) -> None:
        """What matters is told by the request that fails."""

    options: dict[str, Any] = access.options() | {
        "name": name,
        "error_cb": quiet,
        "connect_timeout": 2,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.25,
        "allow_reconnect": True,
        "ping_interval": 5,
        "max_outstanding_pings": 2,
    }
    try:
        # once connected it is tried again for ever; the first time the caller decides
        return await asyncio.wait_for(nats.connect(servers=list(access.urls), **options), 2 * PATIENCE_S)
    except (NatsError, OSError, TimeoutError) as error:
        if "uthoriz" in str(error):
            raise UnsuitableError(f"NATS at {', '.join(access.urls)} refuses our credentials: {error}") from None
        raise UnavailableError(f"NATS at {', '.join(access.urls)} does not answer: {error}") from None


class NatsRegistry:
    """A `Registry` in the bucket of a cluster."""

    def __init__(self, client: Client, bucket: KeyValue) -> None:
        self.client, self._bucket = client, bucket
        self._hint = asyncio.Event()
        self._subscription: Any = None

    @classmethod
    async def open(cls, access: NatsAccess, cluster: str) -> NatsRegistry:
        """Open the bucket of a cluster that was made by `cluster init`.

        Raises UnavailableError while NATS does not answer, UnsuitableError if there is no such cluster or no right to
        it.
        """
        client = await connect(access, f"roost registry {cluster}")
        try:
            bucket = await _answered(client.jetstream(timeout=PATIENCE_S).key_value(bucket_of(cluster)))
            registry = cls(client, bucket)
            registry._subscription = await client.subscribe(f"$KV.{bucket_of(cluster)}.>", cb=registry._on_hint)
        except BaseException as error:
            await client.close()
            if isinstance(error, NotFoundError):
                text = f"NATS knows no cluster `{cluster}`: make it with `roost cluster init {cluster}`"
                raise UnsuitableError(text) from None
            raise
        return registry

    @classmethod
    async def make(cls, access: NatsAccess, cluster: str, replicas: int) -> NatsRegistry:
        """Make the bucket, or open it if it is there. Raises as `open`."""
        client = await connect(access, f"roost init {cluster}")
        try:
            js: JetStreamContext = client.jetstream(timeout=10)
            settings = KeyValueConfig(
                bucket=bucket_of(cluster), history=1, replicas=replicas, storage=StorageType.FILE, direct=False
            )
            try:
                await _answered(js.create_key_value(settings))
            except BadRequestError as error:
                if "already in use" not in str(error):
                    raise UnsuitableError(f"the bucket of `{cluster}` cannot be made: {error}") from None
        finally:
            await client.close()
        return await cls.open(access, cluster)

    async def _on_hint(self, message: Any) -> None:
        self._hint.set()

    async def get(self, key: str) -> Entry | None:
        """The present entry, from the leader. Raises UnavailableError."""
        try:
            found = await _answered(self._bucket.get(key))
        except (NotFoundError, NoKeysError):
            return None
        return Entry(found.value or b"", found.revision or 0)

    async def create(self, key: str, value: bytes) -> int:
        """Make an entry. Raises StaleError, UnavailableError."""
        return await self.replace(key, value, 0)

    async def replace(self, key: str, value: bytes, revision: int) -> int:
        """Change an entry that still has this revision. Raises StaleError, UnavailableError."""
        try:
            return int(await _answered(self._bucket.update(key, value, last=revision)))
        except KeyWrongLastSequenceError:
            raise StaleError(f"{key}: somebody else has changed it") from None
        except APIError as error:
            if error.err_code in WRONG_SEQUENCE:
                raise StaleError(f"{key}: somebody else has changed it") from None
            raise UnavailableError(f"{key}: {error}") from None

    async def changed(self, at_most_s: float) -> bool:
        """Wait for a hint."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hint.wait(), at_most_s)
        hinted = self._hint.is_set()
        self._hint.clear()
        return hinted

    def wake(self) -> None:
        """A hint of this process's own."""
        self._hint.set()

    async def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            await self.client.close()


async def _answered(request: Any) -> Any:
    """The answer of a request, or UnavailableError; what JetStream itself says is passed on."""
    try:
        return await asyncio.wait_for(request, PATIENCE_S * 5)
    except (NotFoundError, NoKeysError, BadRequestError, KeyWrongLastSequenceError):
        raise
    except APIError as error:
        if error.code is not None and error.code >= 500:
            raise UnavailableError(f"NATS: {error}") from None
        raise
    except (NatsError, OSError, TimeoutError, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()) and task.cancelling():
            raise
        raise UnavailableError(f"NATS does not answer: {error!r}") from None
