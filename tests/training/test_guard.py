"""The guard of rollouts: planted faults are caught with their cause, and shipped recipes pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.kit_recipes import kit_recipes
from support.runs import collect, new_run, perturb, weights
from tensordict import TensorDictBase

from dlmrl_kit.core.errors import TrainingError
from dlmrl_kit.training.identical_groups import identical_groups
from dlmrl_kit.training.likely_cause import BATCH, likely_cause
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.recompute import all_actions
from dlmrl_kit.training.trajectory_checks import check_trajectory
from dlmrl_kit.training.update import Update

LOG_PROB, ENTROPY, VALID, COMMITTED = (("step", name) for name in ("log_prob", "entropy", "valid", "num_committed"))
SHAPE = ["Sampler.tokens_per_step = 3", "Sampler.block_length = 8", "Sampler.temperature = 1.0"]
LENGTHS = ["Sampler.completion_length = 8", "Sampler.tokens_per_step = 2", "Sampler.temperature = 1.0"]
LENGTHS += ["CharacterLlama.hidden_size = 16", "CharacterLlama.num_layers = 1", "Countdown.num_train = 4"]
LENGTHS += ["Countdown.max_numbers = 5", "Countdown.num_heldout = 4", "Trainer.prompts_per_update = 4"]
samplers = pytest.mark.parametrize(
    "sampler", ["LowConfidence", pytest.param("EntropyOrder", marks=pytest.mark.thorough)]
)


def made(folder: Path, sampler: str = "LowConfidence", *sets: str) -> Run:
    return new_run(folder, uses=[f"sampler={sampler}", "selector=AllSteps"], sets=[*SHAPE, *sets])


def of_lengths(folder: Path, sampler: str) -> Run:
    """A run with prompts of different lengths, on a random denoiser."""
    uses = ["task=Countdown", "policy=CharacterLlama", f"sampler={sampler}", "selector=AllSteps"]
    run = new_run(folder, uses=uses, sets=LENGTHS)
    perturb(run.policy, scale=0.3)
    return run


def sampled(run: Run) -> TensorDictBase:
    return collect(run).everything


def error(run: Run, trajectory: TensorDictBase) -> str:
    """The one line with which the guard stops the run."""
    with pytest.raises(TrainingError) as caught:  # noqa: PT012
        check_trajectory(trajectory, run.algorithm.sampler, run.policy)
        run.update.guard.check(trajectory, 0, whole=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


OTHER = {
    "temperature": (["Sampler.temperature = 0.7"], "likely cause: sampled with temperature 0.7 instead of 1"),
    "top_p": (["Sampler.top_p = 0.8"], "likely cause: sampled with top_p 0.8 instead of 1"),
    "top_k": (["Sampler.top_k = 2"], "likely cause: sampled with top_k 2 instead of 0"),
}


@pytest.mark.parametrize("fault", OTHER)
@samplers
def test_another_distribution(sampler: str, fault: str, tmp_path: Path) -> None:
    sets, cause = OTHER[fault]
    says = error(made(tmp_path / "a", sampler), sampled(made(tmp_path / "b", sampler, *sets)))
    assert "the rollout is not what the policy samples: ('step', " in says
    assert cause in says


@samplers
def test_the_place_of_the_largest_difference(sampler: str, tmp_path: Path) -> None:
    run = made(tmp_path, sampler)
    trajectory = sampled(run)
    was = trajectory[LOG_PROB][4].clone()
    trajectory[LOG_PROB][4] -= torch.arange(0.0, len(was)) + 0.5
    last = int(trajectory[VALID][4].sum()) - 1
    says = error(run, trajectory)
    assert f"most by {last + 0.5:.3g} (sample 4, step {last}: recorded {was[last] - last - 0.5:.4g}, " in says


@samplers
def test_stale_weights(sampler: str, tmp_path: Path) -> None:
    run = made(tmp_path, sampler)
    trajectory = sampled(run)
    perturb(run.policy, scale=0.05)
    assert "likely cause: other weights: stale" in error(run, trajectory)


@samplers
def test_tokens_shifted_by_one(sampler: str, tmp_path: Path) -> None:
    run = made(tmp_path, sampler, "Sampler.stop_at_eos = False")
    trajectory = sampled(run)
    trajectory["completion_ids"] = trajectory["completion_ids"].roll(-1, 1)
    assert "likely cause: tokens are shifted by one position to the left" in error(run, trajectory)


@samplers
def test_commit_steps_shifted_by_one_position(sampler: str, tmp_path: Path) -> None:
    run = made(tmp_path, sampler, "Sampler.stop_at_eos = False", "Sampler.block_length = 16")
    trajectory = sampled(run)
    trajectory["commit_step"] = trajectory["commit_step"].roll(1, 1)
    assert "likely cause: commit steps are shifted by one position to the right" in error(run, trajectory)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@samplers
def test_log_probabilities_that_were_rounded(sampler: str, dtype: torch.dtype, tmp_path: Path) -> None:
    run = made(tmp_path, sampler)
    trajectory = sampled(run)
    exact = trajectory[LOG_PROB]
    trajectory[LOG_PROB] = exact.to(dtype)
    assert f"is {dtype}, not torch.float32" in error(run, trajectory)
    trajectory[LOG_PROB] = exact.to(dtype).float()
    assert f"likely cause: log-probabilities were rounded to {dtype}" in error(run, trajectory)


@samplers
def test_left_padding_that_is_attended_to(sampler: str, tmp_path: Path) -> None:
    run = of_lengths(tmp_path, sampler)
    good = sampled(run)
    assert not good["prompt_mask"].all()
    run.update.guard.check(good, 0, whole=True)
    mask = good["prompt_mask"].clone()
    bad = good.select("prompt_ids", "prompt_mask", "seed", "group", "example")
    bad["prompt_mask"] = torch.ones_like(mask)
    run.algorithm.sampler(bad, policy=run.policy)
    bad["prompt_mask"] = mask
    assert "likely cause: left padding of prompts was not masked" in error(run, bad)


@samplers
def test_identical_samples_of_a_group(sampler: str, tmp_path: Path) -> None:
    run = made(tmp_path, sampler)
    trajectory = sampled(run)
    first = trajectory["group"] * 3
    same = trajectory[first].update(trajectory.select("seed", "group"))
    says = error(run, same)
    assert says.startswith("all samples of a group are identical in 2 of 2 groups (the first one: samples 0, 1, 2)")


@samplers
def test_a_nearly_certain_policy_may_repeat_itself(sampler: str, tmp_path: Path) -> None:
    run = made(tmp_path, sampler, "Sampler.temperature = 0.00001")
    trajectory = sampled(run)
    ids = trajectory["completion_ids"]
    assert all((ids[trajectory["group"] == group] == ids[3 * group]).all() for group in (0, 1))
    trajectory[ENTROPY] += 10 * trajectory[VALID]
    assert identical_groups(trajectory, run.policy, run.algorithm.sampler, 8) == ""


def behind(trajectory: TensorDictBase) -> None:
    trajectory["commit_step"] += 1


def valid_behind(trajectory: TensorDictBase) -> None:
    """Everything is counted from 1."""
    trajectory["commit_step"] += 1
    for key in (VALID, COMMITTED, LOG_PROB):
        trajectory[key] = trajectory[key].roll(1, 1)


def another_step(trajectory: TensorDictBase) -> None:
    where = (trajectory["commit_step"][2] == 1).nonzero()[0]
    trajectory["commit_step"][2, where] = 0


def masks(trajectory: TensorDictBase) -> None:
    trajectory["completion_ids"][1, 3] = MASK


def outside(trajectory: TensorDictBase) -> None:
    trajectory["completion_ids"][1, 3] = 1000


def not_a_number(trajectory: TensorDictBase) -> None:
    trajectory[LOG_PROB][3, 1] = torch.nan


def positive(trajectory: TensorDictBase) -> None:
    trajectory[LOG_PROB] *= -1


def gap(trajectory: TensorDictBase) -> None:
    trajectory[VALID][5, 1] = False


def too_early(trajectory: TensorDictBase) -> None:
    """The last step is missing."""
    steps, last = trajectory[VALID].shape[1], int(trajectory[VALID][0].sum()) - 1
    missing = trajectory["commit_step"][0] == last
    trajectory["commit_step"][0, missing] = steps
    trajectory["completion_ids"][0, missing] = END
    trajectory[VALID][0, last], trajectory[COMMITTED][0, last] = False, 0


MASK, END = -1, -1
INVALID: dict[Callable[[TensorDictBase], None], str] = {
    behind: r"likely cause: steps are not counted 0, 1, 2, ... \(off by one\?\)",
    valid_behind: r"likely cause: steps are not counted 0, 1, 2",
    another_step: r"sample 2, step 0 commits other than \(\"step\", \"num_committed\"\) positions: 4",
    masks: "sample 1, position 3 still holds the mask; likely cause: sampling was cut short",
    outside: "sample 1, position 3 holds none of the .* vocabulary: 1000; likely cause: another tokenizer",
    not_a_number: "sample 3, step 1 has a log-probability of nan",
    positive: "has a log-probability above 0",
    gap: r"sample 5, step 1 breaks the row of \(\"step\", \"valid\"\)",
    too_early: "sample 0 ends before it is finished; likely cause: another treatment of the end of text",
}


@pytest.mark.parametrize("spoil", INVALID, ids=lambda spoil: spoil.__name__)
@samplers
def test_no_valid_trajectory(
    sampler: str, spoil: Callable[[TensorDictBase], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path, sampler, "Sampler.stop_at_eos = False")
    monkeypatch.setitem(globals(), "MASK", run.policy.mask_id)
    monkeypatch.setitem(globals(), "END", run.policy.filler_id)
    trajectory = sampled(run)
    check_trajectory(trajectory, run.algorithm.sampler, run.policy)
    spoil(trajectory)
    with pytest.raises(TrainingError, match=INVALID[spoil]):
        check_trajectory(trajectory, run.algorithm.sampler, run.policy)


@pytest.mark.parametrize(("stops", "says"), [(False, "goes on although it was finished"), (True, "ends before it is")])
@samplers
def test_another_treatment_of_the_end_of_text(sampler: str, stops: bool, says: str, tmp_path: Path) -> None:
    sets = ["Sampler.block_length = 4", "Sampler.tokens_per_step = 2"]
    runs = {stop: made(tmp_path / str(stop), sampler, *sets, f"Sampler.stop_at_eos = {stop}") for stop in (True, False)}
    for run in runs.values():
        with torch.no_grad():  # which text ends is left to chance, but some does
            run.policy.model.lm_head.weight[run.policy.eos_id] += run.policy.model.lm_head.weight[5]
    assert says in error(runs[not stops], sampled(runs[stops]))


def test_blocks_of_another_length(tmp_path: Path) -> None:
    other = sampled(made(tmp_path / "a", "EntropyOrder", "Sampler.block_length = 16"))
    says = error(made(tmp_path / "b", "EntropyOrder", "Sampler.block_length = 4"), other)
    assert "was committed outside of its block's turn, in step" in says


def test_predictions_that_depend_on_the_batch(tmp_path: Path) -> None:
    run = made(tmp_path, "EntropyOrder")
    features = run.policy.features
    run.policy.features = lambda ids, *given: features(ids, *given) * (1 if len(ids) > 1 else 2)  # type: ignore[method-assign]
    says = error(run, sampled(run))
    assert says.startswith("the policy's predictions depend on the batch: ('step', 'log_prob') of sample 0, step 0 is ")
    assert "alone, without padding" in says


def test_later_updates(tmp_path: Path) -> None:
    run = made(tmp_path, "LowConfidence", "Trainer.guard_every = 2")
    first, second, third = (run.update(number) for number in range(3))
    assert "recorded_difference_max" not in first | second
    assert third["recorded_difference_max"] < 1e-5
    trajectory = sampled(run)
    perturb(run.policy, scale=0.1)
    with pytest.raises(TrainingError, match=r"in 100% of \d\d+ actions.* likely cause: other weights: stale"):
        run.update.guard.check(trajectory, 1)
    assert run.update.guard.check(trajectory, 1, behind=1, whole=True)["recorded_difference_max"] > 0.01


def test_one_action_in_a_hundred_may_differ(tmp_path: Path) -> None:
    run = made(tmp_path, "LowConfidence", "Trainer.prompts_per_update = 7", "Trainer.guard_actions = 1000")
    trajectory = sampled(run)
    actions = int(trajectory[VALID].sum())
    assert 100 < actions < 200
    trajectory[LOG_PROB][3, 1] += 0.5
    assert run.update.guard.check(trajectory, 0)["recorded_difference_max"] == pytest.approx(0.5, abs=1e-3)
    trajectory[LOG_PROB][2, 0] += 0.25
    with pytest.raises(
        TrainingError, match=rf"in {2 / actions:.0%} of {actions} actions, most by 0.5 \(sample 3, step 1"
    ):
        run.update.guard.check(trajectory, 0)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_no_action_may_differ_by_a_value_that_is_not_finite(tmp_path: Path, value: float) -> None:
    run = made(tmp_path, "LowConfidence", "Trainer.prompts_per_update = 7", "Trainer.guard_actions = 1000")
    trajectory = sampled(run)
    trajectory[LOG_PROB][3, 1] = value
    with pytest.raises(TrainingError, match=r"most by inf \(sample 3, step 1: recorded (inf|nan), "):
        run.update.guard.check(trajectory, 0)


def test_most_actions_of_a_sample_may_not(tmp_path: Path) -> None:
    run = made(tmp_path, "LowConfidence", "Trainer.prompts_per_update = 140", "Trainer.group_size = 1")
    trajectory = sampled(run)
    trajectory[LOG_PROB][77] += 0.5
    with pytest.raises(TrainingError, match=r"differs by more than 0.001 in 1% of .* \(sample 77, step "):
        run.update.guard.check(trajectory, 0, whole=True)


def test_a_run_with_a_fault_stops_before_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path)
    sample = Update.sample

    def stale(self: Update, *given: Any) -> Any:
        before = weights(run.policy)
        perturb(run.policy, scale=0.1)
        found = sample(self, *given)
        torch.nn.utils.vector_to_parameters(before, [p for _, p in run.policy.trainable()])
        return found

    monkeypatch.setattr(Update, "sample", stale)
    with pytest.raises(TrainingError, match="the rollout is not what the policy samples"):
        run.update(0)


@pytest.mark.thorough
@pytest.mark.parametrize("name", kit_recipes())
def test_shipped_recipes_pass(name: str, tmp_path: Path) -> None:
    run = new_run(tmp_path, name, sets=["Trainer.guard_every = 1", "Trainer.guard_actions = 1000"])
    for number in (0, 1):
        assert run.update(number).get("recorded_difference_max", 0.0) < 1e-4


def test_actions_that_agree_when_computed_again_are_rounding(tmp_path: Path) -> None:
    run = made(tmp_path)
    trajectory = sampled(run)
    with run.policy.in_step():
        cause = likely_cause(trajectory, all_actions(trajectory), run.policy, run.algorithm.sampler, 0.1)
    assert cause == BATCH
