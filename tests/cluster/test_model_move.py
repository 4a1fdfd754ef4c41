"""The rules of a planned move hold in every reachable state, and each of them is needed."""

from __future__ import annotations

import pytest

from cluster import model_interest, model_move


@pytest.mark.parametrize("name", model_move.CONFIGS)
def test_all_rules(name: str) -> None:
    states, complete, wrong, steps = model_move.run(name)
    assert not wrong, f"{wrong}: {steps}"
    assert complete
    assert states > 500


@pytest.mark.parametrize("rule", model_move.RULES)
def test_without(rule: str) -> None:
    """A model that finds nothing when a rule is gone does not see the rule."""
    assert model_move.bitten(rule)


@pytest.mark.parametrize("name", model_interest.MACHINES)
def test_who_subscribes_in_a_move_misses_nothing(name: str) -> None:
    states, complete, wrong, steps = model_interest.run(name)
    assert not wrong, f"{wrong}: {steps}"
    assert complete
    assert states > 300


@pytest.mark.parametrize("rule", model_interest.RULES)
def test_each_rule_for_subscribers_is_needed(rule: str) -> None:
    assert model_interest.bitten(rule)
