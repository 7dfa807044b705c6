"""Counts the positions that a cached rollout computes, from its trajectories alone."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.keys import PROMPT_IDS, PROMPT_MASK, STEP_VALID
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.trajectory import states
from dlmrl_kit.samplers.base import Sampler


def cached_positions(trajectory: TensorDictBase, cache: Cache, sampler: Sampler, policy: Policy) -> tuple[int, int]:
    """Counts positions of each sample by itself, without padding.

    Samples whose anchors are equal share them, and padding takes more; both depend on what is in a batch, and these
    numbers do not.

    Args:
        trajectory: [B], a rollout.
        cache: that it was sampled with.
        sampler: of the rollout.
        policy: the denoiser.

    Returns:
        How many were computed, for anchors and in windows, and how many an exact rollout of it computes.
    """
    window = cache.window(policy, sampler.completion_length, sampler.block_length)
    prompt, valid = trajectory[PROMPT_IDS].long(), trajectory[STEP_VALID]
    size = trajectory[PROMPT_MASK].sum(-1) + sampler.completion_length
    computed = torch.zeros_like(size)
    before: Tensor | None = None
    for step in range(valid.shape[1]):
        at = torch.full((len(trajectory), 1), step, device=prompt.device)
        ids = torch.cat([prompt, states(trajectory, at, policy.mask_id).squeeze(1)], dim=1)
        span = window.of(ids)
        new = torch.ones_like(valid[:, 0]) if before is None else (span.anchor != before).any(-1)
        # What is its own anchor is computed with it, where there are anchors within a block.
        apart = (span.anchor != ids).any(-1) if window.within or window.cell == 1 else torch.ones_like(new)
        computed += valid[:, step] * (new * size + apart * (span.end - span.start))
        before = span.anchor
    return int(computed.sum()), int((valid.sum(-1) * size).sum())
