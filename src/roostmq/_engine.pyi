"""The native module; texts are JSON as in docs/formats/door.md."""

from collections.abc import Sequence
from typing import final

__all__ = [
    "Engine",
    "EngineError",
    "Load",
    "check_password",
    "cluster_import",
    "data_export",
    "data_import",
    "data_inspect",
    "data_verify",
    "hash_ids",
    "hash_password",
    "version",
]

class EngineError(RuntimeError):
    """The engine refuses; the text says what, where, and what to do."""

@final
class Engine:
    """A running engine."""

    @staticmethod
    def start(settings: str) -> Engine:
        """Binds the listeners and starts the lanes."""
    def submit(self, commands: str) -> None:
        """Hands over a JSON array of commands."""
    def poll(self) -> str:
        """Takes events as a JSON array."""
    @property
    def fd(self) -> int:
        """Readable while there are events."""
    def wait(self, at_most_ms: int) -> bool:
        """Waits until the lanes have ended by themselves after the command `stop`."""
    def stop(self) -> None:
        """Ends every lane; a second call does nothing."""

@final
class Load:
    """A load on a broker, which runs on threads of its own."""

    @staticmethod
    def start(plan: str) -> Load:
        """Begins what a plan says."""
    def progress(self) -> str:
        """How far it is, as JSON."""
    def result(self, at_most_ms: int) -> str | None:
        """Waits for the report, JSON; None if it is not there in time."""
    def stop(self) -> None:
        """Asks it to end soon and report what it has."""

def version() -> str:
    """Version of the engine."""

def hash_ids(key0: int, key1: int, ids: Sequence[bytes]) -> bytes:
    """The points of ids on the ring of a cluster with this key: 8 bytes each, little-endian."""

def hash_password(password: str) -> str:
    """`$argon2id$...` of a password."""

def check_password(password: str, hash: str) -> bool:
    """Does the password belong to the hash?"""

def data_inspect(dir: str) -> str:
    """What is in a data directory that no broker uses, as JSON."""

def data_verify(dir: str) -> str:
    """Reads everything in a data directory; what is damaged, as JSON."""

def data_export(dir: str, file: str) -> str:
    """Writes a data directory that no broker uses to a new file; the numbers, as JSON."""

def cluster_import(file: str, nats: str) -> str:
    """Fills the empty logs of a cluster from such a file; the numbers, as JSON. `nats`: settings of its NATS, JSON."""

def data_import(dir: str, file: str) -> str:
    """Fills an empty directory from such a file; the numbers, as JSON."""
