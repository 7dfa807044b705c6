"""Results that are computed again in the backward pass, to save memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def recomputed(function: Callable[..., T], *given: Tensor) -> T:
    """Calls ``function(*given)`` and, to save memory, computes its intermediate results again in the backward pass."""
    if not torch.is_grad_enabled():
        return function(*given)
    found: T = checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)
    return found
