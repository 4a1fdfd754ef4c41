"""Links between nodes that are cut or slowed: each node is found behind a proxy that knows who speaks to whom.

Contract: a proxy reads the slot of who dialled from the greeting (docs/formats/link.md) and then passes bytes on. What is cut is
swallowed in silence, as by a broken switch: both ends notice by themselves. Directions are (slot from, slot to).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable

GREETING = 52
SLOT_AT = 10
LOOK_S = 0.02

Way = tuple[int, int]


class Weather:
    """What is wrong with which direction at this moment."""

    def __init__(self) -> None:
        self.cut: set[Way] = set()
        self.slow: dict[Way, float] = {}
        """Seconds that each piece takes more."""
        self._servers: list[asyncio.Server] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def stand_before(self, slot: int, port: int) -> int:
        """Open a proxy for the node with this slot, whose links are at this port; the port of the proxy."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._serving.add(task)
            try:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await self._join(slot, port, reader, writer)
            finally:
                self._serving.discard(task)
                writer.transport.abort()

        place = socket.create_server(("127.0.0.1", 0))
        place.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # a slow way is no store
        server = await asyncio.start_server(serve, sock=place)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _join(self, slot: int, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting = await reader.readexactly(GREETING)
        other = int.from_bytes(greeting[SLOT_AT : SLOT_AT + 2], "little")
        onward = socket.socket()
        onward.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        onward.setblocking(False)
        await asyncio.get_running_loop().sock_connect(onward, ("127.0.0.1", port))
        there, back = await asyncio.open_connection(sock=onward)
        try:
            if (other, slot) not in self.cut:
                back.write(greeting)
            ways = (self._pass(reader, back, (other, slot)), self._pass(there, writer, (slot, other)))
            tasks = [asyncio.ensure_future(w) for w in ways]
            try:
                await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            back.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        """One direction. Once something was swallowed nothing that follows may pass: it would make no sense."""
        swallowed = False
        while data := await reader.read(65536):
            if way in self.slow:
                await asyncio.sleep(self.slow[way])
            swallowed |= way in self.cut
            if not swallowed:
                writer.write(data)
                await writer.drain()

    def clear(self) -> None:
        """Everything is well again."""
        self.cut.clear()
        self.slow.clear()

    async def close(self) -> None:
        """No more connections, and none is left."""
        for server in self._servers:
            server.close()
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.sleep(0.05)


def both(pairs: Iterable[Way]) -> set[Way]:
    """These pairs in both directions."""
    return {way for a, b in pairs for way in ((a, b), (b, a))}
