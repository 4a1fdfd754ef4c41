"""Power cuts under NATS: what a server has written and not synced is gone when it comes back.

A server runs under strace, which notes each write and each sync of the files that hold its messages. When it was killed, every
file is cut back to what was synced. Content that was overwritten in place and not synced cannot be taken back by this: only what was
appended is lost. Contract: Linux, strace on PATH, and the right to trace own processes.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import IO

from roostmq.adapters.nats_server import end_with_parent

CALLS = "trace=pwrite64,write,fsync,fdatasync,ftruncate,unlinkat,renameat"
LINE = re.compile(r"^\d+ +(?P<call>\w+)\(\d+<(?P<path>[^>]+)>(?P<rest>.*)$")
WRITTEN = re.compile(r", (?P<length>\d+), (?P<offset>\d+)(?:\)| <unfinished)")


class Traced:
    """One server under strace."""

    def __init__(self, command: list[str], trace: Path, log: IO[bytes]) -> None:
        found = shutil.which("strace")
        assert found, "power cuts need strace: install it"
        self.trace = trace
        words = [found, "-f", "-y", "-qq", "--seccomp-bpf", "-s", "0", "-e", CALLS, "-o", str(trace)]
        self.process = subprocess.Popen(words + command, stdout=log, stderr=log, preexec_fn=end_with_parent)

    def kill(self) -> None:
        """`kill -9` of the server; strace ends with it."""
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        self.process.wait()

    def cut(self) -> dict[str, int]:
        """Cut all files back to what was synced: bytes lost, by file."""
        lost = {}
        for path, (synced, written) in ends(self.trace.read_text(errors="replace").splitlines()).items():
            if written > synced and path.endswith(".blk") and os.path.exists(path):
                size = os.path.getsize(path)
                if size > synced:
                    os.truncate(path, synced)
                    lost[path] = size - synced
        self.trace.unlink()
        return lost


def ends(lines: list[str]) -> dict[str, tuple[int, int]]:
    """By file: up to where it is synced, and up to where it was written.

    A file that was there before is known only where it is written; a sync covers what was written before it began.
    """
    found: dict[str, tuple[int, int]] = {}
    for line in lines:
        m = LINE.match(line)
        if m is None:
            continue
        path, (synced, written) = m["path"], found.get(m["path"], (0, 0))
        match m["call"]:
            case "pwrite64" if w := WRITTEN.search(m["rest"]):
                end = int(w["offset"]) + int(w["length"])
                first = synced if path in found else int(w["offset"])
                found[path] = (first, max(written, end))
            case "fsync" | "fdatasync":
                found[path] = (max(synced, written), written)
            case "ftruncate":
                found.pop(path, None)
    return found
