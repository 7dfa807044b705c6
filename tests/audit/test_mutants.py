"""Wrong components, each with one mistake: the audit tells every one of them from its correct original."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.advantages.one_step_denoise import OneStepDenoise
from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.audit import AuditError, AuditReport, Problem, audit_algorithm, exact_estimator
from dlmrl_kit.core.keys import SELECTED_ADVANTAGE, SELECTED_LOG_PROB, SELECTED_WEIGHT
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.likelihoods.steps import Replay, StepLogProb
from dlmrl_kit.losses.base import weighted_sum
from dlmrl_kit.losses.ppo import StepPPO
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.samplers.base import Decision, Sampler, View, token_log_prob
from dlmrl_kit.samplers.low_confidence import LowConfidence, order_term
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.selectors.all_steps import AllSteps
from dlmrl_kit.selectors.entropy_importance import EntropyImportance
from dlmrl_kit.selectors.random_steps import RandomSteps

PROBLEM = Problem(vocab=2, length=3, policy="network", seed=5)
PROBLEMS = [PROBLEM, Problem(vocab=2, length=3, seed=6)]


def report_of(
    sampler: Sampler | None = None,
    batches: int = 400,
    problems: Sequence[Problem] = (PROBLEM,),
    prompts_per_update: int | None = None,
    **parts: Any,
) -> AuditReport:
    estimator = exact_estimator(sampler or LowConfidence(3, temperature=0.8), Swaps(**parts))
    return audit_algorithm(
        estimator, problems=problems, attribution=False, batches=batches, prompts_per_update=prompts_per_update
    )


class WrongSign(Reinforce):
    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        value, diagnostics = super().total(tensordict)
        return -value, diagnostics


class MeanOverSteps(Reinforce):
    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        value, diagnostics = super().total(tensordict)
        return value / tensordict[SELECTED_WEIGHT].shape[1], diagnostics


class NoWeight(Reinforce):
    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        used = (tensordict[SELECTED_WEIGHT] > 0).double()
        return -weighted_sum(tensordict[SELECTED_ADVANTAGE] * tensordict[SELECTED_LOG_PROB], used), {}


class ClipsOnPolicy(StepPPO):
    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        shifted = tensordict.copy().set(("selected", "old_log_prob"), tensordict["selected", "old_log_prob"] - 1)
        return super().total(shifted)


class NextStep(StepLogProb):
    """Scores the step after the selected one."""

    def forward(self, tensordict: TensorDictBase, **services: Any) -> TensorDictBase:
        step = tensordict["selected", "step"]
        last = tensordict["step", "valid"].sum(-1, keepdim=True) - 1
        shifted = tensordict.copy().set(("selected", "step"), torch.minimum(step + 1, last))
        found = super().forward(shifted, **services)
        return tensordict.set(SELECTED_LOG_PROB, found[SELECTED_LOG_PROB])


class NoTemperature(StepLogProb):
    def estimate(self, steps: Replay, policy: Policy, sampler: Sampler, keys: Any = ()) -> dict[Any, Tensor]:
        view = sampler.view(policy, steps.prompt, steps.ids)
        cold = View(view.logits, type(view.behaviour)(), view.allowed)
        return {SELECTED_LOG_PROB: sampler.action_log_prob(cold, steps.decision)}


class NoOrderTerm(StepLogProb):
    def estimate(self, steps: Replay, policy: Policy, sampler: Sampler, keys: Any = ()) -> dict[Any, Tensor]:
        return {SELECTED_LOG_PROB: token_log_prob(sampler.view(policy, steps.prompt, steps.ids), steps.decision)}


class SkipsFirst(AllSteps):
    def kept(self, tensordict: TensorDictBase) -> Tensor:
        kept = super().kept(tensordict).clone()
        kept[:, 0] = False
        return kept


class SelectsNothing(AllSteps):
    def kept(self, tensordict: TensorDictBase) -> Tensor:
        return torch.zeros_like(super().kept(tensordict))


class Unweighted(RandomSteps):
    def weights(self, kept: Tensor, valid: Tensor) -> Tensor:
        return torch.ones_like(kept[:, :1], dtype=torch.float64)


class NotDividedByK(EntropyImportance):
    def importance(self, q: Tensor, step: Tensor) -> Tensor:
        return 1 / q.gather(-1, step)


class InverseWeight(EntropyImportance):
    def importance(self, q: Tensor, step: Tensor) -> Tensor:
        return q.gather(-1, step)


class SquaredReward(LeaveOneOut):
    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        return super().estimate(returns.square(), group)


class ValueOfTheAction(OneStepDenoise):
    """Takes the one-step value after the action instead of before it: no baseline."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        value = tensordict["selected", "reward"]
        later = torch.cat([value[:, 1:], tensordict["reward"][:, None]], dim=1)
        found = super().forward(tensordict.copy().set(("selected", "reward"), later))
        return tensordict.set(("selected", "advantage"), found["selected", "advantage"])


