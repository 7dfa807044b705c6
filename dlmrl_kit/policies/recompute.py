"""Gradient checkpointing of a model in eval mode, where transformers' own switch does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dlmrl_kit.policies.adapter import blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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


def recompute_blocks(model: PreTrainedModel, number: int | None = None) -> None:
    """Makes transformer blocks of a model recompute their activations in the backward pass.

    The first ones do, those next to the input: the backward pass comes to them last, when nothing is stored of the
    others any more, so that what one of them computes again needs no memory on top of theirs.

    Args:
        model: whose blocks do not recompute anything yet, are not compiled and not sharded.
        number: of blocks; None: all.

    Raises:
        UserError: the model has no blocks that the kit can find.
        ValueError: it has fewer.
    """
    found = text_blocks(model)
    count = len(found) if number is None else number
    if not 0 <= count <= len(found):
        raise ValueError(f"{count} blocks to recompute of {len(found)}")
    for block in found[:count]:
        forward: Recomputed[Any] = Recomputed(block.forward)
        block.forward = forward


def text_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """Returns the transformer blocks that text goes through, in their order; raises as ``policies.adapter.blocks``."""
    return list(blocks(model.get_decoder()).values())


def recomputed_blocks(model: nn.Module) -> int:
    """Counts the blocks of a model that recompute their activations."""
    return sum(isinstance(module.forward, Recomputed) for module in model.modules())
