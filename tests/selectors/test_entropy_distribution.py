"""Entropies of the behaviour distribution and of the model: a case in which they rank two steps the other way round."""

from __future__ import annotations

import math

import pytest
import torch
from support.policies import TabularPolicy
from support.rollouts import no_prompt
from support.seeds import seeded
from tensordict import TensorDict

from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.core.errors import ParameterError
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.selectors.base import Distribution, Selector
from dlmrl_kit.selectors.entropy_coverage import EntropyCoverage
from dlmrl_kit.selectors.entropy_importance import EntropyImportance
from dlmrl_kit.selectors.top_k import EntropyTopK

TEMPERATURE = 0.5
LOGITS = [[0.0, 0.0, -30.0, -30.0, -30.0, -30.0], [2.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
"""Of the first position, two equal tokens; of the second, one that stands out more where it is colder."""
DISTRIBUTIONS: list[Distribution] = ["behaviour", "model"]


def entropy(logits: list[float], temperature: float) -> float:
    weights = [math.exp(value / temperature) for value in logits]
    return -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)


def trajectory() -> TensorDict:
    """Two steps, left to right, one position each, of a policy with these logits in every state."""
    policy = TabularPolicy(6, 2)
    with torch.no_grad():
        policy.table[..., :6] = torch.tensor(LOGITS, dtype=torch.float64)
    sampler = LeftToRight(2, temperature=TEMPERATURE)
    return sampler(seeded(no_prompt(3)), policy=policy, keys=[("step", "model_entropy")])  # type: ignore[return-value]


def test_both_entropies_are_recorded() -> None:
    found = trajectory()
    for name, temperature in (("entropy", TEMPERATURE), ("model_entropy", 1.0)):
        wanted = torch.tensor([entropy(logits, temperature) for logits in LOGITS], dtype=torch.float64)
        torch.testing.assert_close(found["step", name], wanted.expand(3, 2), rtol=1e-12, atol=0)
        assert (wanted[0] > wanted[1]) == (name == "entropy")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_selectors_follow_the_distribution_that_they_are_given(distribution: Distribution) -> None:
    best = DISTRIBUTIONS.index(distribution)
    selectors: list[Selector] = [
        EntropyTopK(1, distribution),
        EntropyCoverage(0.5, distribution=distribution),
        EntropyCoverage(1.0, 1, distribution),
    ]
    for selector in selectors:
        assert selector(trajectory())["selected", "step"].tolist() == [[best]] * 3
    importance = EntropyImportance(2, 0.1, distribution)
    values = [entropy(logits, 1.0 if distribution == "model" else TEMPERATURE) for logits in LOGITS]
    share = torch.tensor([0.9 * value / sum(values) + 0.05 for value in values], dtype=torch.float64)
    torch.testing.assert_close(importance.probabilities(trajectory()), share.expand(3, 2), rtol=1e-12, atol=0)


@pytest.mark.parametrize("cls", [EntropyTopK, EntropyCoverage, EntropyImportance])
def test_another_distribution_is_refused(cls: type[Selector]) -> None:
    with pytest.raises(ParameterError, match="distribution must be 'behaviour' or 'model'"):
        cls(distribution="policy")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("recipe", "selector"),
    [("egspo_sa", "EntropyTopK"), ("ada_egspo", "EntropyCoverage"), ("agrpo", "EntropyImportance")],
)
def test_the_sampler_records_it_only_where_it_is_read(recipe: str, selector: str) -> None:
    for distribution in DISTRIBUTIONS:
        algorithm = load_recipe(recipe, sets=[f"{selector}.distribution = {distribution!r}"]).build()
        asked = make_plan(algorithm).sampler.keys  # type: ignore[arg-type]
        assert (("step", "model_entropy") in asked) == (distribution == "model")
