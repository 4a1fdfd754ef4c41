"""What a power cut leaves of a directory: the journal of `layer.c`, replayed up to a cut.

Contract: pure but for reading the journal and writing the directory. What a successful sync covered is there. Of what
it did not cover, each write is kept, lost or torn at sectors of 512 bytes by itself, and each change of names (one
rename is one change) is kept or lost by itself, or a beginning of them is kept. After a sync that failed, the same has
befallen what it covered, for good: later syncs say nothing of it. A file's own sync says nothing of its name.
"""

from __future__ import annotations

import random
import struct
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath

HEAD = struct.Struct("<4s4siiQII")
CREATED, TRUNCATED = 1, 2
SECTOR = 512


class NotUnderstood(Exception):
    """The journal holds something that this model does not know: it would be wrong to go on."""


@dataclass(slots=True)
class Note:
    """One operation; `end` is the length of the journal with it."""

    op: str
    fd: int
    error: int
    at: int
    name: str
    data: bytes
    end: int


def notes(raw: bytes) -> list[Note]:
    """Every whole note of a journal."""
    found, at = [], 0
    while at + HEAD.size <= len(raw):
        magic, op, fd, error, place, name_len, data_len = HEAD.unpack_from(raw, at)
        if magic != b"RLAY":
            raise NotUnderstood(f"no note at {at}")
        body = at + HEAD.size
        at = body + name_len + data_len
        if at > len(raw):
            break
        name, data = raw[body : body + name_len].decode(), raw[body + name_len : at]
        found.append(Note(op[:1].decode(), fd, error, place, name, data, at))
    return found


@dataclass(eq=False)
class Inode:
    """A file or a folder: what the disk has for certain, what the operating system shows, and what lies between."""

    folder: bool = False
    safe: bytearray = field(default_factory=bytearray)
    now: bytearray = field(default_factory=bytearray)
    unsynced: list[tuple[int, bytes | None]] = field(default_factory=list)
    names: dict[str, Inode] = field(default_factory=dict)
    safe_names: dict[str, Inode] = field(default_factory=dict)
    changes: list[list[tuple[str, Inode | None]]] = field(default_factory=list)

    def change(self, at: int, data: bytes | None) -> None:
        """A write, or (None) a cut to this length."""
        apply(self.now, at, data)
        self.unsynced.append((at, data))

    def rename(self, change: list[tuple[str, Inode | None]]) -> None:
        rename(self.names, change)
        self.changes.append(change)

    def sync(self) -> None:
        for at, data in self.unsynced:
            apply(self.safe, at, data)
        for change in self.changes:
            rename(self.safe_names, change)
        self.unsynced, self.changes = [], []


def apply(into: bytearray, at: int, data: bytes | None) -> None:
    end = at + len(data or b"")
    if data is None:
        del into[at:]
    if len(into) < end:
        into.extend(bytes(end - len(into)))
    if data is not None:
        into[at:end] = data


def rename(names: dict[str, Inode], change: list[tuple[str, Inode | None]]) -> None:
    for name, inode in change:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


