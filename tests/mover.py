"""Moves the partitions of three nodes in a circle, as long as a test lasts: what the table does in a real cluster."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

LATE_S = 20.0


class Mover:
    """One move at a time: ordered, carried, named in the table that all nodes get."""

    def __init__(self, partitions: int, nodes: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = str(Path(self.folder.name) / "orders")
        self.owners = [(p % nodes, 1) for p in range(partitions)]
        self.version = 1
        self.moved = 0
        self.failed: list[str] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.path)
        self._server.listen(nodes)
        self._lines: list[socket.socket] = []
        self._told: queue.Queue[dict[str, Any]] = queue.Queue()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def take(self) -> None:
        """The node that was started last."""
        line, _ = self._server.accept()
        self._lines.append(line)
        threading.Thread(target=self._listen, args=(line,), daemon=True).start()

    def begin(self) -> None:
        """Move."""
        self._thread.start()

    def stop(self) -> None:
        """No further move."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(LATE_S + 5)
        for line in self._lines:
            line.close()
        self._server.close()
        self.folder.cleanup()

    def _listen(self, line: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), line.makefile() as told:
            for text in told:
                self._told.put(json.loads(text))

    def _order(self, node: int, **order: Any) -> None:
        self._lines[node].sendall(json.dumps(order).encode() + b"\n")

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                for partition in range(len(self.owners)):
                    if self._ending.is_set():
                        return
                    self._move(partition)
        except OSError as problem:
            if not self._ending.is_set():
                self.failed.append(repr(problem))

    def _move(self, partition: int) -> None:
        owner, epoch = self.owners[partition]
        target = (owner + 1) % len(self._lines)
        self._order(owner, do="move", partition=partition, slot=target)
        end = time.monotonic() + LATE_S
        while True:
            try:
                told = self._told.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                self.failed.append(f"partition {partition}: nothing was told of its move under epoch {epoch}")
                self._ending.set()
                return
            if (told["partition"], told["epoch"]) == (partition, epoch):
                break
        if told["event"] == "move_failed":
            if told["why"] != "it is not served yet":
                self.failed.append(f"partition {partition}: {told['why']}")
            if not told["sealed"]:
                return
            target = owner
        self.moved += 1
        self.version += 1
        self.owners[partition] = (target, epoch + 1)
        for node in range(len(self._lines)):
            self._order(node, do="table", version=self.version, partitions=self.owners)
