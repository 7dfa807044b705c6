"""Corrections: weights by a loop, diagnostics, what the update makes of them, and what the audit proves of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.observers import Stop, StopAfterTheFirstUpdate
from support.policies import recorded_calls
from support.rollouts import sampler_of
from support.runs import build, metric_rows, new_run, old_difference, outcome, prepared, recipe, rollout

from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.algorithm.algorithm import GradientEstimator, Swaps
from dlmrl_kit.algorithm.dataflow import plain_key
from dlmrl_kit.audit import Problem, audit_algorithm, exact_estimator
from dlmrl_kit.audit.estimator import moments
from dlmrl_kit.audit.measure import Ground
from dlmrl_kit.audit.on_problem import OnProblem
from dlmrl_kit.audit.sampled import sampled_gradients
from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.caches.prefix_cache import PrefixCache
from dlmrl_kit.core.errors import RecipeError, TrainingError
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.core.trajectory import gather_steps
from dlmrl_kit.corrections.base import Drift, warning
from dlmrl_kit.corrections.trajectory_importance import TrajectoryImportance
from dlmrl_kit.corrections.truncated_importance import TruncatedImportance
from dlmrl_kit.corrections.uncorrected import Uncorrected
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.selectors.k_steps import LastK
from dlmrl_kit.training.old_check import check_old
from dlmrl_kit.training.runs import resume, train
from dlmrl_kit.training.update import Rollout

DEEP = Problem(vocab=2, length=4, block_length=2, policy="deep network", seed=4)
CACHED = ("Sampler.block_length = 8", "CharacterLlama.num_layers = 2")
"""On the tiny recipes, with a model of two layers: of one layer a cache is exact."""
USES = ("cache=DualCache", "policy=CharacterLlama")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 1.5, 4.0, math.inf]))
def test_weights_by_a_loop(seed: int, cap: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_ratio = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    used = torch.rand(3, 4, generator=generator) < 0.7
    single, single_cut = TruncatedImportance(cap).weights(log_ratio, used)
    whole, whole_cut = TrajectoryImportance(cap).weights(log_ratio, used)
    for b in range(3):
        product = math.prod(math.exp(log_ratio[b, k]) for k in range(4) if used[b, k])
        assert whole[b, 0] == pytest.approx(min(product, cap))
        assert bool(whole_cut[b, 0]) == (product > cap)
        for k in range(4):
            if used[b, k]:
                assert single[b, k] == pytest.approx(min(math.exp(log_ratio[b, k]), cap))
                assert bool(single_cut[b, k]) == (math.exp(log_ratio[b, k]) > cap)


def test_diagnostics() -> None:
    one = Drift.of(torch.tensor([0.5]), torch.tensor([1.0, 1.0]), torch.tensor([False, False]))
    other = Drift.of(torch.tensor([-1.5]), torch.tensor([2.0]), torch.tensor([True]))
    found = (one + other).metrics()
    assert found["correction/drift"] == pytest.approx(1.0)
    assert found["correction/effective_sample_size"] == pytest.approx(16 / (3 * 6))
    assert found["correction/truncated"] == pytest.approx(1 / 3)
    nothing = Drift.of(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    assert nothing == Drift()
    assert nothing.metrics() == {}
    assert one + nothing == one
    assert warning({}) is None
    assert warning({**found, "correction/truncated": 0.1}) is None
    assert "33% of the importance weights truncated" in str(warning(found))
    assert "effective sample size 40%" in str(warning({**found, "correction/effective_sample_size": 0.4}))


def problem_of(shape: tuple[int, int | None], **settings: Any) -> Problem:
    """One of some length and length of blocks; four positions in any order have too many trajectories for a test."""
    length, block_length = shape
    return Problem(vocab=2, length=length, block_length=block_length, policy="deep network", **settings)


@pytest.mark.thorough
@settings(max_examples=15, deadline=None)
@given(
    st.builds(sampler_of, st.sampled_from([RandomOrder, LeftToRight]), temperature=st.sampled_from([0.7, 1.0])),
    st.sampled_from([DualCache(), PrefixCache(), DualCache(2)]),
    st.builds(
        problem_of,
        st.sampled_from([(2, None), (3, None), (3, 2), (4, 2)]),
        tokens_per_step=st.integers(1, 2),
        prompts=st.integers(1, 2),
        eos=st.booleans(),
        reward=st.sampled_from(["random", "parity"]),
        seed=st.integers(0, 10**6),
    ),
)
def test_the_ratio_of_trajectories_makes_cached_rollouts_unbiased(sampler: Any, cache: Any, problem: Problem) -> None:
    estimator = exact_estimator(sampler, Swaps(cache=cache, correction=TrajectoryImportance()))
    report = audit_algorithm(estimator, problems=[problem], attribution=False)
    assert report.exact
    assert report.relative_bias < 1e-8 or report.measured[0].gradient_norm < 1e-9


@pytest.mark.parametrize("sampler", [PlackettLuceOrder(3, temperature=0.8), LowConfidence(4, temperature=0.9)])
def test_so_it_does_for_orders_that_depend_on_the_predictions(sampler: Any) -> None:
    problem = Problem(vocab=2, length=3, policy="deep network", seed=4) if sampler.max_steps == 3 else DEEP
    estimator = exact_estimator(sampler, Swaps(cache=DualCache(), correction=TrajectoryImportance()))
    assert audit_algorithm(estimator, problems=[problem], attribution=False).relative_bias < 1e-8


@pytest.mark.thorough
@pytest.mark.parametrize(("cls", "least"), [(EntropyOrder, 0.1), (LowConfidence, 0.001)])
def test_no_weight_corrects_what_only_one_of_the_two_can_do(cls: Any, least: float) -> None:
    """EntropyOrder takes the position that the state says; some tokens can never be the most confident draw."""
    swaps = Swaps(cache=DualCache(), correction=TrajectoryImportance())
    estimator = exact_estimator(cls(4, temperature=0.7), swaps)
    problem = Problem(vocab=2, length=4, policy="deep network", seed=827)
    assert audit_algorithm(estimator, problems=[problem], attribution=False).relative_bias > least


def relative_bias(correction: Any) -> float:
    swaps = Swaps(cache=DualCache(), correction=correction)
    estimator = exact_estimator(LowConfidence(4, temperature=0.9), swaps)
    return audit_algorithm(estimator, problems=[DEEP], attribution=False).relative_bias


@pytest.mark.thorough
def test_single_steps_leave_a_bias_and_none_leaves_more() -> None:
    assert 1e-3 < relative_bias(TruncatedImportance(math.inf)) < 0.5 * relative_bias(Uncorrected())
    assert relative_bias(TrajectoryImportance(1.0)) > 1e-3


def test_single_steps_are_exact_for_the_last_step_of_one_block() -> None:
    """Its state is reached exactly, and nothing comes after it."""
    problem = Problem(vocab=2, length=2, policy="deep network", seed=1)
    ground = Ground(problem, LowConfidence(2, temperature=0.9), 2, 1, 0).prepare()

    def mean(**parts: Any) -> torch.Tensor:
        small = OnProblem(exact_estimator(ground.sampler, Swaps(selector=LastK(1), **parts)), problem)
        trajectories, services = ground.services(small)
        return moments(small, services, trajectories, 2).mean

    exact = mean()
    corrected = mean(cache=DualCache(), correction=TruncatedImportance(math.inf))
    torch.testing.assert_close(corrected, exact, rtol=1e-9, atol=1e-12)
    assert (mean(cache=DualCache(), correction=Uncorrected()) - exact).norm() > 1e-4 * exact.norm()


def test_the_audit_names_the_cache() -> None:
    estimator = exact_estimator(LowConfidence(4), Swaps(cache=DualCache(), correction=TruncatedImportance()))
    report = audit_algorithm(estimator, problems=[DEEP])
    assert [cause.component for cause in report.attribution] == ["DualCache, TruncatedImportance"]
    assert report.attribution[0].without.max is not None
    assert report.attribution[0].without.max < 1e-8
    assert report.attribution[0].alone.mean == pytest.approx(report.relative_bias)


@pytest.mark.thorough
def test_recipes_with_a_cache_are_audited_on_deep_networks() -> None:
    estimator = exact_estimator(LowConfidence(4), Swaps(cache=DualCache(), correction=TruncatedImportance()))
    report = audit_algorithm(estimator, problems=2, attribution=False)
    assert {m.problem.policy for m in report.measured} == {"deep network"}


@pytest.mark.thorough
def test_monte_carlo_agrees_with_the_list() -> None:
    swaps = Swaps(cache=DualCache(), correction=TruncatedImportance(), advantage=GroupMean())
    estimator = exact_estimator(LowConfidence(4, block_length=2), swaps)
    exact = audit_algorithm(estimator, problems=[DEEP], attribution=False).measured[0]
    drawn = sampled_gradients(OnProblem(estimator, DEEP), 2, 250, 0)
    ground = Ground(DEEP, estimator.sampler, 2, 1, 0).prepare()
    bias, noise = drawn.bias(ground.truth)
    assert ground.truth is not None
    expected = exact.relative_bias * exact.gradient_norm
    spread = float(noise.trace()) ** 0.5
    assert abs(float(bias.norm()) - expected) < 4 * spread


def cached_run(folder: Path, name: str = "egspo_sa", sets: tuple[str, ...] = (), uses: tuple[str, ...] = ()) -> Any:
    return new_run(folder, name, sets=(*CACHED, *sets), uses=(*USES, *uses))


def test_the_update_weighs_steps_by_exact_over_recorded(tmp_path: Path) -> None:
    run = cached_run(tmp_path)
    trajectory = rollout(run)
    before = trajectory["selected", "weight"].clone()
    recorded = gather_steps(trajectory["step", "log_prob"], trajectory["selected", "step"])
    with torch.no_grad():
        again = StepLogProb()(trajectory.clone(), policy=run.policy, sampler=run.algorithm.sampler)
    ratio = (again["selected", "log_prob"] - recorded).exp()
    metrics = run.update.prepare(Rollout(trajectory, trajectory))
    used = before > 0
    torch.testing.assert_close(
        trajectory["selected", "weight"][used], (before * ratio.clamp(max=2.0))[used], rtol=1e-3, atol=1e-4
    )
    assert (ratio[used] - 1).abs().max() > 1e-3
    assert metrics["correction/drift"] == pytest.approx(ratio[used].log().abs().mean().item(), rel=1e-2)


CORRECTIONS = ["TruncatedImportance", "TrajectoryImportance", "Uncorrected"]
TEMPERED = ("StepTokenLogProb.sampling_temperature = True", "Sampler.temperature = 0.7")
LIKELIHOODS: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    ((), ("likelihood=StepLogProb", "regulariser=none")),
    ((), ("likelihood=StepTokenLogProb", "regulariser=none")),
    (TEMPERED, ("likelihood=StepTokenLogProb", "regulariser=none")),
    (("KLK1.to = 'old'", "Sampler.tokens_per_step = 3"), ("loss=TokenPPO", "regulariser=KLK1")),
    (TEMPERED, ("loss=TokenPPO", "regulariser=none")),
]
"""Where the correction's forwards serve for all old values."""


