"""Blocks that recompute their activations: gradients stay to the last bit, and memory falls with each of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.block_checkpoints import diffusion_gemma_checkpoint, sdar_checkpoint
from support.checkpoints import llada_checkpoint, llada_moe_checkpoint, masked_checkpoint
from support.live_memory import LiveMemory
from support.policies import tiny_policy
from torch import Tensor

from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.recompute import recompute_blocks, recomputed_blocks, text_blocks
from dlmrl_kit.training.estimate import layer_sizes

LAYERS = 4
ROWS, LENGTH = 3, 64


def peak(recomputed: int) -> int:
    """The bytes of a forward and backward."""
    policy = tiny_policy(layers=LAYERS, hidden=32)
    recompute_blocks(policy.model, recomputed)
    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % 8
    with LiveMemory() as live:
        policy.hidden(ids, torch.ones_like(ids, dtype=torch.bool)).sum().backward()
    return live.peak


def test_each_recomputed_block_takes_about_as_much_off_the_peak_as_estimated() -> None:
    peaks = [peak(number) for number in range(LAYERS + 1)]
    size = layer_sizes(tiny_policy(layers=LAYERS, hidden=32))
    estimate = 4 * ROWS * LENGTH * (size.computed - size.entering)
    saved = [before - after for before, after in pairwise(peaks)]
    assert max(saved[:-1]) < 1.15 * min(saved[:-1]), peaks
    assert 0.5 < saved[0] / estimate < 1.5
    # The last block is the first in the backward pass, which would have all of it in memory anyway.
    assert saved[-1] == 0
    for number, found in enumerate(peaks):
        assert 0.5 < found / (4 * ROWS * LENGTH * size.alive(number)) < 1.5


MAKERS = {
    "llada": llada_checkpoint,
    "llada_moe": llada_moe_checkpoint,
    "sdar": sdar_checkpoint,
    "diffusion_gemma": diffusion_gemma_checkpoint,
    "bert": lambda folder: masked_checkpoint(folder, "bert"),
}


@pytest.mark.parametrize("family", MAKERS)
def test_gradients_are_the_same_whatever_number_of_blocks_recompute(family: str, tmp_path: Path) -> None:
    MAKERS[family](tmp_path)  # type: ignore[no-untyped-call]
    size = 16 if family == "diffusion_gemma" else 8
    ids = torch.arange(2 * size).view(2, size) % 5
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :3] = False
    places = torch.zeros_like(mask)
    places[:, -2:] = True

    def gradients(recomputed: int) -> list[Tensor | None]:
        policy = load_policy(tmp_path)
        recompute_blocks(policy.model, recomputed)
        assert recomputed_blocks(policy.model) == recomputed
        (policy(ids, mask, places).log_softmax(-1)[:, 3] * torch.tensor([1.0, -2.0, 0.5, 0.3])).sum().backward()
        return [parameter.grad for _, parameter in policy.trainable()]

    expected = gradients(0)
    assert any(gradient is not None and bool((gradient != 0).any()) for gradient in expected)
    for number in range(1, len(text_blocks(load_policy(tmp_path).model)) + 1):
        for found, gradient in zip(gradients(number), expected, strict=True):
            assert (found is None) == (gradient is None)
            assert found is None or gradient is None or torch.equal(found, gradient)


def test_a_model_has_no_more_blocks_than_it_has() -> None:
    with pytest.raises(ValueError, match="3 blocks to recompute of 2"):
        recompute_blocks(tiny_policy().model, 3)
