"""Random numbers without hidden state: every draw comes from a seed derived from (seed, update, purpose).

So a resumed run needs no stored generator states, and the draws of one component do not depend on those of another.
What is drawn for a sample comes from the sample's own seed (the key ``seed``, int64 [B]) and the denoising step:
neither the other samples of a batch, nor their order, nor how batches are cut, nor the device can change it.
"""

from __future__ import annotations

import hashlib
import math

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.keys import SEED


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
    number = torch.arange(math.prod(shape), dtype=torch.int64, device=seed.device)
    return _hashed(_own(seed, purpose)[:, None], number).reshape(len(seed), *shape)


def uniforms_at(seed: Tensor, rows: Tensor, number: Tensor, purpose: str = "") -> Tensor:
    """Draws some of the numbers of ``uniforms``: float64 [N], number ``number`` (int64 [N]) of ``rows`` (int64 [N])."""
    return _hashed(_own(seed, purpose)[rows], number)


def combine_seeds(seed: Tensor, number: Tensor | int) -> Tensor:
    """Derives a new seed from each seed and a number: int64 [B] from int64 [B] and integer [B], or one for all."""
    step = number.long() * _STRIDE if isinstance(number, Tensor) else _wrapped(number * _STRIDE)
    return _mix(_mix(seed) + step)


def seeds_of(tensordict: TensorDictBase, reader: object) -> Tensor:
    """Returns the seed of each sample, int64 [B].

    Args:
        tensordict: [B], with the key ``seed``.
        reader: the component that draws, for the message.

    Raises:
        UserError: there is no seed.
    """
    found: Tensor | None = tensordict.get(SEED, None)
    if found is None:
        raise UserError(
            f"{type(reader).__name__} draws from the seed of each sample, the key {SEED!r} (int64 [B]), which is "
            f"missing: prompt_batch(..., seed=0) sets it, or seeding.sample_seeds(B, device, 0) makes one"
        )
    return found


_STRIDE = -7046029254386353131  # 2^64 / golden ratio, as a signed number


def _own(seed: Tensor, purpose: str) -> Tensor:
    return _mix(seed ^ derive_seed(0, purpose))


def _hashed(own: Tensor, number: Tensor) -> Tensor:
    """Turns numbers counted from 0 into uniform ones, float64, of the same shape as ``own + number``."""
    bits = _mix(own + (number + 1) * _STRIDE)
    return _shift(bits, 11).double() * 2.0**-53


def _wrapped(number: int) -> int:
    """Returns a whole number as int64 arithmetic would give it."""
    return (number + 2**63) % 2**64 - 2**63


def _shift(values: Tensor, by: int) -> Tensor:
    """Shifts int64 to the right as if it were unsigned."""
    return (values >> by) & ((1 << (64 - by)) - 1)


def _mix(values: Tensor) -> Tensor:
    values = (values ^ _shift(values, 30)) * -4658895280553007687
    values = (values ^ _shift(values, 27)) * -7723592293110705685
    return values ^ _shift(values, 31)
