"""Before the first update old and new log-probabilities agree, or the run stops."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.rollouts import members
from support.runs import new_run, old_difference, perturb, prepared, recipe, rollout
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.core.errors import TrainingError
from dlmrl_kit.likelihoods.steps import StepTokenLogProb
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.training import resume, train
from dlmrl_kit.training.checkpoint import checkpoints
from dlmrl_kit.training.old_check import too_many

ADVANTAGE, WEIGHT = ("selected", "advantage"), ("selected", "weight")
OTHERS = ("EntropyBoundRenoising", "PreferencePairs")  # no masks, no policy: tests of their own
SAMPLERS = [c.name for c in components("sampler") if c.package == "dlmrl_kit" and c.name not in OTHERS]
LIKELIHOODS = [
    ("StepLogProb", []),
    ("StepTokenLogProb", ["StepTokenLogProb.sampling_temperature = True"]),
    ("StepTokenLogProb", ["StepTokenLogProb.sampling_temperature = False"]),
]


@pytest.mark.parametrize(
    ("wrong", "number", "refused"),
    [
        (0, 0, False),
        (0, 1, False),
        (1, 1, True),
        (1, 2, True),
        (1, 3, False),
        (2, 2, True),
        (1, 53, False),
        (2, 53, True),
        (1, 64, False),
        (2, 64, True),
        (2, 200, False),
        (3, 200, True),
    ],
)
def test_one_of_fewer_may_differ_unless_it_is_half_of_them(wrong: int, number: int, refused: bool) -> None:
    """For the guard of rollouts, too."""
    assert too_many(wrong, number, 1e6) is refused


@pytest.mark.parametrize("largest", [math.inf, math.nan])
def test_no_rounding_makes_a_value_that_is_not_finite(largest: float) -> None:
    assert too_many(1, 10_000, largest)


@pytest.mark.parametrize(("likelihood", "sets"), LIKELIHOODS, ids=["exact", "tempered", "model"])
@pytest.mark.parametrize("sampler", members(SAMPLERS))
def test_ratios_start_at_one(sampler: str, likelihood: str, sets: list[str], tmp_path: Path) -> None:
    by_itself = sampler in ("BernoulliOrder", "ConfidenceThreshold", "TokenEditing")  # says how much a step commits
    shape = [] if by_itself else ["Sampler.tokens_per_step = 3", "Sampler.block_length = 8"]
    sets = [*sets, *shape, "Sampler.top_p = 0.9", "Trainer.minibatches = 1", "Trainer.micro_batch_size = 4"]
    run = new_run(tmp_path, uses=[f"sampler={sampler}", f"likelihood={likelihood}"], sets=sets)
    trajectory = prepared(run.update, rollout(run))
    assert old_difference(run.update, trajectory) < 1e-5
    metrics = run.update.learn(trajectory, 0)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert metrics["clip_fraction"] == 0
    assert metrics["kl"] == pytest.approx(0, abs=1e-8)
    assert metrics["grad_norm"] > 0


def test_token_ratios_start_at_one(tmp_path: Path) -> None:
    run = new_run(tmp_path, uses=["loss=TokenPPO"], sets=["Trainer.minibatches = 1"])
    trajectory = prepared(run.update, rollout(run))
    assert set(run.update.plan.old) == {("selected", "old_token_log_prob")}
    assert old_difference(run.update, trajectory) < 1e-5
    metrics = run.update.learn(trajectory, 0)
    assert (metrics["ratio"], metrics["ratio_max"]) == (pytest.approx(1, abs=1e-5), pytest.approx(1, abs=1e-5))


@pytest.mark.parametrize("sampler", ["LowConfidence", "PlackettLuceOrder", "ConfidenceThreshold"])
def test_prompts_of_different_lengths_change_nothing(sampler: str, tmp_path: Path) -> None:
    """Rollout and update see an example with other ones beside it; its numbers are the same, up to rounding."""
    uses = ["task=Countdown", "policy=CharacterLlama", f"sampler={sampler}", "likelihood=StepLogProb"]
    sets = ["Sampler.completion_length = 6", "CharacterLlama.hidden_size = 16", "CharacterLlama.num_layers = 1"]
    sets += ["Countdown.num_train = 4", "Countdown.max_numbers = 5", "Countdown.num_heldout = 4"]
    run = new_run(tmp_path, uses=uses, sets=[*sets, "Trainer.prompts_per_update = 4", "Trainer.group_size = 1"])
    trajectory = rollout(run)
    lengths = trajectory["prompt_mask"].sum(-1)
    assert lengths.min() < lengths.max()
    prepared(run.update, trajectory)
    assert old_difference(run.update, trajectory) < 1e-5
    for row in range(4):
        alone = trajectory[row : row + 1].clone()
        width = int(lengths[row])
        alone = alone.exclude("prompt_ids", "prompt_mask")
        alone["prompt_ids"] = trajectory["prompt_ids"][row : row + 1, -width:]
        alone["prompt_mask"] = trajectory["prompt_mask"][row : row + 1, -width:]
        assert old_difference(run.update, alone) < 1e-5


class AnotherTemperature(StepTokenLogProb):
    """Scores at temperature 1.1 what was recorded at temperature 1."""

    factor = 1.1

    def estimate(self, *given: Any) -> dict[Any, Tensor]:
        return {key: value * self.factor for key, value in super().estimate(*given).items()}


class NotANumber(AnotherTemperature):
    """Gives NaN, of which no comparison holds."""

    factor = math.nan


@pytest.mark.parametrize("likelihood", [AnotherTemperature, NotANumber])
def test_a_likelihood_that_does_not_fit_the_sampler_is_named(
    likelihood: type[StepTokenLogProb], tmp_path: Path
) -> None:
    run = new_run(tmp_path, swaps=Swaps(likelihood=likelihood(sampling_temperature=False)))
    trajectory = prepared(run.update, rollout(run))
    with pytest.raises(TrainingError, match=f"{likelihood.__name__} does not compute what LowConfidence recorded as"):
        old_difference(run.update, trajectory)


def test_a_run_whose_log_probs_disagree_stops_before_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = StepTokenLogProb.estimate
    monkeypatch.setattr(StepTokenLogProb, "estimate", lambda *given: {k: v * 1.1 for k, v in original(*given).items()})
    folder = tmp_path / "run"
    with pytest.raises(TrainingError, match="disagree before the first update"):
        train(recipe(), folder)
    assert checkpoints(folder) == []
    assert not (folder / "model").exists()
    with pytest.raises(TrainingError, match="disagree before the first update"):
        resume(folder)


def with_dropout(policy: TransformersPolicy) -> None:
    for module in policy.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    policy.model.train()


def with_a_leak_between_samples(policy: TransformersPolicy) -> None:
    features = policy.features
    policy.features = lambda *given: (found := features(*given)) + found.mean(0)  # type: ignore[method-assign]


def with_logits_that_change(policy: TransformersPolicy) -> None:
    perturb(policy)


@pytest.mark.parametrize("spoil", [with_dropout, with_a_leak_between_samples, with_logits_that_change])
@pytest.mark.parametrize("likelihood", ["StepLogProb", "StepTokenLogProb"])
def test_a_policy_that_is_not_a_function_of_the_state_is_found(
    spoil: Callable[[TransformersPolicy], None], likelihood: str, tmp_path: Path
) -> None:
    run = new_run(tmp_path, uses=[f"likelihood={likelihood}"], sets=["Trainer.rollout_batch_size = 4"])
    if spoil is not with_logits_that_change:
        spoil(run.policy)
    trajectory = prepared(run.update, rollout(run))
    if spoil is with_logits_that_change:
        spoil(run.policy)
    with pytest.raises(TrainingError, match=f"{likelihood} does not compute what LowConfidence recorded"):
        old_difference(run.update, trajectory)


def test_one_step_in_a_hundred_may_disagree(tmp_path: Path) -> None:
    sets = ["Trainer.prompts_per_update = 9", "Sudoku4x4.num_train = 9"]  # 9 * 3 samples of 4 steps: 108
    run = new_run(tmp_path, uses=["selector=AllSteps"], sets=sets)
    trajectory = prepared(run.update, rollout(run))
    old = trajectory["selected", "old_log_prob"]
    old[0, 0] += 0.5
    assert old_difference(run.update, trajectory) == pytest.approx(0.5, abs=1e-4)
    old[1, 1] -= 0.5
    with pytest.raises(TrainingError, match=r"2% of the selected steps differ by more than 0.001 \(largest 0.5\)"):
        old_difference(run.update, trajectory)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_step_may_disagree_by_a_value_that_is_not_finite(tmp_path: Path, value: float) -> None:
    sets = ["Trainer.prompts_per_update = 9", "Sudoku4x4.num_train = 9"]
    run = new_run(tmp_path, uses=["selector=AllSteps"], sets=sets)
    trajectory = prepared(run.update, rollout(run))
    trajectory["selected", "old_log_prob"][0, 0] = value
    with pytest.raises(TrainingError, match=r"1% of the selected steps differ by more than 0.001 \(largest inf\)"):
        old_difference(run.update, trajectory)


def test_a_first_micro_batch_without_any_step_passes(tmp_path: Path) -> None:
    run = new_run(tmp_path, sets=["Trainer.micro_batch_size = 1"])
    trajectory = rollout(run)
    trajectory[WEIGHT][0] = 0
    assert old_difference(run.update, prepared(run.update, trajectory)) == 0.0
