"""A cluster of real policies under simulated faults, by seed (30-cluster section 9): no acknowledgement is ever untrue.

`make simulate SEEDS=1000` runs more of them, `--each` takes every rule out in turn.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from policy.sim.cluster import Violation, World
from policy.sim.rules import RULES

# for each rule a seed whose run goes wrong without it
KNOWN_BAD = {
    "majority": 1,
    "bind": 534,
    "votes": 255,
    "barrier": 2,
    "frozen": 1,
    "fence": 10,
    "twice": 1,
    "cover": 1,
}


@pytest.mark.parametrize("first", range(1, 61, 15))
def test_with_all_rules_every_acknowledgement_is_true(first: int) -> None:
    acknowledged = 0
    for seed in range(first, first + 15):
        world = World(seed)
        world.run(60)
        acknowledged += world.acks
    assert acknowledged > 1_000


@pytest.mark.parametrize("rule", RULES)
def test_the_loss_of_each_rule_is_found(rule: str) -> None:
    with pytest.raises(Violation):
        World(KNOWN_BAD[rule], frozenset({rule})).run(60)
    World(KNOWN_BAD[rule]).run(60)


@pytest.mark.timeout(300)
def test_translated_to_c_it_finds_the_same() -> None:
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("the headers of Python are not here: apt install python3-dev")
    for rule in ("bind", "fence", "votes"):
        with pytest.raises(Violation) as found:
            World(KNOWN_BAD[rule], frozenset({rule})).run(60)
        words = ["--first", str(KNOWN_BAD[rule]), "--seeds", "1", "--jobs", "1", "--without", rule]
        told = subprocess.run(
            [sys.executable, "-m", "policy.sim.compiled", *words],
            cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (told.returncode, str(found.value) in told.stdout) == (0, True), (told, found.value)
