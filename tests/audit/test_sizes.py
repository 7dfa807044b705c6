"""The audit's small problems hold what the recipe is: scaled as components declare, and refused where that fails."""

from __future__ import annotations

from typing import Any

import pytest
from support.faults.sizes import (
    BatchBudget,
    EarlyAdvantage,
    EarlyRandom,
    EarlyReinforce,
    MostOf,
    WeightedBudget,
    WideCache,
)
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.audit import Problem, audit_algorithm, audit_recipe, exact_estimator
from dlmrl_kit.audit.sizes import Scaled, first_left_out, scaled_texts, shrunk, unscaled
from dlmrl_kit.core.component import Sizes, rebuilt, settings
from dlmrl_kit.core.keys import STEP_ENTROPY, STEP_VALID
from dlmrl_kit.corrections.uncorrected import Uncorrected
from dlmrl_kit.likelihoods.step_merge import StepMerge
from dlmrl_kit.recipe.load import load_recipe, recipe_names
from dlmrl_kit.samplers.dynamic_low_confidence import DynamicLowConfidence
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.mask import MaskSampler
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.samplers.tempered import TemperedEntropyOrder, TemperedLowConfidence
from dlmrl_kit.selectors.all_steps import AllSteps
from dlmrl_kit.selectors.base import Selector, descending_rank, valid_entropy
from dlmrl_kit.selectors.equal_segments import EqualSegments
from dlmrl_kit.selectors.k_steps import FirstK
from dlmrl_kit.selectors.top_k import EntropyTopK
from dlmrl_kit.step_schedules.base import StepSchedule
from dlmrl_kit.step_schedules.even_steps import EvenSteps
from dlmrl_kit.step_schedules.linear_time_steps import LinearTimeSteps

PROBLEMS = [Problem(vocab=2, length=3, policy="network", seed=1), Problem(vocab=2, length=4, block_length=2, seed=2)]


class Budget(Selector):
    """``EntropyTopK`` as a plugin may write it: the setting has another name, and nothing says how it is scaled."""

    def __init__(self, budget: int = 8) -> None:
        super().__init__(STEP_ENTROPY)
        self.budget = budget

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """The ``budget`` steps of largest entropy."""
        valid = tensordict[STEP_VALID]
        return (descending_rank(valid_entropy(tensordict), valid) < self.budget) & valid


class ScaledBudget(Budget):
    """The same with a declaration."""

    def resized(self, before: Sizes, after: Sizes) -> ScaledBudget:
        """The same share of the steps."""
        return rebuilt(self, budget=before.scale_steps(self.budget, after))


class KeepsAll(Budget):
    """The same with a declaration that keeps everything."""

    def resized(self, before: Sizes, after: Sizes) -> KeepsAll:
        """As many as there are."""
        return rebuilt(self, budget=after.steps)


class Everything(Selector):
    """Keeps every step of any trajectory, like ``AllSteps``."""

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """All of them."""
        return tensordict[STEP_VALID].clone()


def audited(selector: Selector, **swaps: Any) -> Any:
    estimator = exact_estimator(LeftToRight(16), {"selector": selector, **swaps})
    return audit_algorithm(estimator, problems=PROBLEMS, attribution=False)


def test_segments_are_scaled_to_the_small_problem() -> None:
    """W1: with n = 4 of 16 segments kept as they are, the audit would replay 3 steps exactly and call it unbiased."""
    coarse = audited(EqualSegments(4), likelihood=StepMerge())
    fine = audited(EqualSegments(16), likelihood=StepMerge())
    assert coarse.verdict.startswith("biased")
    assert coarse.relative_bias > 0.1
    assert fine.relative_bias < 1e-8  # 16 segments of 16 steps are the steps


def test_the_recipe_with_segments_says_what_was_scaled() -> None:
    report = audit_recipe("d2_stepmerge", problems=PROBLEMS, attribution=False, batches=20)
    assert "EqualSegments.n = 4 becomes 2" in report.notes


def test_a_selector_that_keeps_all_of_few_steps_is_not_called_unbiased() -> None:
    """W1 in a plugin: ``k`` under another name. It keeps everything on the small problems, and the verdict says so."""
    report = audited(Budget())
    kept = "Budget is kept as it is (budget = 8) so that it keeps all 4 of 4 steps"
    assert report.verdict.startswith(f"no verdict: {kept}")
    assert "while of 9 steps it does not" in report.verdict
    assert not report.unbiased
    assert report.to_json()["unlike"]


def test_with_a_declaration_it_is_found_biased() -> None:
    report, known = audited(ScaledBudget()), audited(EntropyTopK(8))
    assert report.verdict.startswith("biased")
    assert report.relative_bias == known.relative_bias


def test_a_declaration_that_keeps_everything_gives_no_verdict() -> None:
    report = audited(KeepsAll())
    assert report.verdict.startswith("no verdict: KeepsAll is scaled (budget = 8) so that it keeps all 4 of 4 steps")


@pytest.mark.thorough
@pytest.mark.parametrize("selector", [AllSteps(), Everything(), EqualSegments(16)])
def test_what_keeps_every_step_of_its_own_trajectories_is_judged(selector: Selector) -> None:
    assert audited(selector).verdict == "unbiased"


