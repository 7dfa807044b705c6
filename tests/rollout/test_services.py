"""Prompts that a policy cannot see as they are: every task's examples are refused with their place, before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.number_task import Numbers
from typer.testing import CliRunner

from dlmrl_kit.cli.app import app
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.pretraining.demonstrations import encode_demonstrations
from dlmrl_kit.rollout import services
from dlmrl_kit.rollout.environment import DenoisingEnv
from dlmrl_kit.rollout.services import check_prompts, prompt_batch
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.tasks.base import BaseTask
from dlmrl_kit.tasks.json_lines import JsonLines
from dlmrl_kit.tasks.mixture import Mixture
from dlmrl_kit.training.evaluation import evaluate


@pytest.fixture(scope="module")
def digits() -> TransformersPolicy:
    torch.manual_seed(0)
    return CharacterLlama("0123456789", hidden_size=16, num_layers=1, num_heads=2, max_length=20).load()


def write(path: Path, *prompts: Any) -> str:
    """A file of train and heldout examples with an empty line between two."""
    lines = [json.dumps({"prompt": prompt, "answer": "1", "split": "train"}) for prompt in prompts]
    path.write_text("\n\n".join([*lines, json.dumps({"prompt": "7", "answer": "1", "split": "heldout"})]))
    return str(path)


BAD = {
    "unknown": ("1Z", "the policy's tokenizer has no tokens for 'Z', in '1Z'"),
    "mask": ("1<mask>", "the model's mask token '<mask>' stands in '1<mask>'"),
    "long": ("1" * 17, "the prompt has 17 tokens and the completion 4, 21 in all, but the model has 20 positions"),
    "conversation": ([{"role": "user", "content": "1"}], "the prompt is a conversation, but"),
}


@pytest.mark.parametrize("kind", BAD)
def test_every_way_to_the_policy_names_the_place(kind: str, digits: TransformersPolicy, tmp_path: Path) -> None:
    """Rollouts, the environment, evaluation, pre-training, and the look at all prompts before training."""
    bad, reason = BAD[kind]
    path = write(tmp_path / "data.jsonl", "12", bad, "345")
    alone = JsonLines(path, "math:sqrt")
    one = next(i for i in range(3) if alone.example("train", i).prompt == bad)
    line = rf"{tmp_path}/data\.jsonl:3: ({reason})"
    mixed: BaseTask = Mixture([Numbers(), alone])
    of_mixture = next(i for i in range(mixed.size("train")) if mixed.example("train", i).prompt == bad)
    for task, index in ((alone, one), (mixed, of_mixture)):
        with pytest.raises(RecipeError, match=line):
            prompt_batch(task, "train", [index], digits, completion_length=4)
    with pytest.raises(RecipeError, match=line):
        DenoisingEnv(alone, digits, 4, batch_size=2)
    with pytest.raises(RecipeError, match=line):
        evaluate(digits, LeftToRight(4), alone, split="train")
    with pytest.raises(RecipeError, match=line):
        check_prompts(alone, "train", digits, 4)
    check_prompts(alone, "heldout", digits, 4)


def test_examples_that_are_made_are_named_by_their_number(digits: TransformersPolicy) -> None:
    class Letters(Numbers):
        def example(self, split: str, index: Any) -> Any:
            return super().example(split, index) if index < 2 else type(super().example(split, 0))("x", "1")

    task = Letters(4)
    for completion_length, message in ((0, "no tokens for 'x', in 'x'"), (20, "positions")):
        indices = [0, 2] if completion_length == 0 else [0]
        where = f"Letters, example {indices[-1]} of train: "
        with pytest.raises(RecipeError, match=f"{where}.*{message}"):
            prompt_batch(task, "train", indices, digits, completion_length=completion_length)
    check_prompts(task, "train", digits, 0)  # nothing is at hand: they are read when it is their turn


def test_all_prompts_at_hand_are_counted(
    digits: TransformersPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = JsonLines(write(tmp_path / "a.jsonl", "1", "A", "2", "B", "3"), "math:sqrt")
    with pytest.raises(RecipeError, match=r"a\.jsonl:3: .*'A'.* \(2 of 5 prompts in train cannot be used\)"):
        check_prompts(task, "train", digits, 0)
    monkeypatch.setattr(services, "CHECKED", 2)
    with pytest.raises(RecipeError, match=r"a\.jsonl:3: the policy's .* no tokens for 'A', in 'A'; those [^(]*$"):
        check_prompts(task, "train", digits, 0)
    assert Mixture([task, task]).at_hand
    assert not Mixture([task, Numbers()]).at_hand


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1Z", "a demonstration cannot be written: the policy's tokenizer has no tokens for 'Z'"),
        ("1<mask>", "a demonstration cannot be written: the model's mask token"),
        ("1<eos>2", "the demonstration '1<eos>2' has an end of text in its middle"),
        ("123456789", "a demonstration has 9 tokens, more than the sampler's completion_length = 4"),
    ],
)
def test_demonstrations_are_learnt_whole_or_refused(text: str, message: str, digits: TransformersPolicy) -> None:
    class Fixed(Numbers):
        def size(self, split: str) -> int:
            return 1

    class Writes:
        def demonstrations(self, example: Any) -> list[tuple[str, float]]:
            return [(text, 0.5), ("12<eos><eos>", 0.5)]

    with pytest.raises(RecipeError, match=message):
        encode_demonstrations(Fixed(), Writes(), digits, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (("12", "What is it?", "What was it?"), "data.jsonl:3: the policy's tokenizer has no tokens for 'W'"),
        (("1" * 200, "1"), "data.jsonl:1: the prompt has 200 tokens and the completion 16"),
        (("1", "1<mask>"), "data.jsonl:3: the model's mask token '<mask>' stands in '1<mask>'"),
    ],
)
def test_training_does_not_begin(prompts: tuple[str, ...], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", *prompts)
    settings = ["--set", f"JsonLines.path='{path}'", "--set", "JsonLines.reward='math:sqrt'"]
    arguments = ["train", "egspo_sa", "--use", "task=JsonLines", *settings, "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()