MUTANTS: list[tuple[str, Any]] = [
    ("loss", WrongSign()),
    ("loss", MeanOverSteps()),
    ("loss", ClipsOnPolicy()),
    ("likelihood", NextStep()),
    ("likelihood", NoTemperature()),
    ("likelihood", NoOrderTerm()),
    ("selector", SkipsFirst()),
    ("selector", SelectsNothing()),
    ("selector", Unweighted(2)),
    ("selector", NotDividedByK(2)),
    ("selector", InverseWeight(2)),
    ("advantage", SquaredReward()),
    ("advantage", ValueOfTheAction(0.5, baseline=LeaveOneOut())),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("slot", "mutant"), MUTANTS, ids=[type(m).__name__ for _, m in MUTANTS])
def test_wrong_components_are_caught(slot: str, mutant: Any) -> None:
    report = report_of(problems=PROBLEMS, **{slot: mutant})
    assert report.exact
    assert report.verdict != "unbiased"
    assert report.relative_bias > 0.02


def test_weights_that_a_loss_ignores_are_caught() -> None:
    assert report_of(loss=NoWeight(), selector=RandomSteps(2)).relative_bias > 0.02


def test_a_sign_error_is_no_scale() -> None:
    report = report_of(loss=WrongSign())
    assert report.scale == pytest.approx(-1, abs=1e-12)
    assert report.verdict.startswith("biased")


class ForgetsOrder(LowConfidence):
    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        return token_log_prob(view, decision)


class CountsItselfTwice(LowConfidence):
    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        return token_log_prob(view, decision) + 2 * order_term(view, decision)


class SumsButDiffers(RandomOrder):
    """Its probabilities sum to 1, but are those of temperature 1 whatever it draws at."""

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        return super().action_log_prob(View(view.logits, type(view.behaviour)(), view.allowed), decision)


class HidesChoices(RandomOrder):
    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        return super().position_choices(view)[:-1]


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (ForgetsOrder(3), "sum to"),
        (CountsItselfTwice(3), "sum to"),
        (SumsButDiffers(3, temperature=0.4), "does not draw with the probabilities"),
        (HidesChoices(3), "sum to"),
    ],
)
def test_samplers_that_contradict_themselves_are_named(sampler: Sampler, words: str) -> None:
    with pytest.raises(AuditError, match=words) as error:
        report_of(sampler)
    assert type(sampler).__name__ in str(error.value)


class Secretive(RandomSteps):
    """Random, and lists nothing."""

    def outcomes(self, tensordict: TensorDictBase) -> Any:
        raise NotImplementedError("Secretive does not list its outcomes")


class WrongDraws(EntropyImportance):
    """Draws other weights than it lists."""

    def choose(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        step, weight = super().choose(tensordict)
        return step, 3 * weight


class LooksAcrossGroups(LeaveOneOut):
    """Divides by the spread of the whole batch."""

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        return super().estimate(returns, group) / (1 + returns.std())


class NoList(RandomOrder):
    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        raise NotImplementedError("NoList does not list its choices")


@pytest.mark.thorough
def test_what_cannot_be_listed_is_sampled_and_says_so() -> None:
    report = report_of(selector=Secretive(2), batches=150)
    assert not report.exact
    assert "Monte Carlo" in report.verdict
    assert any("Secretive does not list its outcomes" in note for note in report.notes)
    low, high = report.measured[0].interval or (1.0, 0.0)
    assert low <= report.relative_bias <= high
    assert low < 1e-8  # it is unbiased


@pytest.mark.thorough
def test_draws_that_differ_from_the_list_are_sampled_and_caught() -> None:
    report = report_of(selector=WrongDraws(2), batches=400)
    assert report.verdict.startswith("biased (Monte Carlo)")
    assert any("draws other selections" in note for note in report.notes)


@pytest.mark.thorough
def test_a_component_that_looks_across_groups_is_run_group_by_group() -> None:
    report = report_of(advantage=LooksAcrossGroups(), prompts_per_update=1)
    assert report.exact
    assert report.measured[0].step_variance is None  # the sign of the slow path
    assert 0.02 < report.relative_bias < 2


@pytest.mark.thorough
def test_a_sampler_without_a_list_is_compared_with_a_sampled_gradient() -> None:
    report = report_of(NoList(3), batches=150)
    assert report.verdict.startswith("no bias found (Monte Carlo)")
