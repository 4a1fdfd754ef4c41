"""`roost bench` as a process of its own: what it prints, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

ROOST = [sys.executable, "-m", "roostmq", "bench"]
TOGETHER = 6
TIMEOUT_S = 60
"""A load that hangs fails its test."""


@dataclass
class Run:
    code: int
    out: str
    error: str

    @property
    def report(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.out)
        return told

    @property
    def faults(self) -> dict[str, int]:
        """Those that are not 0."""
        return {name: count for name, count in self.report["faults"].items() if count}

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        return {step["name"]: step for step in self.report["steps"]}

    def right(self) -> Run:
        """It ran, and nothing was wrong."""
        assert (self.code, self.error) == (0, ""), (self.code, self.error, self.out)
        assert self.report["ok"], self.out
        assert self.faults == {}
        return self

    def faulty(self) -> Run:
        """It ran, and something was wrong."""
        assert (self.code, self.error) == (3, ""), (self.code, self.error, self.out)
        assert not self.report["ok"], self.out
        assert self.faults != {}
        return self

    def impossible(self) -> str:
        """It could not run, and said so in one line."""
        assert (self.code, self.out) == (1, ""), (self.code, self.error, self.out)
        assert self.error.startswith("roost: "), self.error
        assert self.error.count("\n") == 1, self.error
        return self.error


def together(check: Callable[..., None], cases: list[tuple[Any, ...]]) -> None:
    """Check cases that wait more than they work, a few at a time; the first that fails is raised, and says which it is."""
    with ThreadPoolExecutor(TOGETHER) as pool:
        begun = [(case, pool.submit(check, *case)) for case in cases]
    for case, future in begun:
        error = future.exception()
        if error is not None:
            error.add_note(f"the case was {case}")
            raise error


def bench(work: str, *words: str | int | float, json_too: bool = True) -> Run:
    command = [*ROOST, work, *map(str, words), *(["--json"] if json_too else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ)
    assert "Traceback" not in done.stderr, done.stderr
    assert "panicked" not in done.stderr, done.stderr
    return Run(done.returncode, done.stdout, done.stderr)
