"""The recipes of the paper's experiments: alike but for task, model and advantage; they need no data to be checked."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from typer.testing import CliRunner

from dlmrl_kit.cli.app import app
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.training import shapes

TASKS = {"gsm8k": "GSM8K", "math": "MATH", "countdown": "CountdownNumbers", "sudoku": "Sudoku4x4Puzzles"}
TASKS["code"] = "KodCode"
MODELS = {"llada": "GSAI-ML/LLaDA-8B-Instruct", "dream": "Dream-org/Dream-v0-Instruct-7B"}
NAMES = ["_".join(parts) for parts in product(("egspo_sa", "egspo"), MODELS, TASKS)]


def settings(name: str) -> dict[str, Any]:
    return {key: bound.value for key, bound in load_recipe(name).bindings.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_builds_without_data_and_has_the_papers_settings(name: str) -> None:
    algorithm = load_recipe(name).build_algorithm()
    trainer, sampler, source = algorithm.trainer, algorithm.sampler, algorithm.policy
    _, model, task = name.rsplit("_", 2)
    assert type(algorithm.task).__name__ == TASKS[task]
    assert source.path == MODELS[model]
    assert (source.lora_rank, source.lora_alpha, source.quantisation) == (128, 64, "nf4")
    assert (sampler.completion_length, sampler.block_length, sampler.max_steps, sampler.temperature) == (
        256,
        32,
        128,
        0.9,
    )
    assert (trainer.learning_rate, trainer.betas, trainer.weight_decay) == (3e-5, (0.9, 0.99), 0.1)
    assert (trainer.max_grad_norm, trainer.group_size, trainer.schedule) == (0.2, 8, "constant")
    assert (algorithm.task.prompt.max_tokens, algorithm.task.prompt.prefix) == (200, "<reasoning>\n")
    assert algorithm.task.test_prompt is None


@pytest.mark.parametrize("task", TASKS)
def test_twins_differ_in_the_advantage_alone(task: str) -> None:
    for model in MODELS:
        with_sa, without = settings(f"egspo_sa_{model}_{task}"), settings(f"egspo_{model}_{task}")
        differing = {key for key in {*with_sa, *without} if with_sa.get(key) != without.get(key)}
        assert {key.split(".")[0] for key in differing} - {"OneStepDenoise", "GroupMean"} == {"Algorithm"}
        assert {key for key in differing if key.startswith("Algorithm")} == {"Algorithm.advantage"}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["egspo_sa_llada_sudoku", "egspo_dream_gsm8k"])
def test_a_dry_run_needs_neither_weights_nor_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_from_hub", lambda path: None)
    result = CliRunner().invoke(app, ["train", name, "--dry-run", "--gpus", "8", "--tflops", "150"])
    assert result.exit_code == 0, result.output
    assert "examples     the kit's own, in the form of the data set" in result.output
    assert "PFLOP per update: rollout" in result.output
    assert "hours for 600 updates on 8 GPUs at 150 TFLOP/s each" in result.output
    assert "small update worked" in result.output
