"""The one door to Rust: commands in, events out. Nothing else imports the native module.

Nothing crosses this door per message. `Engine.events()` never waits; `Engine.fd` tells when it is worth calling.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from roostmq import _engine
from roostmq.errors import ClosedError, EngineError

Settings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in the engine: `name` and the fields of docs/formats/door.md."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]


class Engine:
    """A running engine.

    Raises EngineError from `start` when a listener cannot be bound or a file cannot be read.
    """

    def __init__(self, native: _engine.Engine) -> None:
        self._native: _engine.Engine | None = native

    @classmethod
    def start(cls, settings: Settings) -> Engine:
        """Start with the settings of `Config.engine_settings()`; every listener is bound when this returns."""
        if settings.get("data"):
            make_private(settings["data"]["dir"])
        try:
            return cls(_engine.Engine.start(json.dumps(settings)))
        except _engine.EngineError as error:
            raise EngineError(str(error)) from None

    @property
    def fd(self) -> int:
        """A descriptor that is readable while events wait."""
        return self._open().fd

    def _open(self) -> _engine.Engine:
        if self._native is None:
            raise ClosedError("the engine is stopped")
        return self._native

    def submit(self, *commands: dict[str, Any]) -> None:
        """Hand over commands; answers come as events."""
        try:
            self._open().submit(json.dumps(commands))
        except _engine.EngineError as error:
            raise EngineError(str(error)) from None

    def events(self) -> list[Event]:
        """Take what has happened since the last call, oldest first, at most 1,024 events."""
        return [Event(raw.pop("event"), raw) for raw in json.loads(self._open().poll())]

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Publish as the broker itself, past the ACL."""
        self.submit(publish_command(topic, payload, qos=qos, retain=retain))

    def wait(self, at_most_s: float) -> bool:
        """Wait for the lanes to end after the command `stop`; True if they have."""
        return self._open().wait(int(at_most_s * 1000))

    def stop(self) -> None:
        """End every lane now. A second call does nothing."""
        native, self._native = self._native, None
        if native is not None:
            native.stop()


class Load:
    """A load on a broker, which began with the plan of docs/formats/bench.md and runs on threads of its own.

    Raises EngineError: the plan is wrong, or (from `report`) the load could not be run.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        try:
            self._native = _engine.Load.start(json.dumps(plan))
        except _engine.EngineError as error:
            raise EngineError(str(error)) from None

    def progress(self) -> dict[str, Any]:
        """How far it is: `phase`, `done` of `total`, `sent`, `delivered`, `faults`, `seconds`."""
        told: dict[str, Any] = json.loads(self._native.progress())
        return told

    def report(self, at_most_s: float) -> dict[str, Any] | None:
        """Wait for the report; None if it is not there in time."""
        try:
            text = self._native.result(int(at_most_s * 1000))
        except _engine.EngineError as error:
            raise EngineError(str(error)) from None
        return None if text is None else json.loads(text)

    def stop(self) -> None:
        """Ask it to end soon; what it has found until then is reported."""
        self._native.stop()


def publish_command(topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> dict[str, Any]:
    """The command that publishes a message of the broker itself."""
    text = base64.b64encode(payload).decode()
    return {"do": "publish", "topic": topic, "payload": text, "qos": qos, "retain": retain}


def version() -> str:
    """Version of engine and package."""
    return _engine.version()


def hash_ids(key: tuple[int, int], ids: Sequence[bytes]) -> array[int]:
    """The points of client ids on the 64-bit ring of a cluster with this key: the hash that places every session.

    The key is two numbers of 64 bit. 400,000 ids take about 0.05 s. Raises OverflowError for a key that is none.
    """
    points = array("Q", _engine.hash_ids(*key, ids))
    if sys.byteorder == "big":
        points.byteswap()
    return points


def hash_password(password: str) -> str:
    """`$argon2id$...` of a password, with a new salt."""
    return _engine.hash_password(password)


def data_inspect(folder: str) -> dict[str, Any]:
    """What is in a data directory that no broker uses: counts, segments, digests by partition, damage (door.md)."""
    return _of_data(_engine.data_inspect, folder)


def data_verify(folder: str) -> dict[str, Any]:
    """Read every record of a data directory: `ok`, how much was checked, what is damaged, what can be done."""
    return _of_data(_engine.data_verify, folder)


def data_export(folder: str, file: str) -> dict[str, Any]:
    """Write a data directory to a file of docs/formats/export.md; the numbers of what is in it."""
    return _of_data(_engine.data_export, folder, file)


def data_import(folder: str, file: str) -> dict[str, Any]:
    """Fill an empty data directory from such a file; the numbers of what is in it."""
    make_private(folder)
    return _of_data(_engine.data_import, folder, file)


def cluster_import(file: str, nats: Settings) -> dict[str, Any]:
    """Fill the empty logs of a cluster from such a file; the numbers of what is in it."""
    return _of_data(_engine.cluster_import, file, json.dumps(nats))


def make_private(folder: str) -> None:
    """Make a directory that only its owner may look into; one that is there stays as it is. Raises EngineError.

    Folders that had to be made on the way to it outlast a power cut, as what will be in it does.
    """
    path = os.path.abspath(folder)
    changed = []
    while not os.path.exists(path):
        path = os.path.dirname(path)
        changed.append(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        for parent in changed:
            handle = os.open(parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except FileExistsError:
        raise EngineError(f"{folder}: is there and not a directory; name another for the data") from None
    except OSError as error:
        raise EngineError(f"{folder}: the data directory cannot be made: {error.strerror}") from None


def _of_data(call: Callable[..., str], *words: str) -> dict[str, Any]:
    """Raises EngineError: a directory in use, of a newer version or without a broker's data; a file that is wrong."""
    try:
        answer: dict[str, Any] = json.loads(call(*words))
    except _engine.EngineError as error:
        raise EngineError(str(error)) from None
    return answer
