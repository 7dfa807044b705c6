"""Batches whose samples have seeds, from which all noise comes."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDict

from dlmrl_kit.core.seeding import sample_seeds


def seeded(batch: Any, seed: int = 0) -> TensorDict:
    """A copy of the batch with a seed for each sample."""
    copy: TensorDict = batch.clone()
    return copy.set("seed", sample_seeds(len(batch), "cpu", seed))
