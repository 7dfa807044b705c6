"""All sets of positions, for the samplers that list their choices of positions."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def subsets(allowed: Tensor, count: Tensor) -> list[Tensor]:
    """Lists the sets of ``count`` [B] positions of ``allowed``: bool [B, L] each, empty in rows without that set."""
    length = allowed.shape[-1]
    sizes = sorted({int(size) for size in count if size > 0})
    sets = [s for size in sizes for s in itertools.combinations(range(length), size)]
    masks = []
    for positions in sets:
        mask = torch.zeros_like(allowed)
        mask[:, list(positions)] = True
        possible = (mask <= allowed).all(-1) & (count == len(positions))
        masks.append(mask & possible[:, None])
    return masks