@pytest.mark.thorough
@pytest.mark.parametrize("selector", [ScaledBudget(8), EntropyTopK(8)])
def test_eight_of_eight_steps_are_all_steps(selector: Selector) -> None:
    """Of nine steps it would leave one out, but the recipe's trajectories never have nine."""
    estimator = exact_estimator(LeftToRight(8), {"selector": selector})
    assert audit_algorithm(estimator, problems=PROBLEMS, attribution=False).verdict == "unbiased"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("swaps", "setting"),
    [
        ({"selector": WeightedBudget(8)}, None),  # kept whole up to a factor
        ({"selector": BatchBudget(16)}, None),
        ({"selector": MostOf()}, None),
        ({"selector": EarlyRandom()}, "EarlyRandom.horizon = 16"),
        ({"loss": EarlyReinforce()}, "EarlyReinforce.horizon = 8"),
        ({"advantage": EarlyAdvantage()}, "EarlyAdvantage.most = 8"),
    ],
    ids=lambda value: type(next(iter(value.values()))).__name__ if isinstance(value, dict) else "",
)
def test_what_limits_long_trajectories_only_is_not_called_unbiased(swaps: Any, setting: str | None) -> None:
    """W1 for every kind of component, whatever it limits and however it says so."""
    report = audit_algorithm(exact_estimator(LeftToRight(64), swaps), problems=PROBLEMS, attribution=False)
    assert report.verdict.startswith("no verdict: ")
    assert setting is None or f"{setting} is kept as it is" in report.verdict
    assert not report.unbiased


@pytest.mark.thorough
def test_caches_are_asked_too() -> None:
    estimator = exact_estimator(LowConfidence(64, block_length=8), {"cache": WideCache(), "correction": Uncorrected()})
    assert unscaled(estimator) == ["WideCache.margin = 8"]
    report = audit_algorithm(estimator, problems=[Problem(vocab=2, length=4, block_length=2)], attribution=False)
    assert "WideCache.margin = 8 is kept as it is" in " ".join([report.verdict, *report.notes])


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_whole_number_of_the_kit_is_scaled_or_declared(recipe: str) -> None:
    loaded = load_recipe(recipe)
    if loaded.root == "Algorithm":
        assert unscaled(loaded.build_algorithm()) == []


@pytest.mark.thorough
@pytest.mark.parametrize("k", [1, 2, 5, 13])
def test_the_first_number_of_steps_of_which_some_are_left_out(k: int) -> None:
    for selector in (FirstK(k), Budget(k)):
        assert first_left_out(exact_estimator(EntropyOrder(64), {"selector": selector})) == k + 1
    assert first_left_out(exact_estimator(EntropyOrder(64), {"selector": Everything()}), most=32) is None


def test_top_k_of_the_vocabulary_is_scaled() -> None:
    """50 tokens of a vocabulary of 3 would be no filter: a log-probability without it would be called exact."""
    estimator = exact_estimator(RandomOrder(8, top_k=50))
    small, scaled = shrunk(estimator, Problem(vocab=3, length=2))
    assert small.sampler.top_k == 2
    assert scaled_texts(scaled) == ["RandomOrder.top_k = 50 becomes 2"]
    assert shrunk(exact_estimator(RandomOrder(8)), Problem(vocab=3, length=2))[0].sampler.top_k == 0


def test_scaling_leaves_the_recipe_alone() -> None:
    estimator = exact_estimator(EntropyOrder(16), {"selector": EntropyTopK(8)})
    before = [settings(component) for component in estimator.components]
    shrunk(estimator, PROBLEMS[0])
    assert [settings(component) for component in estimator.components] == before


def test_what_was_scaled_on_several_problems_is_one_line() -> None:
    found = [Scaled("A", "k", 8, 16, 2, 3), Scaled("A", "k", 8, 16, 1, 2), Scaled("A", "k", 8, 16, 2, 3)]
    assert scaled_texts(found) == ["A.k = 8 for 16 steps becomes 2 for 3, 1 for 2"]
    assert scaled_texts([Scaled("B", "name", "x", 4, "y", 2)]) == ["B.name = 'x' becomes 'y'"]


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        (TemperedLowConfidence(32, LinearTimeSteps(32), temperature=0.8), [1, 2]),
        (LowConfidence(32, EvenSteps(5), 16), [1, 1, 1]),
        (TemperedEntropyOrder(32, EvenSteps(7)), [1, 1, 1]),
    ],
    ids=["linear time", "even", "even, many"],
)
def test_step_schedules_are_scaled_with_the_block(sampler: MaskSampler, steps: list[int]) -> None:
    estimator = exact_estimator(sampler, {})
    assert unscaled(estimator) == []
    small, changes = shrunk(estimator, PROBLEMS[0])
    found = small.sampler.tokens_per_step
    assert isinstance(sampler.tokens_per_step, StepSchedule)
    assert isinstance(found, type(sampler.tokens_per_step))
    assert [number for number in found.numbers(3) if number] == steps
    assert changes == []
    two = shrunk(estimator, Problem(vocab=2, length=4, tokens_per_step=2))[0].sampler
    assert two.max_steps == 2


@pytest.mark.thorough
@pytest.mark.parametrize(
    "sampler",
    [
        TemperedLowConfidence(32, LinearTimeSteps(32), temperature=0.8),
        LowConfidence(32, EvenSteps(5), 16),
        DynamicLowConfidence(32, 1, 4),
        TemperedEntropyOrder(32, LinearTimeSteps(20), temperature=1.3),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_the_audit_finds_published_generators_unbiased(sampler: MaskSampler) -> None:
    problems = [PROBLEMS[0], Problem(vocab=2, length=4, tokens_per_step=2, eos=True, seed=2)]
    report = audit_algorithm(exact_estimator(sampler, {}), problems=problems, group_size=2, attribution=False)
    assert report.verdict == "unbiased"
