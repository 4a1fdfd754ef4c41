"""The rules of a link, of a group and its members, of a planned move, of who subscribes in one, and of a cut in two hold in every reachable state; each of them is needed."""

from __future__ import annotations

import pytest

from cluster.explored import Model
from cluster.model_group import MODEL as GROUP
from cluster.model_interest import MODEL as INTEREST
from cluster.model_link import MODEL as LINK
from cluster.model_move import MODEL as MOVE
from cluster.model_split import MODEL as SPLIT

MODELS = {"link": LINK, "group": GROUP, "move": MOVE, "interest": INTEREST, "split": SPLIT}


@pytest.mark.parametrize(("model", "name"), [(m, name) for m in MODELS.values() for name in m.machines])
def test_all_rules(model: Model, name: str) -> None:
    states, complete, wrong, steps = model.run(name)
    assert not wrong, f"{wrong}: {steps}"
    assert complete
    assert states > 300


@pytest.mark.parametrize(("model", "rule"), [(m, rule) for m in MODELS.values() for rule in m.rules])
def test_without(model: Model, rule: str) -> None:
    """A model that finds nothing when a rule is gone does not see the rule."""
    assert model.bitten(rule)
