"""The audit against theory: what is exact comes out at 0, what is not comes out at the size that it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rollouts import OF_ANOTHER, sampler_of

from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.advantages.group_z_score import GroupZScore
from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.advantages.monte_carlo import MonteCarlo
from dlmrl_kit.advantages.one_step_denoise import OneStepDenoise
from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.audit import (
    AuditError,
    AuditReport,
    Problem,
    audit_algorithm,
    audit_recipe,
    exact_estimator,
    random_problems,
)
from dlmrl_kit.audit.enumeration import enumerate_trajectories
from dlmrl_kit.audit.estimator import moments
from dlmrl_kit.audit.measure import Ground
from dlmrl_kit.audit.on_problem import DrawnServices, OnProblem
from dlmrl_kit.audit.sampled import sampled_gradients
from dlmrl_kit.core.keys import Key
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.core.trajectory import every_step
from dlmrl_kit.likelihoods.steps import StepTokenLogProb
from dlmrl_kit.losses.ppo import StepPPO
from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.margin_order import MarginOrder
from dlmrl_kit.samplers.mask import MaskSampler
from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.schedules.curves import Linear
from dlmrl_kit.selectors.entropy_importance import EntropyImportance
from dlmrl_kit.selectors.k_steps import FirstK, LastK
from dlmrl_kit.selectors.random_steps import RandomSteps
from dlmrl_kit.selectors.top_k import EntropyTopK

SAMPLERS = (
    EntropyOrder,
    MarginOrder,
    LeftToRight,
    RandomOrder,
    PlackettLuceOrder,
    LowConfidence,
    ConfidenceThreshold,
)
EXACT = 1e-8
SMALL = Problem(vocab=2, length=3, policy="network", seed=5)


def audited(sampler: Sampler, problem: Problem = SMALL, group_size: int = 2, **parts: Any) -> AuditReport:
    estimator = exact_estimator(sampler, Swaps(**parts))
    return audit_algorithm(estimator, problems=[problem], group_size=group_size, attribution=False)


@st.composite
def draw_problem(draw: st.DrawFn) -> Problem:
    vocab, length = draw(st.sampled_from([(2, 2), (2, 3), (2, 4), (3, 2), (4, 2), (3, 3)]))
    return Problem(
        vocab=vocab,
        length=length,
        tokens_per_step=draw(st.integers(1, 3)),
        block_length=draw(st.sampled_from([None, 2, 3])),
        prompts=draw(st.integers(1, 2)),
        reward=draw(st.sampled_from(["random", "sparse", "parity"])),
        policy=draw(st.sampled_from(["tabular", "network"])),
        eos=draw(st.booleans()),
        seed=draw(st.integers(0, 10**6)),
    )


problems = draw_problem()
samplers = st.builds(
    sampler_of,
    st.sampled_from(SAMPLERS),
    temperature=st.sampled_from([0.5, 0.9, 1.0, 1.7]),
    top_k=st.sampled_from([0, 2]),
)


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(samplers, problems, st.integers(1, 2))
def test_the_exact_components_are_unbiased_with_every_sampler(
    sampler: Sampler, problem: Problem, group_size: int
) -> None:
    report = audited(sampler, problem, group_size)
    assert report.exact
    assert report.relative_bias < EXACT or report.measured[0].gradient_norm < 1e-9, (problem, report.relative_bias)


@pytest.mark.thorough
@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["tabular", "network"]), st.integers(0, 10**6), st.sampled_from([1, 2]), st.integers(1, 3))
def test_filters_and_several_commits_with_low_confidence(policy: Any, seed: int, per_step: int, top_k: int) -> None:
    problem = Problem(vocab=3, length=3 if per_step == 2 else 2, tokens_per_step=per_step, policy=policy, seed=seed)
    report = audited(LowConfidence(3, temperature=0.8, top_k=top_k, top_p=0.9), problem)
    assert report.relative_bias < EXACT or report.measured[0].gradient_norm < 1e-9


def test_the_numbers_of_theory_section_two() -> None:
    """One commit per step, three tokens and positions, a random network, no baseline (a group of one)."""
    theory = Problem(vocab=3, length=3, policy="network", seed=3)

    def bias(sampler: Sampler, **parts: Any) -> float:
        return audited(sampler, theory, 1, **parts).relative_bias

    tokens = {"likelihood": StepTokenLogProb()}
    published = {"likelihood": StepTokenLogProb(sampling_temperature=False)}
    assert bias(RandomOrder(3, temperature=0.9), **tokens) < 1e-12
    assert bias(EntropyOrder(3, temperature=0.7), **tokens) < 1e-12
    assert 0.02 < bias(RandomOrder(3, temperature=0.9), **published) < 0.5
    assert bias(LowConfidence(3), **tokens) > 0.05
    assert bias(LowConfidence(3, temperature=0.9), **published) > 0.05
    assert bias(LowConfidence(3, temperature=0.9)) < 1e-12


@pytest.mark.thorough
@pytest.mark.parametrize("group_size", [2, 3])
def test_group_baselines(group_size: int) -> None:
    sampler = EntropyOrder(3, temperature=0.9)
    assert audited(sampler, group_size=group_size, advantage=LeaveOneOut()).verdict == "unbiased"
    mean = audited(sampler, group_size=group_size, advantage=GroupMean())
    assert mean.scale == pytest.approx(1 - 1 / group_size, abs=1e-12)
    assert mean.relative_bias_after_scale < EXACT
    assert mean.verdict.startswith("unbiased up to the known scale 1 - 1/G")
    measured = audited(sampler, group_size=group_size, advantage=GroupZScore())
    assert measured.relative_bias > 0.05
    assert "biased, relative bias" in measured.verdict


@pytest.mark.thorough
@pytest.mark.parametrize("cls", [LowConfidence, RandomOrder])
@pytest.mark.parametrize("selector", [None, RandomSteps(2)])
def test_one_step_denoise(cls: type[Sampler], selector: Any) -> None:
    parts = {} if selector is None else {"selector": selector}

    def of(**options: Any) -> AuditReport:
        return audited(cls(3, temperature=0.9), advantage=OneStepDenoise(**options), **parts)

    assert of(lam=0.7, baseline=LeaveOneOut()).verdict == "unbiased"
    assert of(lam=Linear(0.2, 1.5), baseline=LeaveOneOut()).verdict == "unbiased"
    undivided = of(lam=0.7, normalise=False, baseline=LeaveOneOut())
    assert undivided.scale == pytest.approx(1.7, abs=1e-12)
    assert undivided.verdict.startswith("unbiased up to the known scale 1 + lambda")
    both = of(lam=0.7, normalise=False)
    assert both.known_scale == "(1 - 1/G) (1 + lambda)"
    assert both.scale == pytest.approx(0.85, abs=1e-12)


@pytest.mark.parametrize("n_baseline", [0, 2])
def test_monte_carlo_advantages(n_baseline: int) -> None:
    report = audited(LowConfidence(3), advantage=MonteCarlo(n=1, n_baseline=n_baseline), selector=RandomSteps(2))
    assert report.verdict == "unbiased"


@pytest.mark.parametrize("selector", [EntropyImportance(2, floor=0.1), RandomSteps(1), RandomSteps(2)])
def test_random_selectors_stand_for_all_steps(selector: Any) -> None:
    for problem in (SMALL, Problem(vocab=2, length=3, tokens_per_step=1, eos=True, seed=4)):
        report = audited(LowConfidence(3, temperature=0.9), problem, selector=selector)
        assert report.exact
        assert report.relative_bias < EXACT


def test_ppo_is_reinforce_before_the_first_update() -> None:
    ours = audited(LowConfidence(3), loss=StepPPO(0.1, 0.1)).measured[0]
    plain_loss = audited(LowConfidence(3)).measured[0]
    assert ours.relative_bias is not None
    assert ours.relative_bias < EXACT
    assert ours.variance == pytest.approx(plain_loss.variance, rel=1e-9)
    tokens = audited(EntropyOrder(3), likelihood=StepTokenLogProb(), loss=TokenPPO())
    assert tokens.verdict.startswith("unbiased up to the known scale B / number of tokens")
    assert tokens.scale == pytest.approx(1 / 3, abs=1e-12)


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0, 9.0])
@pytest.mark.parametrize("selector", [FirstK(1), LastK(1), FirstK(2)])
def test_dropped_steps_obey_the_entropy_bound(spread: float, selector: Any) -> None:
    """||gradient dropped|| <= B * expected entropy dropped, B = 2 max|A| max||grad logit|| (tabular: 1)."""
    problem = Problem(vocab=3, length=3, seed=2, spread=spread)
    ground = Ground(problem, EntropyOrder(3), 1, 1, 0).prepare()
    assert ground.truth is not None
    small = OnProblem(exact_estimator(ground.sampler, Swaps(selector=selector)), problem)
    rows, services = ground.services(small)
    part = moments(small, services, rows, 1)
    kept = selector.kept(rows)
    dropped = (rows["step", "entropy"] * rows["step", "num_committed"]).masked_fill(kept, 0).sum(-1)
    bound = 2 * float(problem.table.abs().max()) * float((rows["probability"] * dropped).sum())
    missing = float((part.mean - ground.truth).norm())
    assert 0 < missing <= bound
    if spread == 9.0:
        assert bound < 0.4 * 2 * float(problem.table.abs().max())


def test_top_k_of_entropy_is_biased_and_measured() -> None:
    report = audited(LowConfidence(3), selector=EntropyTopK(1))
    assert report.relative_bias > 0.05
    assert report.exact


def test_a_baseline_biases_a_choice_of_steps_that_looks_ahead() -> None:
    """FirstK has the same expectation with any baseline; EntropyTopK, which ranks later steps too, has not."""

    def bias(selector: Any, advantage: Any, group_size: int = 2) -> float:
        parts = {"selector": selector, "advantage": advantage}
        return audited(LowConfidence(4, temperature=0.9), sparse, group_size, **parts).relative_bias

    sparse = Problem(vocab=2, length=4, block_length=2, reward="sparse", seed=2)
    value = OneStepDenoise(baseline=LeaveOneOut())
    assert bias(FirstK(1), LeaveOneOut(), 1) == pytest.approx(bias(FirstK(1), LeaveOneOut()), rel=1e-9)
    assert bias(FirstK(1), value) == pytest.approx(bias(FirstK(1), LeaveOneOut()), rel=1e-9)
    assert bias(EntropyTopK(2), value) > 1 > bias(EntropyTopK(2), LeaveOneOut()) > 0.1


def test_enumeration_is_a_rollout_with_probabilities() -> None:
    problem = Problem(vocab=3, length=3, tokens_per_step=2, prompts=2, eos=True, seed=8)
    sampler = LowConfidence(3, 2, temperature=0.9)
    keys: list[Key] = [("step", "greedy_ids"), ("token", "log_prob")]
    listed = enumerate_trajectories(sampler, problem.denoiser, problem.batch(), keys=keys)
    sampled = sampler(problem.batch(4), policy=problem.denoiser, keys=keys)
    for key in sampled.keys(True, True):
        assert listed[key].dtype == sampled[key].dtype, key
        assert listed[key].shape[1:] == sampled[key].shape[1:], key
    total = torch.zeros(2, dtype=torch.float64).index_add(0, listed["group"], listed["probability"])
    torch.testing.assert_close(total, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(
        every_step(listed)["step", "log_prob"].sum(-1).exp(), listed["probability"], rtol=1e-12, atol=0
    )


def test_restart_values_are_what_restarts_average_to() -> None:
    ground = Ground(SMALL, LowConfidence(3, temperature=0.9), 2, 1, 0).prepare()
    assert ground.trajectories is not None
    assert ground.values is not None
    row = every_step(ground.trajectories[3:4])
    step = torch.arange(3)[None]
    services = DrawnServices(SMALL, ground.sampler, 0, 0)
    sampled = services.restart(row, step, 4000).mean(-1)
    torch.testing.assert_close(sampled, ground.values[3:4, :3], atol=0.07, rtol=0)


@pytest.mark.thorough
def test_variance_is_that_of_sampled_groups() -> None:
    estimator = exact_estimator(EntropyOrder(3), Swaps(advantage=GroupMean(), selector=RandomSteps(2)))
    exact = audit_algorithm(estimator, problems=[SMALL], attribution=False).measured[0]
    drawn = sampled_gradients(OnProblem(estimator, SMALL), 2, 600, 0)
    assert drawn.variance == pytest.approx(exact.variance, rel=0.3)
    assert exact.step_variance is not None
    assert len(exact.step_variance) == 3
    assert exact.forwards == pytest.approx(2 * (3 + 2))


class Together(EntropyOrder):
    """Writes what the kit does not know."""

    @with_parameters_of(MaskSampler)
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.out_keys = [*self.out_keys, ("acme", "note")]

    def forward(self, tensordict: Any, **named: Any) -> Any:
        found = super().forward(tensordict, **named)
        return found.set(("acme", "note"), found["group"].clone())


def test_keys_of_a_sampler_that_the_kit_does_not_know_are_not_listed() -> None:
    for cls, expected in ((Together, [("acme", "note")]), (EntropyOrder, [])):
        ground = Ground(SMALL, cls(3), 2, 1, 0).prepare()
        assert ground.unlisted(OnProblem(exact_estimator(ground.sampler), SMALL)) == expected


def test_a_sampler_may_name_its_exact_advantage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(exact_estimator(Together(3)).advantage) is LeaveOneOut
    monkeypatch.setattr(Together, "exact_advantage", lambda self: GroupMean())
    assert type(exact_estimator(Together(3)).advantage) is GroupMean
    monkeypatch.setattr(Together, "exact_advantage", lambda self: RandomSteps(1))
    with pytest.raises(
        AuditError, match=r"Together\.exact_advantage returns RandomSteps; return an advantage, or None"
    ):
        exact_estimator(Together(3))


TOGETHER = ("PreferencePairs",)
"""A sampler that makes the samples of a prompt together: they cannot be listed one by one."""
ALONE = [c.name for c in components("sampler") if c.package == "dlmrl_kit" and c.name not in TOGETHER]


@pytest.mark.thorough
@pytest.mark.parametrize("name", ALONE)
def test_reinforce_exact_is_unbiased_with_every_sampler(name: str) -> None:
    report = audit_recipe("reinforce_exact", uses=[f"sampler={name}"], sets=_fitting(name), problems=3)
    assert report.verdict == "unbiased"
    assert report.known_scale == "1"


def _fitting(sampler: str) -> list[str]:
    if sampler in OF_ANOTHER:
        return [f"{sampler}.sampler = @LowConfidence()"]
    return ["ConfidenceThreshold.threshold = 0.6"] if sampler == "ConfidenceThreshold" else []


def test_egspo_sa_is_biased_by_its_separate_causes() -> None:
    report = audit_recipe("egspo_sa", problems=3)
    assert report.verdict.startswith("biased")
    assert report.relative_bias_after_scale > 0.1
    causes = {cause.component: cause for cause in report.attribution}
    order = causes["StepTokenLogProb (order term)"]
    temperature = causes["StepTokenLogProb (sampling_temperature=False)"]
    for cause in (order, temperature, causes["EntropyTopK"]):
        assert cause.alone_after_scale.mean is not None
        assert cause.alone_after_scale.mean > 0.01, cause
    assert "order term" in order.cause
    assert "temperature" in temperature.cause
    assert causes["OneStepDenoise"].cause == "scales the gradient by 0.5 = 1 - 1/G"
    assert causes["StepPPO"].cause == "none: exact here"
    assert set(report.regularisers) == {"KLK3"}


@pytest.mark.thorough
def test_exact_components_bring_egspo_sa_to_zero() -> None:
    uses = ["likelihood=StepLogProb", "selector=EntropyImportance"]
    scaled = audit_recipe("egspo_sa", uses=uses, problems=2, attribution=False)
    assert scaled.verdict == "unbiased up to the known scale 1 - 1/G = 0.5"
    sets = ["OneStepDenoise.baseline = @LeaveOneOut()"]
    assert audit_recipe("egspo_sa", uses=uses, sets=sets, problems=2, attribution=False).verdict == "unbiased"


def test_a_greedy_sampler_has_no_gradient() -> None:
    report = audited(EntropyOrder(3, temperature=0.0))
    assert report.verdict.startswith("no verdict")
    assert report.to_json()["relative_bias"]["mean"] is None


def test_random_problems_cover_shapes_policies_and_rewards() -> None:
    found = random_problems(6, seed=1)
    assert {p.policy for p in found} == {"tabular", "network"}
    assert {p.reward for p in found} == {"random", "sparse", "parity"}
    assert len({p.seed for p in found}) == 6
    with pytest.raises(ValueError, match="prompts"):
        Problem(vocab=2, prompts=3)
