"""The registry: entries with revisions, changed by compare-and-set. Nothing here is consensus of our own.

*Everything that decides something reads the entry, decides, and writes against the revision that it read.* A change
without an answer is unknown: `UnavailableError` says only that, and the next read tells. `changed` is a hint: whoever
waits for it must read again anyway, after a time that does not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """A value as it was read."""

    value: bytes
    revision: int
    """Rises with each change; what a compare-and-set names."""


class Registry(Protocol):
    """See the top of the file. Keys are letters, digits, `_`, `-` and dots."""

    async def get(self, key: str) -> Entry | None:
        """The present entry, from the leader. Raises UnavailableError."""
        ...

    async def create(self, key: str, value: bytes) -> int:
        """Make an entry that is not there; its revision. Raises StaleError if it is there, UnavailableError."""
        ...

    async def replace(self, key: str, value: bytes, revision: int) -> int:
        """Change an entry that still has this revision. Raises StaleError if it has another, UnavailableError."""
        ...

    async def changed(self, at_most_s: float) -> bool:
        """Wait until something may have changed since the last call; False: the time is over."""
        ...

    def wake(self) -> None:
        """Make `changed` return: this process has something to look at itself."""
        ...

    async def close(self) -> None:
        """Let it go. A second call does nothing."""
        ...
