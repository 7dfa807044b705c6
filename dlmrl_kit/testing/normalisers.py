"""Checks of normalisers: numerator and count add up over samples, and nothing counts where no token does."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_TOKEN_LOG_PROB, SELECTED_TOKEN_MASK, SELECTED_WEIGHT
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.running import equal
from dlmrl_kit.testing.world import GROUPS, world

Case = tuple[Tensor, Tensor, Tensor]
PIECES = tuple((row,) for row in range(len(GROUPS)))
"""Micro-batches of one sample each."""


def _cases() -> Iterator[Case]:
    """Returns values with gradient-like noise, masks and weights: float32, float64, and a batch without any token."""
    for dtype in (torch.float32, torch.float64):
        full = world(dtype).full
        weight = full[SELECTED_WEIGHT]
        mask = full[SELECTED_TOKEN_MASK] & (weight != 0)[..., None]
        values = full[SELECTED_TOKEN_LOG_PROB]
        yield values, mask, weight
        yield values, torch.zeros_like(mask), weight
        yield values, torch.zeros_like(mask), torch.zeros_like(weight)


def _called(name: str, component: Normaliser, mask: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    fix = "take a mask bool [B, K, C] and weights [B, K] of any shape; compute into new tensors"
    with attempt(name, "asked for shares and count", fix):
        return component.shares(mask, weight), component.count(mask, weight)


def check_shares(name: str, component: Normaliser) -> None:
    """Shares are finite, shaped as the mask, of the weights' dtype, 0 outside the mask; the count is a scalar."""
    for _, mask, weight in _cases():
        before = mask.clone(), weight.clone()
        shares, count = _called(name, component, mask, weight)
        if shares.shape != mask.shape or shares.dtype != weight.dtype:
            problem = f"gives shares {[shares.dtype, list(shares.shape)]} for {[weight.dtype, list(mask.shape)]}"
            fail(name, problem, "give one share per token: mask.to(weight.dtype), times or over something")
        if not shares.isfinite().all() or (shares < 0).any():
            fail(name, "gives shares that are negative or not finite", "replace a number of tokens of 0 by 1 first")
        if shares[~mask].any():
            fail(name, "gives tokens outside the mask a share", "multiply by the mask")
        if count.shape != () or not count.isfinite() or count < 0:
            fail(name, f"counts {count}", "count returns a finite scalar, at least 0")
        if not (equal(before[0], mask) and equal(before[1], weight)):
            fail(name, "changes the mask or the weights", "use no operation that ends in _ on them")


def check_additive(name: str, component: Normaliser) -> None:
    """Numerator and count of a batch are the sums of those of its pieces: micro-batches accumulate exactly."""
    fix = "let shares depend on the sample alone, and count be a sum over samples"
    for values, mask, weight in _cases():
        shares, count = _called(name, component, mask, weight)
        parts = [(rows, *_called(name, component, mask[list(rows)], weight[list(rows)])) for rows in PIECES]
        for rows, part, _ in parts:
            if not equal(part, shares[list(rows)], 1e-5):
                fail(name, "gives tokens of a sample another share when the batch holds other samples", fix)
        added = sum(float(part) for _, _, part in parts)
        if abs(added - float(count)) > 1e-5 * max(1.0, added):
            fail(name, f"counts {float(count):g} in a batch and {added:g} in its pieces together", fix)
        total = component.total(values, mask, weight)
        joined = sum(float(component.total(*(x[list(rows)] for x in (values, mask, weight)))) for rows in PIECES)
        if abs(joined - float(total)) > 1e-4 * max(1.0, abs(joined)):
            fail(name, f"sums to {float(total):g} in a batch and {joined:g} in its pieces together", fix)


def check_segment_shares(name: str, component: Normaliser) -> None:
    """If it says ``segmentwise``, a token has the same share when the other segments of its sample are left out."""
    if not component.segmentwise:
        return
    for _, mask, weight in _cases():
        shares, _ = _called(name, component, mask, weight)
        for segment in range(mask.shape[1]):
            only = torch.arange(mask.shape[1]) == segment
            alone, _ = _called(name, component, mask & only[:, None], weight * only)
            if not equal(alone[:, segment], shares[:, segment], 1e-6):
                problem = "says segmentwise = True, but a token's share depends on the other segments of its sample"
                fail(name, problem, "set segmentwise = False: samples are then not cut between their segments")


def check_padding_of_tokens(name: str, component: Normaliser) -> None:
    """Values outside the mask (NaN) reach neither the numerator nor its gradient."""
    for values, mask, weight in _cases():
        leaf = torch.where(mask, values, torch.nan).requires_grad_()
        total = component.total(leaf, mask, weight)
        clean = component.total(values, mask, weight)
        (gradient,) = torch.autograd.grad(total, leaf)
        if not equal(total.detach(), clean) or not gradient.isfinite().all() or gradient[~mask].any():
            fail(name, "lets what is outside the mask into the sum", "replace it first: torch.where(mask, values, 0)")


CHECKS = (check_shares, check_additive, check_segment_shares, check_padding_of_tokens)
