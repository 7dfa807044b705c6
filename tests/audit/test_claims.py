"""Every claim in the registry is held against the audit: what says unbiased is, what says biased is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dlmrl_kit.advantages.intermediate_reward import IntermediateReward
from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.advantages.one_step_denoise import OneStepDenoise
from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.audit import Problem, audit_algorithm, audit_component, broken_claim, exact_estimator
from dlmrl_kit.audit.claims import PROBLEMS
from dlmrl_kit.audit.enumeration import NOT_LISTED
from dlmrl_kit.audit.scale import evaluated
from dlmrl_kit.core.registry import Entry, register, registered, unregister
from dlmrl_kit.likelihoods.step_merge import StepMerge
from dlmrl_kit.likelihoods.steps import StepTokenLogProb
from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.selectors.equal_segments import EqualSegments
from dlmrl_kit.selectors.random_steps import RandomSteps
from dlmrl_kit.selectors.top_k import TopAbsoluteAdvantage

SLOTS = ("selector", "advantage", "likelihood", "loss")
EOS = Problem(vocab=2, length=3, eos=True, policy="network", seed=6)
CLAIMING = [c for kind in SLOTS for c in components(kind) if c.package == "dlmrl_kit"]
INSTANCES: dict[str, Any] = {"EqualSegments": EqualSegments(n=2)}
"""Where the defaults are another component on a small problem."""
ELSEWHERE = {
    TokenPPO: "below: a scale until the number of tokens varies",
    StepMerge: "below: exact on single steps, biased on longer segments",
    IntermediateReward: "its rewards are of drafts, which are sampled",
    TopAbsoluteAdvantage: "selects by the advantages of IntermediateReward",
}


def listed(component: Entry) -> bool:
    """Whether its expectation is a sum: neither random masks nor drafts of a sampler, which are sampled, not listed."""
    if component.cls in ELSEWHERE:
        return False
    instance = INSTANCES.get(component.name) or component.cls()
    return not getattr(instance, "random_masks", False) and not NOT_LISTED.intersection(instance.in_keys)


PROMISING = [c for c in CLAIMING if c.claims.unbiased and listed(c)]
BIASED = [c for c in CLAIMING if not c.claims.unbiased and listed(c)]


def names(found: list[Entry]) -> list[str]:
    return [c.name for c in found]


def test_every_component_that_can_bias_the_gradient_makes_a_claim() -> None:
    assert [c.name for c in CLAIMING if c.claims.unbiased is None] == []
    assert len(PROMISING) >= 10


@pytest.mark.thorough
@pytest.mark.parametrize("component", PROMISING, ids=names(PROMISING))
def test_promises_are_kept(component: Entry) -> None:
    report = audit_component(component.cls())
    assert report.exact
    assert report.relative_bias_after_scale < 1e-8, report.verdict
    assert report.scale == pytest.approx(evaluated(component.claims.scale, {"G": 2}), abs=1e-8)
    assert broken_claim(component.cls()) == ""


@pytest.mark.thorough
@pytest.mark.parametrize("component", BIASED, ids=names(BIASED))
def test_what_says_it_is_biased_is(component: Entry) -> None:
    instance = INSTANCES.get(component.name) or component.cls()
    few = PROBLEMS[:1] if component.name == "DPO" else PROBLEMS  # it compares groups, which are run one by one
    report = audit_component(instance, few)
    assert report.exact
    assert report.relative_bias > 0.01, report.verdict
    assert broken_claim(instance) == ""


@pytest.mark.thorough
def test_token_ppo_is_a_scale_until_the_number_of_tokens_varies() -> None:
    assert audit_component(TokenPPO()).verdict.startswith("unbiased up to")
    varies = exact_estimator(LeftToRight(3), Swaps(likelihood=StepTokenLogProb(), loss=TokenPPO()))
    assert audit_algorithm(varies, problems=[EOS], attribution=False).relative_bias_after_scale > 1e-3


@pytest.mark.thorough
def test_merged_steps_are_exact_one_by_one_and_biased_together() -> None:
    assert audit_component(StepMerge(after_eos=True)).verdict == "unbiased"
    *others, ended = (measured.relative_bias for measured in audit_component(StepMerge()).measured)
    assert all(bias is not None and bias < 1e-8 for bias in others)
    assert ended is not None
    assert ended > 0.01  # tokens behind the end of text were drawn, too
    swaps = Swaps(likelihood=StepMerge(after_eos=True), selector=EqualSegments(n=2))
    merged = exact_estimator(EntropyOrder(4), swaps)
    assert audit_algorithm(merged, problems=PROBLEMS, attribution=False).relative_bias > 0.01


def test_one_step_denoise_is_unscaled_with_leave_one_out() -> None:
    estimator = exact_estimator(LowConfidence(3), Swaps(advantage=OneStepDenoise(baseline=LeaveOneOut())))
    assert audit_algorithm(estimator, problems=PROBLEMS, attribution=False).verdict == "unbiased"


def test_the_token_part_alone_is_biased_outside_its_conditions() -> None:
    estimator = exact_estimator(LowConfidence(3), Swaps(likelihood=StepTokenLogProb()))
    assert audit_algorithm(estimator, problems=PROBLEMS, attribution=False).verdict.startswith("biased")


class Overstated(RandomSteps):
    """Claims to be unbiased and is not."""

    def weights(self, kept: Tensor, valid: Tensor) -> Tensor:
        return torch.ones_like(kept[:, :1], dtype=torch.float64)


class Halved(LeaveOneOut):
    """Claims another scale than it has."""

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        return super().estimate(returns, group) / 2


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "component", "words"),
    [("selector", Overstated(8), "claims"), ("advantage", Halved(), "claims the scale 1 = 1; the audit finds 0.5")],
)
def test_broken_claims_are_named(kind: str, component: Any, words: str) -> None:
    assert broken_claim(component) == ""  # not registered: no claim
    register(kind, unbiased=True)(type(component))
    try:
        assert words in broken_claim(component)
    finally:
        unregister(next(c for c in registered() if c.cls is type(component)))
