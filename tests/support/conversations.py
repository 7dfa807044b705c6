"""Conversations in files, and tiny checkpoints of three layouts that have a chat template, to fine-tune on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.block_checkpoints import BLOCK, block_causal_logits, sdar_checkpoint
from support.checkpoints import dream_checkpoint
from support.text_checkpoints import text_checkpoint
from torch import Tensor

from dlmrl_kit.recipe.load import Recipe, load_recipe


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversation(*contents: str, system: str = "") -> list[dict[str, str]]:
    said = [turn(("user", "assistant")[place % 2], text) for place, text in enumerate(contents)]
    return [turn("system", system), *said] if system else said


TALKS = [
    conversation("Hi", "Hello", "2+2?", "4"),
    conversation("Say a", "a", system="Be brief"),
    conversation("What is b?", "A letter."),
    conversation("One", "Two", "Three", "Four", "Five", "Six"),
    conversation("c", "see"),
    conversation("d", "dee, and so on"),
]


def write_talks(path: Path, talks: list[Any] = TALKS) -> Path:
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return path


def llada(folder: Path) -> None:
    text_checkpoint(folder)


LAYOUTS: dict[str, Callable[[Path], Any]] = {"llada": llada, "dream": dream_checkpoint, "sdar": sdar_checkpoint}

TINY = (
    "Sampler.completion_length = 18",
    "Conversations.holdout = 2",
    "Conversations.max_prompt_tokens = None",
    "MaskedDiffusion.steps = 3",
    "MaskedDiffusion.warmup_steps = 0",
    "MaskedDiffusion.batch_size = 4",
    "MaskedDiffusion.micro_batch_size = None",
    "MaskedDiffusion.checkpoint_every = 2",
    "MaskedDiffusion.learning_rate = 1e-2",
    "MaskedDiffusion.device = 'cpu'",
    "Pretrained.dtype = 'float32'",
    "Pretrained.lora_alpha = 4",
    "Pretrained.gradient_checkpointing = False",
)


def sft(layout: str, checkpoint: Path, data: Path, *sets: str, rank: int = 0) -> Recipe:
    """The shipped recipe of a layout, tiny, on a checkpoint and a file."""
    own = [f"Pretrained.path = '{checkpoint}'", f"Conversations.data = '{data}'", f"Pretrained.lora_rank = {rank}"]
    own += ["Conversations.test_data = None", *TINY, *sets]
    return load_recipe(f"sft_{layout}", sets=own)


def alone(policy: Any, prompt: list[int], clean: list[int], state: list[int]) -> Tensor:
    """Logits [L, V] of one completion, by one plain forward of the model, or one for each block that is decoded."""
    width = len(prompt)
    if policy.block_size is None:
        ids = torch.tensor([[*prompt, *state]])
        hidden = policy.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        logits = policy.model.get_output_embeddings()(hidden)[0]
        return logits[width - 1 : -1] if policy.shift_logits else logits[width:]
    rows = []
    for first in range(width // BLOCK * BLOCK, width + len(state), BLOCK):
        begin = max(first, width)
        end = min(first + BLOCK, width + len(state))
        ids = torch.tensor([*prompt, *clean[: begin - width], *state[begin - width : end - width]])
        rows.append(block_causal_logits(policy.model, ids)[begin:end])
    return torch.cat(rows)
