"""Claims about weights and gradients are held to what is registered."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from support.conformance import failures, few_batches
from support.faults.selectors import MissesAnOutcome
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.group_z_score import GroupZScore
from dlmrl_kit.advantages.one_step_denoise import OneStepDenoise
from dlmrl_kit.core.keys import SEED, SELECTED_LOG_PROB, STEP_VALID
from dlmrl_kit.core.seeding import uniforms
from dlmrl_kit.likelihoods.steps import Replay, StepLogProb
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.schedules.curves import Linear
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.selectors.random_steps import RandomSteps

__all__ = ["few_batches"]


def first_two(unbiased_weight: bool) -> type[Selector]:
    class Chosen(Selector):
        """One of the first two steps at random."""

        def __init__(self) -> None:
            super().__init__(SEED)

        def kept(self, tensordict: TensorDictBase) -> Tensor:
            valid = tensordict[STEP_VALID]
            heads = uniforms(tensordict[SEED], 1, purpose="heads") < 0.5
            return valid & torch.where(heads, torch.arange(valid.shape[1]) < 1, torch.arange(valid.shape[1]) == 1)

        def weights(self, kept: Tensor, valid: Tensor) -> Tensor:
            return torch.full_like(kept[:, :1], 2.0 if unbiased_weight else 1.0, dtype=torch.float64)

    return Chosen


@pytest.mark.thorough
@pytest.mark.usefixtures("few_batches")
def test_claimed_weights_are_held_to_the_claim(registered: Any) -> None:
    wrong = failures(registered("selector", first_two(False), unbiased=True)())["check_claim"]
    assert re.search("claims to be unbiased; the audit finds: biased .Monte Carlo.*register unbiased=False", wrong)


def test_weights_without_a_claim_are_free(registered: Any) -> None:
    assert "check_claim" not in failures(registered("selector", first_two(False), unbiased=False)())


class Standardised(GroupZScore):
    """Claims too much. Arguments as ``GroupZScore``."""


class WrongSign(Reinforce):
    """Climbs down."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        total, diagnostics = super().total(tensordict)
        return -total, diagnostics


class Doubled(StepLogProb):
    """Twice the gradient, the right value."""

    def estimate(self, steps: Replay, policy: Any, sampler: Any, keys: Any = ()) -> dict[Any, Tensor]:
        found = super().estimate(steps, policy, sampler, keys)
        return {**found, SELECTED_LOG_PROB: 2 * found[SELECTED_LOG_PROB] - found[SELECTED_LOG_PROB].detach()}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "cls", "words"),
    [
        ("advantage", Standardised, "claims to be unbiased; the audit finds: biased"),
        ("loss", WrongSign, "claims the scale 1 = 1; the audit finds -1"),
        ("likelihood", Doubled, "claims the scale 1 = 1; the audit finds 2"),
    ],
)
def test_claims_are_held_to_the_audit(kind: str, cls: Any, words: str, registered: Any) -> None:
    found = failures(registered(kind, cls, unbiased=True)())
    assert set(found) == {"check_claim"}
    assert re.search(f"{words}.*or register unbiased=False", found["check_claim"])


@pytest.mark.thorough
@pytest.mark.parametrize(("scale", "right"), [("2", True), ("1 + 1", True), ("3", False), ("twice", True)])
def test_a_scale_is_held_to_what_is_registered(scale: str, right: bool, registered: Any) -> None:
    found = failures(registered("likelihood", Doubled, unbiased=True, scale=scale)())
    assert set(found) == (set() if right else {"check_claim"})


@pytest.mark.thorough
def test_a_conditional_claim_is_that_of_the_defaults(registered: Any) -> None:
    assert not failures(OneStepDenoise(Linear(1.0, 0.0), normalise=False))
    assert "check_claim" in failures(registered("advantage", Unnormalised, unbiased=True)())


class Unnormalised(OneStepDenoise):
    """Not normalised, with another lambda in each step."""

    def __init__(self) -> None:
        super().__init__(Linear(1.0, 0.0), normalise=False)


@pytest.mark.thorough
def test_listed_outcomes_must_be_all(registered: Any) -> None:
    found = failures(registered("selector", MissesAnOutcome, unbiased=True)(1), "check_claim")  # which takes seconds
    assert set(found) == {"check_outcomes"}
    assert "do not sum to 1" in found["check_outcomes"]


class ListsOtherWeights(RandomSteps):
    """Draws with weight 1, and lists what would be right. Arguments as ``RandomSteps``."""

    def choose(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        step, weight = super().choose(tensordict)
        return step, (weight > 0).double()


@pytest.mark.thorough
def test_listed_outcomes_are_held_to_the_draws(registered: Any) -> None:
    found = failures(registered("selector", ListsOtherWeights, unbiased=True)(1), "check_claim")
    assert re.search("mean weight .*in which its expected weight.*exactly what choose draws", found["check_outcomes"])


@pytest.mark.thorough
@pytest.mark.usefixtures("few_batches")
def test_outcomes_need_not_be_listed(registered: Any) -> None:
    class NotListed(RandomSteps):
        """Random steps. Arguments as ``RandomSteps``."""

        def outcomes(self, tensordict: TensorDictBase) -> list[tuple[Tensor, Tensor, Tensor]]:
            raise NotImplementedError

    assert not {"check_outcomes", "check_claim"} & set(failures(registered("selector", NotListed, unbiased=True)(2)))
