"""Checks of corrections: weights of 1 where nothing drifted, and none that is negative or carries a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmrl_kit.corrections.base import Correction
from dlmrl_kit.testing.core import attempt, fail

SHAPE = (4, 5)


def _weights(name: str, component: Correction, log_ratio: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    fix = "return (weights, truncated), [B, N] or [B, 1] each, from log_ratio [B, N] and used bool [B, N]"
    with attempt(name, "asked for weights", fix):
        weights, truncated = component.weights(log_ratio, used)
    for part in (weights, truncated):
        if tuple(part.shape) not in (SHAPE, (SHAPE[0], 1)):
            fail(name, f"gives weights or truncated of shape {list(part.shape)} for log_ratio {list(SHAPE)}", fix)
    if truncated.dtype != torch.bool or weights.dtype != log_ratio.dtype:
        fail(name, f"gives {weights.dtype} and {truncated.dtype} for log_ratio {log_ratio.dtype}", fix)
    return weights, truncated


def _case(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    log_ratio = 2 * torch.randn(SHAPE, generator=generator, dtype=dtype)
    used = torch.arange(SHAPE[1]) < torch.tensor([[5], [3], [1], [0]])
    return log_ratio, used


def check_on_policy(name: str, component: Correction) -> None:
    """Where what was sampled from is the policy, every weight is 1 and none is truncated."""
    used = _case(torch.float64)[1]
    weights, truncated = _weights(name, component, torch.zeros(SHAPE, dtype=torch.float64), used)
    if bool((weights != 1).any() | truncated.any()):
        fail(name, "changes weights although the ratio is 1", "return exactly 1 at log_ratio 0")


def check_weights(name: str, component: Correction) -> None:
    """Weights are finite, not negative, constants, and do not depend on what entries without a step hold."""
    for dtype in (torch.float32, torch.float64):
        log_ratio, used = _case(dtype)
        for ratio in (log_ratio, 1000 * log_ratio):
            weights, _ = _weights(name, component, ratio.clone().requires_grad_(), used)
            if weights.requires_grad:
                fail(name, "gives weights with a gradient", "detach them: a weight is a constant of the loss")
            if not bool((weights.isfinite() & (weights >= 0)).all()):
                fail(name, "gives weights that are negative or not finite", "clamp log_ratio before exp (see ratios)")
        garbage = torch.where(used, log_ratio, torch.nan)
        clean, dirty = (_weights(name, component, values, used)[0].expand(SHAPE) for values in (log_ratio, garbage))
        if not torch.equal(clean[used], dirty[used]):
            fix = "replace what they hold first (core.trajectory.where_used)"
            fail(name, "lets entries without a step change the weights of others", fix)


CHECKS = (check_on_policy, check_weights)
