"""Regularisers in the audit: what the expected gradient of each is, against the KL of whole actions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.random_mdps import EXACT, MDP, STATE_SCORE, examples, mdps
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.audit import Problem, audit_algorithm, audit_recipe, exact_estimator
from dlmrl_kit.audit.measure import Ground
from dlmrl_kit.audit.regularisers import (
    FORWARD,
    NO_KL,
    NOTHING,
    OTHER,
    REVERSE,
    RegulariserAudit,
    audit_regularisers,
    combined,
)
from dlmrl_kit.core.component import rebuilt
from dlmrl_kit.likelihoods.steps import StepTokenLogProb
from dlmrl_kit.regularisers.entropy_bonus import EntropyBonus
from dlmrl_kit.regularisers.kl import KLK1, KLK2, KLK3
from dlmrl_kit.regularisers.kl_exact import KLExact
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.selectors.entropy_importance import EntropyImportance
from dlmrl_kit.selectors.k_steps import FirstK
from dlmrl_kit.selectors.top_k import EntropyTopK

SMALL = [(2, 2), (2, 3), (3, 2)]


def audited(mdp: MDP, terms: list[Any], **parts: Any) -> dict[str, RegulariserAudit]:
    ground = Ground(mdp.problem, rebuilt(mdp.sampler), 1, 1, 0).prepare()
    return audit_regularisers(exact_estimator(ground.sampler, Swaps(regulariser=terms, **parts)), ground)


def fixed(sampler: Any = None, **options: Any) -> MDP:
    problem = Problem(**{"vocab": 2, "length": 3, "policy": "network", "seed": 5, **options})
    return MDP(problem, sampler or LowConfidence(3, temperature=0.9))


@pytest.mark.thorough
@examples(15)
@given(mdps(shapes=SMALL, filters=False), st.integers(1, 3))
def test_k1_pushes_nowhere_k2_down_the_kl_and_k3_down_its_reverse(mdp: MDP, k: int) -> None:
    """With any sampler, and with a choice of steps that does not look ahead or that stands for all of them."""
    for selector in (FirstK(k), EntropyImportance(1)):
        found = audited(mdp, [KLK1(), KLK2(0.3), KLK3()], selector=selector)
        assert [audit.words for audit in found.values()] == [NOTHING, FORWARD, REVERSE]
        none, forward, reverse = (audit.relative_bias for audit in found.values())
        assert none == pytest.approx(1, abs=EXACT)
        assert forward is not None
        assert forward < EXACT
        assert reverse is not None
        assert reverse > 1e-6


@examples(15)
@given(mdps(STATE_SCORE, SMALL, filters=False))
def test_the_exact_kl_of_tokens_is_that_of_actions_where_the_state_chooses_positions(mdp: MDP) -> None:
    (found,) = audited(mdp, [KLExact()], likelihood=StepTokenLogProb()).values()
    assert found.words == FORWARD


def test_the_exact_kl_of_tokens_leaves_out_the_order() -> None:
    (found,) = audited(fixed(), [KLExact()], likelihood=StepTokenLogProb()).values()
    assert found.words == OTHER
    assert found.relative_bias is not None
    assert found.relative_bias > 0.01


def test_a_choice_of_steps_that_looks_ahead_biases_the_kl() -> None:
    (found,) = audited(fixed(), [KLK2()], selector=EntropyTopK(1)).values()
    assert found.words == f"{OTHER}; among exact components {FORWARD}"
    assert found.relative_bias is not None
    assert found.relative_bias > 1e-3


def test_published_log_probabilities_bias_the_kl() -> None:
    (found,) = audited(fixed(), [KLK3()], likelihood=StepTokenLogProb(sampling_temperature=False)).values()
    assert found.words == f"{OTHER}; among exact components {REVERSE}"


class Doubled(KLK2):
    def estimate(self, log_ratio: Tensor) -> Tensor:
        return log_ratio.square()


class Negative(KLK2):
    def estimate(self, log_ratio: Tensor) -> Tensor:
        return -super().estimate(log_ratio)


@pytest.mark.parametrize(("term", "bias"), [(Doubled(), 1), (Negative(), 2)], ids=["Doubled", "Negative"])
def test_wrong_estimators_are_caught(term: Any, bias: float) -> None:
    (found,) = audited(fixed(), [term]).values()
    assert found.words == OTHER
    assert found.relative_bias == pytest.approx(bias, abs=1e-10)


def test_what_is_no_kl_to_the_reference_has_a_size_only() -> None:
    mdp = fixed(EntropyOrder(3))
    before = [p.clone() for p in mdp.policy.frozen.parameters()]
    found = audited(mdp, [EntropyBonus(), KLK2(), KLK2(to="old")])
    assert list(found) == ["EntropyBonus", "KLK2", "KLK2/2"]
    for name in ("EntropyBonus", "KLK2/2"):
        assert (found[name].relative_bias, found[name].words) == (None, NO_KL)
    assert found["EntropyBonus"].size > 0.001
    assert found["KLK2/2"].size < 1e-12  # to itself
    after = mdp.policy.frozen.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_sizes_are_those_of_the_gradients() -> None:
    one, two = (audited(fixed(), [KLK2(coefficient)])["KLK2"] for coefficient in (1.0, 2.0))
    assert two.size == pytest.approx(2 * one.size, rel=1e-9)
    assert two.relative_bias == pytest.approx(one.relative_bias, abs=1e-9)


def test_a_policy_without_choice_has_no_kl() -> None:
    (found,) = audited(fixed(EntropyOrder(3, temperature=0.0)), [KLK2()]).values()
    assert found.relative_bias is None
    assert "undefined" in found.words


def test_several_problems_are_combined() -> None:
    exact, biased = RegulariserAudit(1.0, 0.0, FORWARD), RegulariserAudit(2.0, 0.5, f"{OTHER}; and more")
    assert combined([exact, biased]) == RegulariserAudit(1.5, 0.25, f"{OTHER}; and more")
    assert combined([RegulariserAudit(0.0, None, NO_KL)]) == RegulariserAudit(0.0, None, NO_KL)
    report = audit_algorithm(
        exact_estimator(LowConfidence(3), Swaps(regulariser=[KLK2()])), problems=2, attribution=False
    )
    assert report.regularisers["KLK2"].words == FORWARD


def test_the_report_of_a_recipe() -> None:
    found = audit_recipe("egspo", problems=1, attribution=False).to_json()["regularisers"]
    assert set(found) == {"KLK3"}
    assert set(found["KLK3"]) == {"size", "relative_bias", "words"}
    assert found["KLK3"]["words"] == f"{OTHER}; among exact components {REVERSE}"
    assert found["KLK3"]["relative_bias"] > 0.1
    sets = ["StepPPO.clip_low = 0.2"]
    uses = ["likelihood=StepLogProb", "selector=AllSteps", "regulariser=KLK2"]
    exact = audit_recipe("egspo", uses=uses, sets=sets, problems=1, attribution=False)
    assert exact.regularisers["KLK2"].words == FORWARD
