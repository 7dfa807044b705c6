"""What every rollout must be, whoever sampled it: tokens of the vocabulary, decoded step by step as the sampler says.

These checks need no forward of the policy. ``training.guard`` says when they run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.errors import TrainingError
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    PROMPT_MASK,
    STEP_ACCEPTED,
    STEP_LOG_PROB,
    STEP_NUM_COMMITTED,
    STEP_VALID,
)
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.trajectory import committed_at, masked_at, num_valid
from dlmrl_kit.samplers.base import Sampler

ENTRIES = 2**24
"""Entries of a tensor [rows, T, L] that is looked at in one go."""


class Fault(NamedTuple):
    """Where a trajectory is not valid.

    Attributes:
        wrong: bool [B] or [B, n], the samples, and their steps or positions.
        axis: what the second dimension counts: ``step`` or ``position``; "" if there is none.
        says: what is wrong there.
        cause: what it probably comes from.
        values: of the shape of ``wrong``, shown where it is wrong; None: nothing is.
    """

    wrong: Tensor
    axis: str
    says: str
    cause: str
    values: Tensor | None = None

    def __str__(self) -> str:
        where = self.wrong.nonzero()[0].tolist()
        place = f"sample {where[0]}" + (f", {self.axis} {where[1]}" if self.axis else "")
        shown = "" if self.values is None else f" {self.values[tuple(where)].item()}"
        return f"the rollout is not valid: {place} {self.says}{shown}; likely cause: {self.cause}"


def check_trajectory(trajectory: TensorDictBase, sampler: Sampler, policy: Policy) -> None:
    """Checks the form of sampled trajectories.

    Args:
        trajectory: [B], with the keys that the sampler writes.
        sampler: what they are to have been sampled with.
        policy: for its vocabulary and blocks.

    Raises:
        TrainingError: tokens outside the vocabulary or forbidden, masks that are left, log-probabilities that are no
            finite numbers of full precision, steps with gaps or with other counts than recorded, commits outside of the
            current block, or a text that ends earlier or later than the sampler ends it.
    """
    scored = STEP_LOG_PROB in trajectory.keys(include_nested=True)  # else the completions are not the policy's
    dtype = trajectory[STEP_LOG_PROB].dtype if scored else policy.real_dtype
    if dtype != policy.real_dtype:
        raise TrainingError(
            f"the rollout is not valid: {STEP_LOG_PROB!r} is {dtype}, not {policy.real_dtype}; likely "
            "cause: log-probabilities were computed or sent in another precision, which moves ratios away from 1"
        )
    for faults in (_tokens, _steps, _order) if scored else (_tokens,):
        for fault in faults(trajectory, sampler, policy):
            if bool(fault.wrong.any()):
                raise TrainingError(str(fault))


def _tokens(trajectory: TensorDictBase, sampler: Sampler, policy: Policy) -> Iterator[Fault]:
    ids, commit = trajectory[COMPLETION_IDS], trajectory[COMMIT_STEP]
    vocabulary = f"of the {policy.vocab_size} tokens of the vocabulary"
    other = "another tokenizer or model than the policy's"
    yield Fault((ids < 0) | (ids >= policy.vocab_size), "position", f"holds none {vocabulary}:", other, ids)
    left = "sampling was cut short, or finished rows are not filled"
    yield Fault(ids == policy.mask_id, "position", "still holds the mask", left)
    never = commit >= trajectory[STEP_VALID].shape[1]
    forbidden = torch.isin(ids, torch.tensor([*policy.forbidden_ids], dtype=ids.dtype, device=ids.device)) & ~never
    yield Fault(forbidden, "position", "holds a token that may not be sampled:", "forbidden tokens were sampled", ids)


def _steps(trajectory: TensorDictBase, sampler: Sampler, policy: Policy) -> Iterator[Fault]:
    commit, valid = trajectory[COMMIT_STEP].long(), trajectory[STEP_VALID]
    steps, happened = valid.shape[1], num_valid(trajectory)[:, None]
    number = torch.arange(steps, device=valid.device)
    counting = "steps are not counted 0, 1, 2, ... (off by one?)"
    yield Fault(happened.squeeze(-1) < 1, "", "has no denoising step", "an empty answer")
    yield Fault(valid != (number < happened), "step", 'breaks the row of ("step", "valid")', counting)
    outside = (commit < 0) | ((commit >= happened) & (commit < steps)) | (commit > steps)
    yield Fault(outside, "position", "was committed in a step that did not happen:", counting, commit)
    accepted = trajectory.get(STEP_ACCEPTED, None)  # of samplers that draw positions again
    if accepted is None:
        ones = torch.ones_like(commit)
        count = ones.new_zeros(len(commit), steps + 1).scatter_add_(1, commit, ones)[:, :steps]
    else:
        count = accepted.sum(-1)
    other = count != trajectory[STEP_NUM_COMMITTED]
    yield Fault(other, "step", 'commits other than ("step", "num_committed") positions:', counting, count)
    many = valid & ((count < 1) | (count > sampler.max_commits))
    yield Fault(many, "step", f"commits not 1 to {sampler.max_commits} positions but", "other steps", count)
    finite = torch.isfinite(trajectory[STEP_LOG_PROB]) | ~valid
    yield Fault(~finite, "step", "has a log-probability of", "a token that cannot be drawn", trajectory[STEP_LOG_PROB])
    above = valid & (trajectory[STEP_LOG_PROB] > 1e-3)
    yield Fault(above, "step", "has a log-probability above 0:", "a density, or a sign", trajectory[STEP_LOG_PROB])


def _order(trajectory: TensorDictBase, sampler: Sampler, policy: Policy) -> Iterator[Fault]:
    """Yields texts that end too early or too late, and commits outside of the current block."""
    ids, commit, happened = trajectory[COMPLETION_IDS], trajectory[COMMIT_STEP].long(), num_valid(trajectory)
    never, end = commit >= trajectory[STEP_VALID].shape[1], "another treatment of the end of text"
    filler = f"was never committed and does not hold the filler {policy.filler_id} but"
    yield Fault(never & (ids != policy.filler_id), "position", filler, end, ids)
    if STEP_ACCEPTED in trajectory.keys(include_nested=True):  # states that are not rebuilt from masks
        return
    for steps, running in ((happened, False), (happened - 1, True)):
        state = ids.masked_fill(commit >= steps[:, None], policy.mask_id)
        wrong = sampler.running(state, policy) != running
        said = "goes on although it was finished before its last step" if running else "ends before it is finished"
        yield Fault(wrong, "", said, end)
    offset = policy.block_offset(trajectory[PROMPT_MASK])
    number = torch.arange(trajectory[STEP_VALID].shape[1], device=ids.device)
    rows = max(ENTRIES // (len(number) * ids.shape[1]), 1)
    outside = []
    for first in range(0, len(ids), rows):
        part = commit[first : first + rows]
        step = number.expand(len(part), -1)
        own = None if offset is None else offset[first : first + rows].repeat_interleave(len(number))
        allowed = sampler.allowed(masked_at(part, step).flatten(0, 1), own).view(len(part), len(number), -1)
        outside.append((committed_at(part, step) & ~allowed).any(1))
    yield Fault(
        torch.cat(outside), "position", "was committed outside of its block's turn, in step", "block_length", commit
    )
