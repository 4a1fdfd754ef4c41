"""The scenarios tell what they told when they were read last; `policy/table_scenario.py` says how they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy.table_scenario import SCENARIOS, play


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("table-*.txt")), ids=lambda p: p.stem)
def test_scenario(path: Path) -> None:
    assert play(path.read_text()) == path.read_text()


def test_there_are_some() -> None:
    assert len(list(SCENARIOS.glob("table-*.txt"))) >= 6
