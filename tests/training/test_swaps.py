"""The EGSPO recipes and every swap the documentation promises train to their end, on a tiny denoiser."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.rollouts import members
from support.runs import model_path, recipe

from dlmrl_kit.core.results import RunObserver, RunResult
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.step_schedules.linear_time_steps import LinearTimeSteps
from dlmrl_kit.training import train

RECIPES = ["egspo", "egspo_sa", "ada_egspo", "grpo_steps", "reinforce_exact"]  # all others: test_recipes.py
SAMPLERS = [
    c.name
    for c in components("sampler")
    if c.package == "dlmrl_kit" and (keys := c.keys()) and ("step", "log_prob") in keys.writes
]
SHORT = ["Trainer.updates = 2", "Trainer.eval_every = 0"]


class Metrics(RunObserver):
    """Keeps the metrics of every update."""

    def __init__(self) -> None:
        self.updates: list[dict[str, float]] = []

    def on_update(self, update: int, metrics: dict[str, float]) -> None:
        assert update == len(self.updates)
        self.updates.append(metrics)


def trained(
    folder: Path, name: str, *uses: str, sets: list[str] | None = None, loggers: bool = False
) -> tuple[RunResult, list[dict[str, float]]]:
    """Trains two updates; checks what holds for any run."""
    seen = Metrics()
    more = [] if loggers else ["logger=none"]
    result = train(recipe(name, [*SHORT, *(sets or [])], [*uses, *more]), folder / "run", observer=seen)
    assert (result.updates, result.skipped, len(seen.updates)) == (2, 0, 2)
    for metrics in seen.updates:
        assert all(math.isfinite(value) for value in metrics.values()), metrics
        assert 0 <= metrics["accuracy"] <= metrics["reward"] <= 1
        assert metrics["selected_steps"] > 0
    for evaluation in (result.before, result.after):
        assert 0 <= evaluation.accuracy <= evaluation.reward <= 1
        assert evaluation.decoding["temperature"] == 0
    moved = load_file(result.model / "model.safetensors")
    assert all(bool(value.isfinite().all()) for value in moved.values())
    return result, seen.updates


def changed(result: RunResult) -> bool:
    """Whether training moved any weight of the tiny checkpoint."""
    before, after = load_file(Path(model_path()) / "model.safetensors"), load_file(result.model / "model.safetensors")
    assert before.keys() == after.keys()
    return any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", RECIPES)
def test_the_egspo_recipes_train(name: str, tmp_path: Path) -> None:
    result, metrics = trained(tmp_path, name, loggers=True)
    assert changed(result)
    assert {"loss", "grad_norm", "learning_rate"} <= metrics[0].keys()
    expected = {"egspo": 4, "egspo_sa": 4, "grpo_steps": 4, "reinforce_exact": 4}  # all of the 4 steps there are
    assert metrics[0]["selected_steps"] == expected.get(name, metrics[0]["selected_steps"])
    summary = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (summary["recipe"], summary["updates"], summary["skipped"]) == (name, 2, 0)
    assert (tmp_path / "run" / "curve.png").is_file()


def test_the_default_loggers_write(tmp_path: Path) -> None:
    trained(tmp_path, "egspo_sa", "logger=MetricsCSV+TensorBoard", loggers=True)
    assert (tmp_path / "run" / "metrics.csv").is_file()
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))


SWAPS: dict[str, tuple[str, list[str], list[str]]] = {
    "UniformSteps": ("egspo", ["selector=UniformSteps"], ["UniformSteps.k = 3"]),
    "EntropyOrder and LeaveOneOut": ("egspo", ["sampler=EntropyOrder", "advantage=LeaveOneOut"], []),
    "MonteCarlo": ("egspo", ["advantage=MonteCarlo"], ["MonteCarlo.n = 2", "MonteCarlo.n_baseline = 1"]),
    "MonteCarlo in pieces": ("egspo", ["advantage=MonteCarlo"], ["Trainer.rollout_batch_size = 4"]),
    "KLExact": ("egspo", ["regulariser=KLExact"], []),
    "EntropyBonus": ("egspo", ["regulariser=EntropyBonus"], []),
    "two KLs": ("egspo", ["regulariser=KLK1+KLK2"], []),
    "TokenPPO": ("egspo", ["loss=TokenPPO"], []),
    "inner iterations": ("egspo_sa", [], ["Trainer.inner_iterations = 2"]),
    "bfloat16": ("egspo_sa", [], ["Trainer.precision = 'bfloat16'"]),
    "bfloat16, exact": ("reinforce_exact", [], ["Trainer.precision = 'bfloat16'"]),
    "rollout in pieces": ("egspo_sa", [], ["Trainer.rollout_batch_size = 4", "Trainer.micro_batch_size = 1"]),
    "LoRA": ("egspo_sa", [], ["Pretrained.lora_rank = 2"]),
    "a schedule for lambda": (
        "egspo_sa",
        [],
        ["OneStepDenoise.lam = @Linear()", "Linear.start = 0.0", "Linear.end = 1.0"],
    ),
    "blocks": (
        "egspo_sa",
        [],
        ["Sampler.block_length = 5", "Sampler.tokens_per_step = 3", "Sampler.stop_at_eos = False"],
    ),
    "Dream's steps": (
        "egspo_sa",
        ["sampler=TemperedLowConfidence"],
        ["Sampler.tokens_per_step = @LinearTimeSteps()", "LinearTimeSteps.steps = 24", "Sampler.stop_at_eos = False"],
    ),
}


@pytest.mark.parametrize("label", SWAPS)
def test_swaps_train(label: str, tmp_path: Path) -> None:
    name, uses, sets = SWAPS[label]
    _, metrics = trained(tmp_path, name, *uses, sets=sets)
    if label == "UniformSteps":
        assert metrics[0]["selected_steps"] == 3
    if label == "blocks":
        assert metrics[0]["steps"] == 2 + 2 + 2 + 1
    if label == "Dream's steps":  # those of the 24 that commit something
        assert metrics[0]["steps"] == sum(number > 0 for number in LinearTimeSteps(24).numbers(16)) < 16


@pytest.mark.parametrize("sampler", members(SAMPLERS))
def test_every_sampler_trains_without_bias(sampler: str, tmp_path: Path) -> None:
    _, metrics = trained(tmp_path, "reinforce_exact", f"sampler={sampler}")
    assert metrics[0]["selected_steps"] == metrics[0]["steps"]  # all of them
    assert not {"kl", "ratio"} & metrics[0].keys()


def test_countdown_trains_on_completions_that_end(tmp_path: Path) -> None:
    sets = ["Sampler.completion_length = 12", "Sampler.tokens_per_step = 2", "Countdown.num_train = 5"]
    sets += ["Countdown.num_heldout = 5", "CharacterLlama.hidden_size = 16", "CharacterLlama.num_heads = 2"]
    sets += ["CharacterLlama.num_layers = 1", "Countdown.format_weight = 0.5"]
    uses = ["task=Countdown", "policy=CharacterLlama", "sampler=LeftToRight"]
    _, metrics = trained(tmp_path, "egspo", *uses, sets=sets)
    assert metrics[0]["steps"] < 6  # some of the random completions end early
    assert metrics[0]["selected_steps"] <= 4
    assert not any("UNK" in text for text in texts(tmp_path / "run"))
    kept = load_recipe(tmp_path / "run" / "recipe.gin").text(header=False)
    assert "Algorithm.task = @Countdown()" in kept
    assert "Pretrained" not in kept


def texts(folder: Path) -> list[str]:
    evaluations: dict[str, Any] = json.loads((folder / "evaluations.json").read_text())
    return [sample["completion"] for entry in evaluations.values() for sample in entry["samples"]]