class Disk:
    """A directory below which things happen. `""` is the directory itself, a name in its parent."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.parent = Inode(folder=True)
        self.open: dict[int, Inode] = {}
        self.starts = 0
        self.seen: Counter[str] = Counter()

    # ---- what happened

    def load(self, path: Path) -> None:
        """Begin with what is in a directory; all of it is safe."""
        self.parent.names[""] = self._loaded(path)
        self.parent.safe_names = dict(self.parent.names)

    def _loaded(self, path: Path) -> Inode:
        if not path.is_dir():
            raw = path.read_bytes()
            return Inode(False, bytearray(raw), bytearray(raw))
        names = {p.name: self._loaded(p) for p in path.iterdir()}
        return Inode(True, names=names, safe_names=dict(names))

    def play(self, note: Note) -> None:
        """One operation."""
        if note.op == "B":
            self.open.clear()
            self.starts += 1
        elif note.op == "O":
            self._open(note)
        elif note.op == "C":
            self.open.pop(note.fd, None)
        elif note.op == "W":
            self.open[note.fd].change(note.at, note.data)
        elif note.op == "T":
            self.open[note.fd].change(note.at, None)
        elif note.op == "S":
            self._sync(self.open[note.fd], note.error)
        elif note.op == "M":
            self._name(note.name, Inode(folder=True))
        elif note.op == "U":
            self._name(note.name, None)
        elif note.op == "R":
            self._rename(note.name, note.data.decode())
        else:
            raise NotUnderstood(f"{note.op} {note.name} at {note.end}")
        self.seen[note.op + ("!" if note.error else "")] += 1

    def _folder(self, name: str) -> tuple[Inode, str]:
        """The folder that holds this name, and the last part of it."""
        if name == "":
            return self.parent, ""
        path, at = PurePosixPath(name), self.parent.names[""]
        for part in path.parts[:-1]:
            at = at.names[part]
        return at, path.name

    def _name(self, name: str, inode: Inode | None) -> None:
        folder, last = self._folder(name)
        folder.rename([(last, inode)])

    def _open(self, note: Note) -> None:
        if note.name == "..":
            self.open[note.fd] = self.parent
            return
        folder, last = self._folder(note.name)
        if note.at & CREATED:
            folder.rename([(last, Inode())])
        self.open[note.fd] = folder.names[last]
        if note.at & TRUNCATED:
            self.open[note.fd].change(0, None)

    def _rename(self, old: str, new: str) -> None:
        (folder, a), (other, b) = self._folder(old), self._folder(new)
        if folder is not other or folder.names[a].folder:
            raise NotUnderstood(f"rename of {old} to {new}")
        folder.rename([(a, None), (b, folder.names[a])])

    def _sync(self, inode: Inode, error: int) -> None:
        if not error:
            inode.sync()
        elif not inode.folder:
            self._settle(inode)

    # ---- the cut

    def unsafe(self) -> Counter[str]:
        """How much a cut now may take away: writes, and changes of names; the pid in `lock` need not be kept."""
        found: Counter[str] = Counter()

        def walk(inode: Inode) -> None:
            found["writes"] += len(inode.unsynced)
            found["names"] += len(inode.changes)
            for name, child in inode.names.items():
                if name != "lock":
                    walk(child)

        walk(self.parent)
        return +found

    def _settle(self, inode: Inode) -> None:
        for at, data in inode.unsynced:
            fate = self.rng.choice(("kept", "lost", "beginning", "end", "sectors")) if data else "either"
            if fate == "either":
                fate = self.rng.choice(("kept", "lost"))
            for low, high in self._pieces(at, len(data or b""), fate):
                apply(inode.safe, at + low, None if data is None else data[low:high])
        inode.unsynced = []

    def _pieces(self, at: int, size: int, fate: str) -> list[tuple[int, int]]:
        """Which parts of a write have reached the disk; only sectors are whole or not."""
        if fate in ("kept", "lost"):
            return [(0, size)] if fate == "kept" else []
        edges = [0, *range(SECTOR - at % SECTOR, size, SECTOR), size]
        torn = self.rng.choice(edges)
        if fate == "beginning":
            return [(0, torn)]
        if fate == "end":
            return [(torn, size)]
        return [pair for pair in pairwise(edges) if self.rng.random() < 0.5]

    def cut(self) -> None:
        """The power goes. What is left is what the operating system shows from now on."""
        self._cut(self.parent)
        self.open.clear()

    def _cut(self, inode: Inode) -> None:
        self._settle(inode)
        inode.now = bytearray(inode.safe)
        most = self.rng.randint(0, len(inode.changes)) if self.rng.random() < 0.5 else None
        for i, change in enumerate(inode.changes):
            if i < most if most is not None else self.rng.random() < 0.5:
                rename(inode.safe_names, change)
        inode.changes = []
        inode.names = dict(inode.safe_names)
        for child in dict.fromkeys(inode.names.values()):
            self._cut(child)

    # ---- the directory

    def files(self) -> dict[str, bytes | None]:
        """Every name below the directory with what the operating system shows; None for folders."""
        found: dict[str, bytes | None] = {}

        def walk(inode: Inode, name: str) -> None:
            found[name] = None if inode.folder else bytes(inode.now)
            for part, child in inode.names.items():
                walk(child, f"{name}/{part}" if name else part)

        if "" in self.parent.names:
            walk(self.parent.names[""], "")
        return found

    def write(self, path: Path) -> None:
        """Make the directory anew at this place."""
        for name, raw in self.files().items():
            if raw is None:
                (path / name).mkdir(mode=0o700)
            else:
                (path / name).write_bytes(raw)

    def differs(self, path: Path) -> list[str]:
        """Names whose file is not what the journal says: the layer has missed something."""
        real = {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in path.rglob("*")}
        mine = self.files()
        mine.pop("", None)
        return sorted(name for name in real.keys() | mine.keys() if real.get(name, b"?") != mine.get(name, b"!"))


def ends(raw: bytes) -> list[int]:
    """Every place at which the journal may be cut."""
    return [0, *(n.end for n in notes(raw))]


def between(places: list[int], low: int, high: int) -> list[int]:
    """The places from the last one at or before `low` to the last one at or before `high`."""
    return places[bisect_right(places, low) - 1 : bisect_right(places, high)]
