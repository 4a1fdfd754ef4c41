"""The file layer `layer.c`: compiled once, and what a broker needs to run on it.

Contract: `Layer(folder, data)` names the journal and the control file of one directory; `env` starts a process on it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("layer.c")
AVAILABLE = sys.platform == "linux" and shutil.which("cc") is not None
FLAGS = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


def library() -> Path:
    """The compiled layer; one file for each text of the source, so that nobody loads what another one writes."""
    text = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    made = Path(tempfile.gettempdir()) / f"roost-layer-{os.getuid()}-{text}.so"
    if not made.exists() or made.stat().st_uid != os.getuid():
        with tempfile.TemporaryDirectory() as folder:
            fresh = Path(folder) / "layer.so"
            subprocess.run(["cc", *FLAGS, "-o", str(fresh), str(SOURCE), "-ldl", "-pthread"], check=True)
            place = made.with_name(f"{made.name}.{os.getpid()}")
            shutil.copy(fresh, place)
            place.replace(made)
    return made


class Layer:
    """A directory with its journal and the faults that are played on it."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.journal, self.control = folder / "journal", folder / "control"
        self.data = data.resolve()
        self.play("")

    @property
    def env(self) -> dict[str, str]:
        mine = {
            "LD_PRELOAD": str(library()),
            "ROOST_LAYER_DIR": str(self.data),
            "ROOST_LAYER_JOURNAL": str(self.journal),
            "ROOST_LAYER_CONTROL": str(self.control),
        }
        return {**os.environ, **mine}

    def play(self, words: str) -> None:
        """These faults from now on; none without words."""
        fresh = self.control.with_suffix(".new")
        fresh.write_text(words)
        fresh.replace(self.control)

    def size(self) -> int:
        """Length of the journal now."""
        return self.journal.stat().st_size if self.journal.exists() else 0
