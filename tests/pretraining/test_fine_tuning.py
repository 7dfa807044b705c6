"""Supervised fine-tuning on conversations: the gradient against a loop, ends of turns, long answers, held-out loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import dlmrl
from support.conversations import LAYOUTS, TALKS, alone, conversation, sft, write_talks
from support.runs import outcome
from support.text_checkpoints import text_checkpoint

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.core.seeding import uniforms
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.pretraining.demonstrations import batch_of
from dlmrl_kit.pretraining.run import PretrainRun, pretrain, step_noise


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, make in LAYOUTS.items():
        make(folder / name)
    return {name: folder / name for name in LAYOUTS}


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    return write_talks(tmp_path / "talks.jsonl")


def started(recipe: Any, folder: Path) -> tuple[PretrainRun, Any]:
    run = PretrainRun(recipe.build(), folder, "tiny", RunObserver())
    return run, run.start()


ENDS = {"llada": "<|eot_id|>", "dream": "<|im_end|>", "sdar": "<|im_end|>"}
HEADS = {"llada": "<|start_header_id|>assistant<|end_header_id|>\n\n", "dream": "<|im_start|>assistant\n"}
HEADS["sdar"] = HEADS["dream"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_answer_of_the_assistant_is_learned_with_the_end_of_its_turn(
    layout: str, checkpoints: dict[str, Path], talks: Path, tmp_path: Path
) -> None:
    run, data = started(sft(layout, checkpoints[layout], talks), tmp_path / "run")
    text = run.policy.tokenizer.decode
    said = [m["content"] for talk in TALKS[:4] for m in talk if m["role"] == "assistant"]
    assert [text(row) for (row,) in data.completions] == [answer + ENDS[layout] for answer in said]
    prompts = [text(row) for row in data.prompts]
    assert all(prompt.endswith(HEADS[layout]) for prompt in prompts)
    assert "Hello" in prompts[1]
    assert "4" not in prompts[1]  # the answer is not shown
    assert "Be brief" in prompts[2]


@pytest.mark.parametrize(
    ("filler", "width"), [("learned", "longest"), ("masked", "longest"), ("learned", "completion")]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_of_a_step_is_that_of_a_loop_over_answers(
    layout: str, filler: str, width: str, checkpoints: dict[str, Path], talks: Path, tmp_path: Path
) -> None:
    sets = (f"MaskedDiffusion.filler = '{filler}'", f"MaskedDiffusion.width = '{width}'")
    sets += ("Pretrained.attention = 'eager'",) if layout == "sdar" else ()  # the oracle's mask is added to scores
    sets += ("MaskedDiffusion.min_mask = 0.3", "MaskedDiffusion.batch_size = 7", "MaskedDiffusion.micro_batch_size = 3")
    run, data = started(sft(layout, checkpoints[layout], talks, *sets), tmp_path / "run")
    policy, settings = run.policy.double(), run.settings
    rows = torch.arange(7)
    seed, spread = step_noise(rows, 7, 0, 0)
    prompt, mask, completion, counted = batch_of(data, rows, seed, policy, settings, run.length)
    settings.objective(policy, prompt, mask, completion, seed, spread, counted).backward()
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()

    full = 18 if width == "completion" else max(len(row) for (row,) in data.completions)
    noise, total = uniforms(seed, full, purpose="mask"), torch.zeros((), dtype=torch.float64)
    for row in range(7):
        (own,) = data.completions[row]
        learned = full if filler == "learned" else len(own)
        clean = own + [policy.eos_ids[0]] * (full - len(own))
        level = max(float(spread[row]), 0.3)
        hidden = [float(noise[row, place]) < level for place in range(learned)]
        state = [policy.mask_id if place >= learned or hidden[place] else clean[place] for place in range(full)]
        # Positions that are not learned hold masks in the row's state and the answer's filler in earlier blocks.
        logits = alone(policy, data.prompts[row], clean, state)
        for place in range(learned):
            if hidden[place]:
                loss = -logits[place].log_softmax(-1)[clean[place]]
                total = total + loss / level / learned / 7
    total.backward()
    assert len(found) > 8
    for name, p in policy.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-7)
