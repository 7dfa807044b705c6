"""Random numbers without hidden state: every draw comes from a seed derived from (seed, update, purpose).

A resumed run needs no stored generator states, and no component's draws depend on how many another made.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that is a stable hash of ``seed`` and ``names``."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(device: torch.device | str, seed: int, *names: str | int) -> torch.Generator:
    """A fresh generator on ``device``, seeded with ``derive_seed(seed, *names)``."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))
