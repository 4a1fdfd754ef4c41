"""The benchmarks run and find nothing lost: their short versions, whose figures mean nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (["durable.py"], "/ 0 / 0 in"),
        (["pause.py"], "p99 without / during a checkpoint"),
        (["run.py", "--only", "traffic"], "| 20,000 messages/s, QoS 1, open loop: p99 |"),
        (["run.py", "--only", "connections"], "| full mTLS handshake with CONNECT |"),
        (["run.py", "--only", "state", "offline"], "| their return: delivered |"),
        (["run.py", "--only", "growth"], "| a message of a shared group, by members, us |"),
        (["run.py", "--only", "shapes"], "| Python's share of the CPU under full traffic |"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_short_version_runs(words: list[str], rows: str) -> None:
    """Every message arrives in order, those on disk after a restart too, and a table comes out."""
    command = [sys.executable, BENCH / words[0], *words[1:], "--smoke"]
    env = os.environ | {"ROOST_BENCH_BUILD": "debug"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert rows in done.stdout
