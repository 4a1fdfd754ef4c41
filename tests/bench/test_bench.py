"""The benchmarks run and find nothing lost: their short versions, whose figures mean nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("durable", "/ 0 / 0 in"),
        ("pause", "p99 without / during a checkpoint"),
        ("run", "a message of a shared group, by members"),
    ],
)
def test_the_short_version_runs(name: str, rows: str) -> None:
    """Every message arrives in order, those on disk after a restart too, and a table comes out."""
    done = subprocess.run(
        [sys.executable, BENCH / f"{name}.py", "--smoke"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert rows in done.stdout
