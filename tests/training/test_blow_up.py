"""Runs whose numbers are not finite any more: what stops them, and what is said of their checkpoints."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.runs import model_path, new_run, recipe
from torch import Tensor, nn

from dlmrl_kit.core.errors import CheckpointError, NotFiniteError, UserError
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.training.blow_up import start_weights, what_is_left
from dlmrl_kit.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from dlmrl_kit.training.evaluation import evaluate, evaluate_path
from dlmrl_kit.training.optimiser import build_optimiser
from dlmrl_kit.training.runs import train
from dlmrl_kit.training.start import COMPONENTS, load_components
from dlmrl_kit.training.update import Update
from dlmrl_kit.values.token_value import TokenValue

START = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
BAD = START.clone().index_fill_(1, torch.tensor([0]), math.nan)


def saved(run: Path, states: list[Tensor]) -> None:
    """Writes a checkpoint of each of these weights, after 1, 2 ... updates."""
    for number, state in enumerate(states, start=1):
        weight = nn.Parameter(state.clone())
        optimiser, scheduler = build_optimiser(
            [weight], learning_rate=1.0, betas=(0.9, 0.9), weight_decay=0.0, schedule="constant", warmup_steps=0,
            total_steps=9,
        )  # fmt: skip
        save_checkpoint(run, number, {"weight": weight}, optimiser, scheduler, {})


CASES: dict[str, tuple[list[Tensor], str]] = {
    "none yet": ([], r"^there is no checkpoint yet: start a new run$"),
    "near the start": (
        [START * 1.01],
        r"^the last checkpoint, update-000001, is intact \(its weights are finite and 1\.0% away from those of the sta",
    ),
    "near the one before": (
        [START * 1.5, START * 1.53],
        r"^the last checkpoint, update-000002, is intact \(its weights are finite and 2\.0% away from those of update-",
    ),
    "the last is NaN": (
        [START * 1.01, BAD],
        r"^update-000002 must not be used \(its weight has NaN or infinite values\): remove it; the checkpoint before "
        r"it, update-000001, is intact \(its weights are finite and 1\.0% away",
    ),
    "the last is far": (
        [START, START * 4],
        r"^update-000002 must not be used \(its weights moved by 3\.0e\+00 times their size since the one before\): re",
    ),
    "all are far, and near each other": (
        [START * 1e30, START * 1e30],
        r"^update-000002 must not be used \(its weights moved by 1\.0e\+30 times their size since the start\); "
        r"update-000001 must not be used \(its weights moved by 1\.0e\+30 .*\): start a new run$",
    ),
    "all are infinite": ([START / 0, START / 0], r"update-000001 must not be used .*: start a new run$"),
}


@pytest.mark.parametrize(("states", "message"), CASES.values(), ids=CASES)
def test_a_checkpoint_is_intact_only_if_finite_and_near(states: list[Tensor], message: str, tmp_path: Path) -> None:
    saved(tmp_path, states)
    said = what_is_left(tmp_path, lambda: {"weight": START})
    assert re.search(message, said), said
    assert said.count("intact") == (0 if said.endswith("start a new run") else 1)


def test_a_damaged_checkpoint_is_not_intact(tmp_path: Path) -> None:
    saved(tmp_path, [START, START])
    (tmp_path / "checkpoints" / "update-000002" / "weights.safetensors").write_bytes(b"damaged")
    said = what_is_left(tmp_path, lambda: {"weight": START})
    assert said.startswith(
        "update-000002 must not be used (it is damaged): remove it; the checkpoint before it, update-0"
    )


def test_without_the_start_nothing_is_said_to_be_intact(tmp_path: Path) -> None:
    def gone() -> dict[str, Tensor]:
        raise UserError("no such checkpoint")

    saved(tmp_path, [START])
    assert "intact" not in what_is_left(tmp_path, gone)


def test_the_start_is_the_runs(tmp_path: Path) -> None:
    sets = ["Pretrained.lora_rank = 2"]
    run = new_run(tmp_path, sets=sets)
    found = start_weights(Pretrained(model_path(), lora_rank=2), run.trainer.seed)
    assert found.keys() == run.parameters.keys()
    assert all(torch.equal(found[name], p) for name, p in run.parameters.items())


@pytest.mark.parametrize("rate", ["1e30", "1e4"])
def test_a_rate_that_is_too_large_leaves_nothing_that_is_called_intact(rate: str, tmp_path: Path) -> None:
    """ "The last checkpoint is intact" was said of weights of 1e30."""
    sets = [f"Trainer.learning_rate={rate}", "Trainer.updates=8", "Trainer.eval_every=0", "Trainer.max_skipped=2"]
    with pytest.raises(NotFiniteError) as caught:
        train(recipe(sets=sets), tmp_path / "run")
    message = str(caught.value)
    assert "start a new run" in message
    assert "intact" not in message
    assert "Trainer.learning_rate" in message


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_never_saved_or_evaluated(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path, sets=["Trainer.updates=3", "Trainer.eval_every=1"])
    learn, updates = Update.learn, []

    def broken(self: Update, *given: object) -> dict[str, float]:
        metrics = learn(self, *given)  # type: ignore[arg-type]
        updates.append(given)
        if len(updates) == 2:
            with torch.no_grad():
                self.parameters[-1].view(-1)[0] = value
        return metrics

    monkeypatch.setattr(Update, "learn", broken)
    name = list(run.parameters)[-1]
    with pytest.raises(
        NotFiniteError, match=rf"after update 2 \(lower .*\): {name} has NaN or infinite values"
    ) as caught:
        run.run()
    assert "the last checkpoint, update-000001, is intact" in str(caught.value)
    assert [done for done, _ in checkpoints(tmp_path)] == [1]
    assert sorted(run.evaluations) == [0, 1]


def test_weights_that_are_finite_and_too_large(tmp_path: Path) -> None:
    """Their logits are NaN, from which no token can be drawn."""
    run = new_run(tmp_path, sets=["Trainer.updates=2"])
    with torch.no_grad():
        run.parameters["model.norm.weight"].fill_(3e38)
    with pytest.raises(NotFiniteError, match="the policy's probabilities are not finite"):
        run.step(0)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_evaluation_names_the_weight(value: float, tmp_path: Path) -> None:
    """It was accuracy 0.0."""
    run = new_run(tmp_path)
    name, parameter = list(run.parameters.items())[3]
    with torch.no_grad():
        parameter.view(-1)[-1] = value
    with pytest.raises(NotFiniteError, match=rf"the policy cannot be evaluated: model\.{name} has NaN or infinite"):
        evaluate(run.policy, run.algorithm.sampler, run.algorithm.task, size=2)
    folder = Path(shutil.copytree(model_path(), tmp_path / "model"))
    state = load_file(folder / "model.safetensors")
    state[name].view(-1)[-1] = value
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"{folder}/model\.safetensors: {name} has NaN or infinite values"):
        evaluate_path(str(folder), size=2)


@pytest.mark.parametrize("temperature", [math.inf, math.nan, -1.0])
def test_the_temperature_of_an_evaluation_is_finite(temperature: float) -> None:
    with pytest.raises(UserError, match=r"the temperature of an evaluation must be at least 0 and finite, got "):
        evaluate_path(model_path(), size=2, temperature=temperature)


@pytest.mark.parametrize("file", ["weights.safetensors", "optimiser.safetensors"])
def test_a_resume_names_the_tensor(file: str, tmp_path: Path) -> None:
    """Checksums of what was written are right; the numbers are not."""
    weight = nn.Parameter(START.clone())
    optimiser, scheduler = build_optimiser(
        [weight], learning_rate=1.0, betas=(0.9, 0.9), weight_decay=0.0, schedule="constant", warmup_steps=0,
        total_steps=9,
    )  # fmt: skip
    weight.grad = torch.ones_like(weight)
    optimiser.step()
    with torch.no_grad():
        (weight if file.startswith("weights") else optimiser.state[weight]["exp_avg"]).fill_(math.nan)
    folder = save_checkpoint(tmp_path, 1, {"weight": weight}, optimiser, scheduler, {})
    with pytest.raises(CheckpointError, match=r"(weight weight|moment 0\.exp_avg) has numbers that are not finite"):
        load_checkpoint(folder, {"weight": weight}, optimiser, scheduler)


def test_trained_components_are_finite(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    value = TokenValue()
    value.attach(run.policy)
    state = {f"component:TokenValue.{name}": p.detach().clone() for name, p in value.named_parameters()}
    first = next(iter(state))
    state[first].view(-1)[0] = math.inf
    save_file(state, tmp_path / COMPONENTS)
    with pytest.raises(NotFiniteError, match=rf"{COMPONENTS}: {first} has NaN or infinite values"):
        load_components(tmp_path, [value])
