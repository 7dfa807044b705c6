"""Random numbers without hidden state: every draw comes from a seed derived from (seed, update, purpose).

A resumed run needs no stored generator states, and no component's draws depend on how many another made.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that is a stable hash of ``seed`` and ``names``."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(device: torch.device | str, seed: int, *names: str | int) -> torch.Generator:
    """A fresh generator on ``device``, seeded with ``derive_seed(seed, *names)``."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


def sample_seeds(count: int, device: torch.device | str, seed: int, *names: str | int) -> Tensor:
    """A seed of its own for each of ``count`` samples: int64 [count]."""
    base = derive_seed(seed, *names)
    return _mix(base + torch.arange(count, dtype=torch.int64, device=device) * _STRIDE)


def uniforms(seed: Tensor, *shape: int, purpose: str = "") -> Tensor:
    """Uniform numbers in [0, 1) that depend on each row's seed alone: float64 [B, *shape] from int64 [B].

    A counter-based generator (SplitMix64, Steele et al. 2014): row b, entry j is a hash of (seed_b, purpose, j), so
    neither the rows beside it nor how a batch is cut changes a number.

    Args:
        seed: int64 [B], as ``sample_seeds`` gives.
        shape: of each row's numbers.
        purpose: numbers for different purposes are independent.
    """
    own = _mix(seed ^ derive_seed(0, purpose))
    count = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64, device=seed.device)
    bits = _mix(own[:, None] + count * _STRIDE)
    return (_shift(bits, 11).double() * 2.0**-53).reshape(len(seed), *shape)


def combine_seeds(seed: Tensor, number: Tensor) -> Tensor:
    """A new seed for each pair of a seed and a number: int64 [B] from int64 [B] and integer [B]."""
    return _mix(_mix(seed) + number.long() * _STRIDE)


_STRIDE = -7046029254386353131  # 2^64 / golden ratio, as a signed number


def _shift(values: Tensor, by: int) -> Tensor:
    """Logical right shift of int64."""
    return (values >> by) & ((1 << (64 - by)) - 1)


def _mix(values: Tensor) -> Tensor:
    values = (values ^ _shift(values, 30)) * -4658895280553007687
    values = (values ^ _shift(values, 27)) * -7723592293110705685
    return values ^ _shift(values, 31)
