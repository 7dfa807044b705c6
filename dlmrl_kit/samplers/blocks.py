"""How a sampler's blocks lie on those of a policy that denoises block by block.

Policies need nothing for this but the interface of design.md: what one does not say of blocks, masks or caches is what
``Policy`` says by default.
"""

from __future__ import annotations

import contextlib
from typing import Any

from torch import Tensor

from dlmrl_kit.core.errors import UserError


def block_offset(policy: Any, prompt_mask: Tensor) -> Tensor | None:
    """``policy.block_offset(prompt_mask)``; None where it has no such method."""
    return policy.block_offset(prompt_mask) if hasattr(policy, "block_offset") else None


def prefix_cache(policy: Any) -> contextlib.AbstractContextManager[None]:
    """``policy.prefix_cache()``, if it has one."""
    return policy.prefix_cache() if hasattr(policy, "prefix_cache") else contextlib.nullcontext()


def check_cache(sampler: Any, policy: Any) -> None:
    """Refuses a cache that cannot be used with a policy.

    Raises:
        UserError: that.
    """
    if sampler.cache is None:
        return
    name = type(sampler.cache).__name__
    if sampler.noise != "mask":
        raise UserError(f"{name} is for samplers that fill masks; {type(sampler).__name__} renoises")
    if not hasattr(policy, "cached"):
        raise UserError(f"{type(policy).__name__} has no approximate cache: leave {name} out")
    policy.check_cache()


def check_noise(sampler: type, policy: Any) -> None:
    """Refuses a sampler of masks for a policy that has none.

    Raises:
        UserError: that.
    """
    noise = getattr(policy, "noise", "mask")
    if noise not in ("mask", sampler.noise):  # type: ignore[attr-defined]
        raise UserError(
            f"{sampler.__name__} fills masks, but this model has none: it denoises {noise} noise; take a sampler that "
            "does, such as EntropyBoundRenoising"
        )


def check_blocks(sampler: Any, policy: Any) -> None:
    """Refuses a sampler that cannot decode from a policy.

    Raises:
        UserError: its blocks are not whole blocks of the policy's, or it fills masks and the policy has none.
    """
    check_noise(type(sampler), policy)
    check_cache(sampler, policy)
    name = type(sampler).__name__
    size = getattr(policy, "block_size", None)
    if size is not None and sampler.block_length % size:
        raise UserError(
            f"{name}.block_length is {sampler.block_length}, but the model denoises in blocks of {size}: set "
            f"{name}.block_length = {size}, or a multiple of it"
        )


def most_steps(length: int, block_length: int, per_step: int, begins_anywhere: bool) -> int:
    """Denoising steps of a completion, at most: each block takes ceil(positions / per_step).

    Args:
        length, block_length, per_step: L, positions of a block, positions of a step.
        begins_anywhere: the completion may begin inside a block (``Policy.block_offset``).
    """
    firsts = range(1, min(block_length, length) + 1) if begins_anywhere else (min(block_length, length),)
    return max(_steps(length, first, block_length, per_step) for first in firsts)


def _steps(length: int, first: int, block_length: int, per_step: int) -> int:
    full, last = divmod(length - first, block_length)
    return -(-first // per_step) + full * -(-block_length // per_step) + -(-last // per_step)
