"""An algorithm is data, its plan says what is asked of whom: components may be shared, and used by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from support.seeds import seeded

from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.advantages.one_step_denoise import OneStepDenoise
from dlmrl_kit.algorithm.algorithm import GradientEstimator
from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.audit import Problem
from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.core.component import settings
from dlmrl_kit.core.keys import COMPLETION_IDS, STEP_GREEDY_IDS, STEP_LOG_PROB
from dlmrl_kit.corrections.truncated_importance import TruncatedImportance
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.selectors.all_steps import AllSteps


def test_two_algorithms_with_one_sampler_each_get_their_keys() -> None:
    """W3: building the second one used to take back what the first one had asked the sampler for."""
    sampler = EntropyOrder(3)
    first = GradientEstimator(sampler, AllSteps(), OneStepDenoise(), StepLogProb(), Reinforce())
    second = GradientEstimator(sampler, AllSteps(), LeaveOneOut(), StepLogProb(), Reinforce())
    before = settings(sampler)
    plans = [make_plan(first), make_plan(second)]
    assert STEP_GREEDY_IDS in plans[0].sampler.keys
    assert STEP_GREEDY_IDS not in plans[1].sampler.keys
    assert make_plan(first).sampler == plans[0].sampler
    assert settings(sampler) == before


def test_a_cache_of_one_algorithm_is_not_another_ones() -> None:
    """W3: a sampler shared with a cached algorithm used to sample from the cached distribution everywhere."""
    problem = Problem(vocab=2, length=4, block_length=2, policy="deep network")
    sampler, prompts = EntropyOrder(4, block_length=2), problem.batch(64)

    def sampled(shared: EntropyOrder, **given: object) -> tuple[torch.Tensor, torch.Tensor]:
        found = shared(seeded(prompts), policy=problem.denoiser, **given)
        return found[COMPLETION_IDS], found[STEP_LOG_PROB]

    exact = sampled(sampler)
    cached = GradientEstimator(
        sampler,
        AllSteps(),
        LeaveOneOut(),
        StepLogProb(),
        Reinforce(),
        cache=DualCache(),
        correction=TruncatedImportance(),
    )
    make_plan(cached)
    with_cache = sampled(sampler, cache=cached.cache)
    again = sampled(sampler)
    assert not torch.equal(with_cache[1], exact[1])  # a deep network: the cache is another distribution
    assert all(torch.equal(a, b) for a, b in zip(exact, again, strict=True))


@pytest.mark.parametrize("recipe", ["tracerl_value", "mdpo", "egspo_sa"])
def test_every_stage_says_what_it_is_there_for(recipe: str) -> None:
    """W4: ``OldValue`` and ``SelectedAdvantage`` used to be labelled as rewards."""
    slots = {stage.name: stage.slot for stage in make_plan(load_recipe(recipe).build_algorithm()).rollout}
    kinds = {"OldValue": "value", "SelectedAdvantage": "advantage", "FinalReward": "reward", "SelectedReward": "reward"}
    assert {name: kinds[name] for name in slots if name in kinds} == {n: s for n, s in slots.items() if n in kinds}
    assert "OldValue" in slots or recipe != "tracerl_value"
    assert "SelectedAdvantage" in slots or recipe != "mdpo"


def test_a_plan_changes_none_of_the_algorithms_components() -> None:
    algorithm = load_recipe("egspo_sa").build_algorithm()
    before = [copy.deepcopy(vars(component)) for component in algorithm.components]
    make_plan(algorithm)
    after = [vars(component) for component in algorithm.components]
    assert [sorted(state) for state in before] == [sorted(state) for state in after]
