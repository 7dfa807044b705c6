"""The code on a model card decodes as the kit does, in plain transformers and in a process without the kit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import llada_checkpoint, masked_checkpoint
from support.runs import model_path

from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers import (
    ConfidenceThreshold,
    EntropyOrder,
    LeftToRight,
    LowConfidence,
    MarginOrder,
    RandomOrder,
    Sampler,
    TemperedEntropyOrder,
    TemperedLowConfidence,
    TemperedMarginOrder,
)
from dlmrl_kit.step_schedules import LinearTimeSteps
from dlmrl_kit.training.card_decoding import SCORES, decoding_without_the_kit

PROMPTS = ["1234:", "12__3:", ":", "4_3_2_1_:1234", "2222222:"]
SAMPLERS = {
    "blocks": LowConfidence(12, tokens_per_step=2, block_length=5, temperature=0.7),
    "uneven": LowConfidence(11, tokens_per_step=3, temperature=0.7),
    "past the end": LowConfidence(12, tokens_per_step=2, stop_at_eos=False),
    "entropy": EntropyOrder(12, tokens_per_step=2, top_k=2),
    "margin": MarginOrder(12, tokens_per_step=2),
    "left to right": LeftToRight(12, tokens_per_step=1),
    "tempered": TemperedLowConfidence(12, tokens_per_step=2, temperature=2.0),
    "tempered entropy": TemperedEntropyOrder(12, tokens_per_step=2, temperature=2.0),
    "tempered margin": TemperedMarginOrder(12, tokens_per_step=2, temperature=2.0),
    "threshold": ConfidenceThreshold(12, threshold=0.6),
}


def functions(policy: TransformersPolicy, path: str, sampler: Sampler) -> dict[str, Any]:
    """Runs the code of a card; returns what it defines."""
    (code,) = re.findall(r"```python\n(.*?)```", decoding_without_the_kit(policy, sampler), re.S)
    assert "dlmrl_kit" not in code
    names: dict[str, Any] = {}
    exec(code.replace("PATH", path).replace("a prompt", "1234:"), names)
    return names


def by_the_kit(policy: TransformersPolicy, sampler: Sampler) -> list[str]:
    return [text for (text,) in policy.generate(PROMPTS, sampler.at_temperature(0.0))]


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_it_writes_what_the_kit_writes(sampler: Sampler) -> None:
    policy = load_policy(model_path())
    names = functions(policy, model_path(), sampler)
    expected = by_the_kit(policy, sampler)
    assert [names["generate"](prompt) for prompt in PROMPTS] == expected
    assert names["text"] == expected[0]
    assert len(set(expected)) > 1


def test_every_sampler_that_it_follows_is_tested() -> None:
    assert {type(sampler) for sampler in SAMPLERS.values()} == set(SCORES)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_masked_language_models_too(kind: str, tmp_path: Path) -> None:
    masked_checkpoint(tmp_path, kind)
    policy, sampler = load_policy(tmp_path), LowConfidence(8, tokens_per_step=2)
    names = functions(policy, str(tmp_path), sampler)
    assert [names["generate"](prompt) for prompt in PROMPTS] == by_the_kit(policy, sampler)


@pytest.mark.parametrize("shift", [False, True])
def test_what_the_caller_said_of_a_checkpoint_is_followed(shift: bool) -> None:
    policy = load_policy(model_path(), shift_logits=shift, eos_ids=(5,), forbidden_ids=(6,))
    sampler = LowConfidence(10, tokens_per_step=2)
    names = functions(policy, model_path(), sampler)
    assert [names["generate"](prompt) for prompt in PROMPTS] == by_the_kit(policy, sampler)


def test_prompts_go_through_a_chat_template_where_the_policy_does_that(tmp_path: Path) -> None:
    policy = load_policy(model_path())
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.chat_template = "{% for m in messages %}1{{ m['content'] }}{% endfor %}:"
    policy.tokenizer.save_pretrained(tmp_path)
    policy, sampler = load_policy(tmp_path, chat_template=True), LowConfidence(10, tokens_per_step=2)
    names = functions(policy, str(tmp_path), sampler)
    assert [names["generate"](prompt) for prompt in PROMPTS] == by_the_kit(policy, sampler)


@pytest.mark.parametrize(
    "sampler", [RandomOrder(8), LowConfidence(8, tokens_per_step=LinearTimeSteps(4))], ids=["random", "schedule"]
)
def test_another_sampler_is_named_and_low_confidence_shown(sampler: Sampler) -> None:
    policy = load_policy(model_path())
    section = decoding_without_the_kit(policy, sampler)
    assert f"The sampler that it was trained with, {type(sampler).__name__}, is more than a few lines" in section
    names = functions(policy, model_path(), sampler)
    assert [names["generate"](prompt) for prompt in PROMPTS] == by_the_kit(policy, LowConfidence(8))


def test_a_model_that_transformers_does_not_load_has_no_code(tmp_path: Path) -> None:
    llada_checkpoint(tmp_path)
    section = decoding_without_the_kit(load_policy(tmp_path), LowConfidence(8))
    assert "```" not in section
    assert "the code that its family publishes" in section


@pytest.mark.thorough
def test_the_card_of_a_run_decodes_in_a_process_without_the_kit(tmp_path: Path) -> None:
    import dlmrl_kit as dk

    sets = ["Trainer.updates=1", "Trainer.prompts_per_update=2", "Trainer.eval_size=4", "Sudoku4x4.num_train=8"]
    run = dk.train(dk.load_recipe("egspo_sa", sets=sets), tmp_path / "run", progress=False)
    card = (run.model / "README.md").read_text()
    code = next(part for part in re.findall(r"```python\n(.*?)```", card, re.S) if "def generate" in part)
    prompts = [sample["prompt"] for sample in run.after.samples]
    code = (
        code.replace("PATH", str(run.model)) + f"\nimport json, sys\nprint(json.dumps([*map(generate, {prompts!r})]))"
    )
    code = f"import sys\nsys.modules['dlmrl_kit'] = None\n{code}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(found.splitlines()[-1]) == [sample["completion"] for sample in run.after.samples]