@pytest.mark.parametrize(("sets", "uses"), LIKELIHOODS, ids=["action", "tokens", "tempered", "both", "each tempered"])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_old_and_new_agree_before_the_update(
    correction: str, sets: tuple[str, ...], uses: tuple[str, ...], tmp_path: Path
) -> None:
    """Old values are the policy's, from the forwards of the correction, and are not what the cache recorded."""
    run = cached_run(tmp_path, sets=sets, uses=(f"correction={correction}", *uses))
    plan, trajectory = run.update.plan, rollout(run)
    scored = trajectory["selected", "weight"] != 0
    if correction == "TrajectoryImportance":
        scored = trajectory["step", "valid"]
    with recorded_calls(run.policy) as calls:
        run.update.log_probs.add_fixed(trajectory)
    assert sum(len(ids) for ids, _, _ in calls) == int(scored.sum())
    assert old_difference(run.update, trajectory) < 1e-3
    with torch.no_grad():
        new = run.update.log_probs.run(trajectory.clone())
    for key in plan.old:
        torch.testing.assert_close(new[plain_key(key)], trajectory[key])


def test_what_no_correction_scores_is_computed_by_the_likelihood(tmp_path: Path) -> None:
    run = cached_run(tmp_path, "d1", uses=("correction=Uncorrected",))
    assert run.update.plan.computed_old == {("selected", "token_log_prob"): ("selected", "old_token_log_prob")}
    assert run.update.plan.scored_again == (("step", "log_prob"),)


