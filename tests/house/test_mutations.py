"""Guards that `make mutations` takes out stand in the code: it runs by hand, and would find out late."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import log_mutations
from durability import mutations

ROOT = Path(__file__).parents[2]
PLACES = [("engine", m.file, m.old, m.name) for m in mutations.MUTATIONS]
PLACES += [("engine-nats", m.file, m.old, m.name) for m in log_mutations.TAKEN]


@pytest.mark.parametrize(("crate", "file", "old"), [p[:3] for p in PLACES], ids=[p[3] for p in PLACES])
def test_each_guard_is_there_once(crate: str, file: str, old: str) -> None:
    assert (ROOT / crate / "src" / file).read_text().count(old) == 1
