"""Counts the positions that a cached rollout computes, from its trajectories alone."""

from __future__ import annotations

from dataclasses import replace

import torch
from tensordict import TensorDictBase
from torch import nn

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.keys import COMMIT_STEP, PROMPT_MASK, STEP_VALID
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.trajectory import masked_at
from dlmrl_kit.core.window import Window
from dlmrl_kit.samplers.base import Sampler

POSITIONS_AT_ONCE = 2**18
"""The states of so many samples are compared at once that they have about so many positions."""


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
    read = trajectory.select(PROMPT_MASK, COMMIT_STEP, STEP_VALID)
    at_once = max(POSITIONS_AT_ONCE // (read[STEP_VALID].shape[1] * sampler.completion_length), 1)
    found = [_counted(piece, window) for piece in read.split(at_once)]
    return sum(computed for computed, _ in found), sum(exact for _, exact in found)


def _counted(trajectory: TensorDictBase, window: Window) -> tuple[int, int]:
    """Does the same for some samples, whose states are in memory together."""
    valid, commit = trajectory[STEP_VALID], trajectory[COMMIT_STEP]
    size = (trajectory[PROMPT_MASK].sum(-1) + window.completion_length)[:, None]
    step = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    # What counts is where masks are: a state is 1 there, else 0. Of the prompt a window has at most the last position.
    ids = nn.functional.pad(masked_at(commit, step).to(torch.int8), (1, 0))
    span = replace(window, mask_id=1).of(ids.flatten(0, 1))
    anchor, width = span.anchor.view_as(ids), (span.end - span.start).view_as(valid)
    new = torch.ones_like(valid)
    new[:, 1:] = (anchor[:, 1:] != anchor[:, :-1]).any(-1)
    # What is its own anchor is computed with it, where there are anchors within a block.
    apart = (anchor != ids).any(-1) if window.within or window.cell == 1 else torch.ones_like(valid)
    computed = valid * (new * size + apart * width)
    return int(computed.sum()), int((valid * size).sum())
