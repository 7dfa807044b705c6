"""Prompts for DiffusionGemma's canvases."""

from __future__ import annotations

from support.block_checkpoints import CANVAS, padded_batch
from tensordict import TensorDict
from torch import Tensor

LENGTHS = (9, 3, 5, 1, 7)  # prompts longer and shorter than the sliding window of 6
LENGTH = 2 * CANVAS


def batch() -> tuple[Tensor, Tensor]:
    return padded_batch(16, LENGTHS, LENGTH)


def prompts() -> TensorDict:
    ids, mask = batch()
    width = max(LENGTHS)
    return TensorDict({"prompt_ids": ids[:, :width], "prompt_mask": mask[:, :width]}, [len(LENGTHS)])
