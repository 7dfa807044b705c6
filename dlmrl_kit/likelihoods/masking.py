"""Random masks over the tokens of a segment: which are masked in a copy, and how many.

A copy starts from the state before the segment: a random subset of the segment's tokens stays masked, and these are
scored; the others are filled in. What is masked there for another reason (committed later, or not scored at all) stays
masked. With the whole completion as the segment, this is a partly masked completion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmrl_kit.likelihoods.segments import Copies, Segments


def partly_masked(segments: Segments, chosen: Tensor) -> Copies:
    """Makes copies in which the targets in ``chosen`` (bool [R, M, L]) are masked and scored, the others visible."""
    targets = segments.targets[:, None]
    scored = targets & chosen
    return Copies(segments.masked[:, None] & ~(targets & ~chosen), scored)


def each_with(segments: Segments, share: Tensor) -> Tensor:
    """Chooses every position on its own with probability ``share`` [R]: bool [R, 1, L]."""
    return segments.position_uniforms("mask") < share[:, None, None]


def first_of(candidates: Tensor, order: Tensor, count: Tensor) -> Tensor:
    """Chooses the ``count`` [R, M] candidates (bool [R, M, L]) that are smallest in ``order``, of the same shape."""
    rank = order.masked_fill(~candidates, torch.inf).argsort(stable=True, dim=-1).argsort(-1)
    return (rank < count[..., None]) & candidates


def count_from(uniform: Tensor, smallest: int, largest: Tensor) -> Tensor:
    """Turns numbers in [0, 1) into integers, uniform on ``smallest`` .. ``largest`` (int64 of the same shape)."""
    return (uniform * (largest - smallest + 1)).floor().long() + smallest


def inverse_share(copies: Copies, segments: Segments) -> Tensor:
    """Returns the number of tokens over the number of scored ones, float64 [R, M, 1]; finite where none is scored."""
    total = segments.targets.sum(-1)[:, None]
    return (total.double() / copies.scored.sum(-1).clamp(min=1))[..., None]
