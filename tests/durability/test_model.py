"""The rules of what is safe when hold in every reachable state, and each of them is needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from durability import model

DOCUMENT = Path(__file__).parents[2] / "docs" / "formats" / "durability.md"
STATES_MIN = 900
PAIRS = [(rule, name) for rule in model.RULES for name in model.bites(rule)]


@pytest.mark.parametrize("name", model.CONFIGS)
def test_all_rules(name: str) -> None:
    states, complete, wrong, steps = model.run(name, small=True)
    assert not wrong, f"{wrong}: {steps}"
    assert complete
    assert states >= STATES_MIN


@pytest.mark.parametrize(("rule", "name"), PAIRS)
def test_without(rule: str, name: str) -> None:
    """A model that finds nothing when a rule is gone does not see the rule."""
    _, _, wrong, steps = model.run(name, off=[rule])
    assert wrong
    assert steps


def test_every_rule_has_a_place() -> None:
    assert all(model.bites(rule) for rule in model.RULES)


def test_the_document_names_rules_of_the_model() -> None:
    found = re.findall(r"^- `([a-z-]+)`: ", DOCUMENT.read_text().split("## Rules that the model found")[1], re.M)
    assert found
    assert set(found) <= set(model.RULES)
