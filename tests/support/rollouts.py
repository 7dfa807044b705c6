"""The samplers that tests go through, prompts, and trajectories with every key."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from support.seeds import seeded
from tensordict import TensorDict

from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.margin_order import MarginOrder
from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder
from dlmrl_kit.samplers.random_order import RandomOrder

STATE_SCORE = (RandomOrder, EntropyOrder, MarginOrder, LeftToRight, ConfidenceThreshold)
SAMPLERS: tuple[type[Sampler], ...] = (LowConfidence, PlackettLuceOrder, *STATE_SCORE)


OF_ANOTHER = ("Continuous", "Speculative")
"""Samplers that take another one as a setting, and sample what it does: tests/samplers/test_continuous.py."""
ALIKE = ("TemperedLowConfidence", "TemperedEntropyOrder", "TemperedMarginOrder")
"""Samplers that differ from another one, which every run tries, in what they rank by."""


def members(names: Iterable[str]) -> list[Any]:
    """Parameters for a test: the samplers in ``ALIKE`` and ``OF_ANOTHER`` are left to the thorough run."""
    late = (*ALIKE, *OF_ANOTHER)
    return [pytest.param(name, marks=pytest.mark.thorough) if name in late else name for name in names]


def make(cls: type[Sampler], length: int, tokens_per_step: int = 1, **options: Any) -> Sampler:
    """A sampler; ``tokens_per_step`` is left out where the class has none."""
    if cls is ConfidenceThreshold:
        return ConfidenceThreshold(length, **{"threshold": 0.5, **options})
    return cls(length, tokens_per_step, **options)


def prompts(policy: TransformersPolicy, rows: int = 6, width: int = 4, seed: int = 0) -> TensorDict:
    """Left-padded prompts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, len(policy.tokenizer), (rows, width), generator=generator)
    mask = torch.arange(width) >= (torch.arange(rows) % width)[:, None]
    return TensorDict({"prompt_ids": ids.masked_fill(~mask, policy.pad_id), "prompt_mask": mask}, [rows])


def roll_out(
    sampler: Sampler, policy: Any, prompt: TensorDict, seed: int = 0, everything: bool = True, **given: Any
) -> Any:
    """A trajectory with every on-demand key, and all its steps selected; ``given``: to the sampler."""
    given = {"keys": sampler.optional_keys if everything else (), **given}
    trajectory = sampler(seeded(prompt, seed), policy=policy, **given)
    valid = trajectory["step", "valid"]
    trajectory["selected", "step"] = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    trajectory["selected", "weight"] = valid.to(trajectory["step", "log_prob"].dtype)
    return trajectory


def no_prompt(rows: int) -> TensorDict:
    """Prompts of one token."""
    return TensorDict(
        {"prompt_ids": torch.zeros(rows, 1, dtype=torch.int64), "prompt_mask": torch.ones(rows, 1, dtype=torch.bool)},
        [rows],
    )


def subsets(positions: list[int]) -> list[tuple[int, ...]]:
    """All non-empty subsets."""
    sizes = range(1, len(positions) + 1)
    return [s for size in sizes for s in itertools.combinations(positions, size)]


def sampler_of(cls: type[Sampler], **options: Any) -> Sampler:
    return cls(4, **({"threshold": 0.6} if cls is ConfidenceThreshold else {}), **options)
