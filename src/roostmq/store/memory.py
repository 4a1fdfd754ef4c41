"""A registry in this process: for tests, and for simulated clusters. Several nodes share one `Shelf`."""

from __future__ import annotations

import asyncio
import contextlib

from roostmq.errors import StaleError, UnavailableError
from roostmq.store.registry import Entry


class Shelf:
    """The entries, and what is wrong with them at this moment."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.revision = 0
        self.away = False
        """Nobody answers."""
        self.unknown = 0
        """So many of the next changes are made without an answer."""
        self.hints: list[asyncio.Event] = []


class MemoryRegistry:
    """A `Registry` over a shelf."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        self.shelf = shelf or Shelf()
        self._hint = asyncio.Event()
        self.shelf.hints.append(self._hint)

    async def get(self, key: str) -> Entry | None:
        """The present entry. Raises UnavailableError."""
        await asyncio.sleep(0)
        self._there()
        return self.shelf.entries.get(key)

    async def create(self, key: str, value: bytes) -> int:
        """Make an entry. Raises StaleError, UnavailableError."""
        return await self._write(key, value, 0)

    async def replace(self, key: str, value: bytes, revision: int) -> int:
        """Change an entry. Raises StaleError, UnavailableError."""
        return await self._write(key, value, revision)

    async def _write(self, key: str, value: bytes, revision: int) -> int:
        await asyncio.sleep(0)
        self._there()
        present = self.shelf.entries.get(key)
        if (present.revision if present is not None else 0) != revision:
            raise StaleError(f"{key}: somebody else has changed it")
        self.shelf.revision += 1
        self.shelf.entries[key] = Entry(value, self.shelf.revision)
        for hint in self.shelf.hints:
            hint.set()
        if self.shelf.unknown > 0:
            self.shelf.unknown -= 1
            raise UnavailableError(f"{key}: no answer")
        return self.shelf.revision

    def _there(self) -> None:
        if self.shelf.away:
            raise UnavailableError("the registry does not answer")

    async def changed(self, at_most_s: float) -> bool:
        """Wait for a change."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hint.wait(), at_most_s)
        hinted = self._hint.is_set()
        self._hint.clear()
        return hinted

    def wake(self) -> None:
        """A hint of this process's own."""
        self._hint.set()

    async def close(self) -> None:
        """Let it go."""
        if self._hint in self.shelf.hints:
            self.shelf.hints.remove(self._hint)