def test_records_of_another_distribution_are_noticed(tmp_path: Path) -> None:
    run = cached_run(tmp_path)
    trajectory = prepared(run.update, rollout(run))
    other = GradientEstimator(**(run.algorithm.fillings | Swaps(cache=None)))
    with pytest.raises(TrainingError, match="the distribution it samples from does not compute what LowConfidence"):
        check_old(trajectory, other, None, run.update.log_probs)


@pytest.mark.parametrize("correction", ["TruncatedImportance", "TrajectoryImportance"])
def test_micro_batches_change_nothing(correction: str, tmp_path: Path) -> None:
    found = []
    for i, sets in enumerate([(), ("Trainer.micro_batch_size = 1",), ("Trainer.micro_batch_tokens = 1",)]):
        run = cached_run(tmp_path / str(i), sets=sets, uses=(f"correction={correction}",))
        found.append(prepared(run.update, rollout(run))["selected", "weight"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("cache", ["DualCache", "PrefixCache"])
def test_a_cached_run_trains_and_resumes(cache: str, tmp_path: Path) -> None:
    sets = [*CACHED, "Trainer.updates = 2", "Trainer.eval_every = 0"]
    small = recipe("egspo_sa", sets=sets, uses=[f"cache={cache}", "policy=CharacterLlama"])
    train(small, tmp_path / "whole")
    with pytest.raises(Stop):
        train(small, tmp_path / "run", observer=StopAfterTheFirstUpdate())
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert any("correction/effective_sample_size" in row for row in metric_rows(tmp_path / "whole"))


def test_a_poor_rollout_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []

    class Listening(RunObserver):
        def on_message(self, text: str) -> None:
            messages.append(text)

    monkeypatch.setattr("dlmrl_kit.corrections.base.POOR_SAMPLE_SIZE", 1.1)
    sets = [*CACHED, "Trainer.updates = 2", "Trainer.eval_every = 0"]
    train(recipe("egspo", sets=sets, uses=USES), tmp_path / "run", observer=Listening())
    assert len([text for text in messages if text.startswith("warning: the rollout's distribution is far")]) == 1


def test_what_does_not_fit_is_refused_with_the_way_out() -> None:
    with pytest.raises(RecipeError, match=r"TruncatedImportance weighs single .*, but MeanField .* Uncorr"):
        build("d1", uses=["cache=DualCache"])
    assert isinstance(build("d1", uses=["cache=DualCache", "correction=Uncorrected"]).correction, Uncorrected)
    assert build("d1", uses=["cache=DualCache", "correction=TrajectoryImportance"]).correction.every_step
    with pytest.raises(RecipeError, match="PreferencePairs is not"):
        build("vrpo", uses=["cache=DualCache"])


def test_a_cache_is_corrected_unless_told_otherwise() -> None:
    algorithm = build("egspo", uses=["cache=DualCache"])
    assert isinstance(algorithm.correction, TruncatedImportance)
    assert isinstance(algorithm.cache, DualCache)
    assert build("egspo", uses=["cache=none"]).correction is None


def test_without_a_cache_a_correction_finds_nothing_to_correct(tmp_path: Path) -> None:
    run = new_run(tmp_path, "egspo", uses=["correction=TruncatedImportance"])
    trajectory = rollout(run)
    before = trajectory["selected", "weight"].clone()
    metrics = run.update.prepare(Rollout(trajectory, trajectory))
    torch.testing.assert_close(trajectory["selected", "weight"], before, rtol=1e-3, atol=1e-3)
    assert metrics["correction/truncated"] == 0
