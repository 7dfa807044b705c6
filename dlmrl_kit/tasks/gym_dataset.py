"""Generators of reasoning-gym for tasks that score by rules of their own; its scorers are not called."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol


class GymDataset(Protocol):
    """A dataset of reasoning-gym: entry n = 0, 1, 2, ... without end."""

    def __getitem__(self, number: int, /) -> dict[str, Any]:
        """Returns an entry: ``question``, ``answer``, and ``metadata`` with what the question was made of."""


def gym_dataset(name: str, seed: int, **config: int) -> GymDataset:
    """Returns a dataset of reasoning-gym whose stream of entries is one of its own for every seed.

    reasoning-gym seeds entry n with ``seed + n``, so that the streams of seeds 0 and 1 are one stream shifted by one.
    Here seeds are hashed first.

    Args:
        name: of the dataset in reasoning-gym.
        seed: of the stream.
        config: parameters of the dataset.
    """
    import reasoning_gym

    dataset: GymDataset = reasoning_gym.create_dataset(name, seed=start_of_stream(name, seed), **config)
    return dataset


def start_of_stream(name: str, seed: int) -> int:
    """Returns the seed that reasoning-gym is given, for a dataset's name and the seed of a stream."""
    return int.from_bytes(hashlib.sha256(f"{name} {seed}".encode()).digest()[:8], "big")
