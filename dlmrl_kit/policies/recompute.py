"""Gradient checkpointing of a model in eval mode, where transformers' own switch does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dlmrl_kit.policies.adapter import blocks

R = TypeVar("R")


class Recomputed(Generic[R]):
    """A forward whose activations are dropped and computed again in the backward pass; without gradients, as it is.

    It is a class and no closure, so that a copy of a model gets a forward of its own blocks: ``deepcopy`` copies the
    bound method within.

    Args:
        forward: bound method of a block.
    """

    def __init__(self, forward: Callable[..., R]) -> None:
        self.forward = forward

    def __call__(self, *given: Any, **named: Any) -> R:
        """Returns what the block returns."""
        if not torch.is_grad_enabled():
            return self.forward(*given, **named)
        # Nothing in a block is random, for the model is in eval mode: no state of generators must be kept.
        result: R = checkpoint(self.forward, *given, use_reentrant=False, preserve_rng_state=False, **named)
        return result


def recompute_blocks(model: nn.Module) -> None:
    """Makes every transformer block of a model recompute its activations in the backward pass.

    Raises:
        UserError: the model has no blocks that the kit can find.
    """
    for block in blocks(model).values():
        forward: Recomputed[Any] = Recomputed(block.forward)
        block.forward = forward
