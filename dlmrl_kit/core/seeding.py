"""Random numbers without hidden state: every draw comes from a seed derived from (seed, update, purpose).

So a resumed run needs no stored generator states, and the draws of one component do not depend on those of another.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor


def derive_seed(seed: int, *names: str | int) -> int:
    """Hashes ``seed`` and ``names`` into a seed of 63 bits; the same in every process and version of Python."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(device: torch.device | str, seed: int, *names: str | int) -> torch.Generator:
    """Makes a generator on ``device``, seeded with ``derive_seed(seed, *names)``."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


def sample_seeds(count: int, device: torch.device | str, seed: int, *names: str | int) -> Tensor:
    """Derives a different seed for each of ``count`` samples: int64 [count]."""
    base = derive_seed(seed, *names)
    return _mix(base + torch.arange(count, dtype=torch.int64, device=device) * _STRIDE)


def uniforms(seed: Tensor, *shape: int, purpose: str = "") -> Tensor:
    """Draws uniform numbers in [0, 1) for each row from the row's seed alone.

    The generator is counter-based (SplitMix64, Steele et al. 2014): number j of row b is a hash of (seed_b, purpose,
    j), so neither the other rows nor the way a batch is cut can change it.

    Args:
        seed: int64 [B], as ``sample_seeds`` gives.
        shape: of each row's numbers.
        purpose: numbers for different purposes are independent.

    Returns:
        float64 [B, *shape].
    """
    own = _mix(seed ^ derive_seed(0, purpose))
    count = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64, device=seed.device)
    bits = _mix(own[:, None] + count * _STRIDE)
    return (_shift(bits, 11).double() * 2.0**-53).reshape(len(seed), *shape)


def combine_seeds(seed: Tensor, number: Tensor) -> Tensor:
    """Derives a new seed from each pair of a seed and a number: int64 [B] from int64 [B] and integer [B]."""
    return _mix(_mix(seed) + number.long() * _STRIDE)


_STRIDE = -7046029254386353131  # 2^64 / golden ratio, as a signed number


def _shift(values: Tensor, by: int) -> Tensor:
    """Shifts int64 to the right as if it were unsigned."""
    return (values >> by) & ((1 << (64 - by)) - 1)


def _mix(values: Tensor) -> Tensor:
    values = (values ^ _shift(values, 30)) * -4658895280553007687
    values = (values ^ _shift(values, 27)) * -7723592293110705685
    return values ^ _shift(values, 31)
