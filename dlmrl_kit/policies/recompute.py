"""Gradient checkpointing of a model in eval mode, where transformers' own switch does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dlmrl_kit.policies.adapter import blocks


class Recomputed:
    """A forward whose activations are dropped and computed again in the backward pass; outside of training, as it is.

    Args:
        forward: bound method of a block. A class, not a closure, so that copies of the model get copies of it.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *given: Any, **named: Any) -> Any:
        """What the block returns."""
        if not torch.is_grad_enabled():
            return self.forward(*given, **named)
        return checkpoint(self.forward, *given, use_reentrant=False, preserve_rng_state=False, **named)


def recompute_blocks(model: nn.Module) -> None:
    """Makes every transformer block of a model recompute its activations in the backward pass.

    Raises:
        UserError: the model has no blocks that the kit can find.
    """
    for block in blocks(model).values():
        block.forward = Recomputed(block.forward)  # type: ignore[method-assign]
