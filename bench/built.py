"""Where cargo puts the small programs that benchmarks need, and how they are built."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEBUG = os.environ.get("ROOST_BENCH_BUILD") == "debug"
"""Tests take what `cargo test` has built: nothing is built twice, and nobody looks at their figures."""
BUILT = ROOT / "target" / ("debug" if DEBUG else "release")


def build(*what: str) -> list[str]:
    """The command that builds these packages or examples."""
    words = ["cargo", "build", "--quiet"]
    return [*words, "--workspace", "--bins", "--examples"] if DEBUG else [*words, "--release", *what]
