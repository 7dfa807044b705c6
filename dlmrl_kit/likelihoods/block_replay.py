"""Exact step replay of block-causal models, all blocks in parallel (TraceRL, arXiv 2509.06949; DiPO, arXiv 2512.22234).

Round j scores, in every block, the tokens committed in the j-th of its steps, given the earlier blocks and what the
block held before that step. A forward takes the clean completion and a noised copy (``BlockCausalPolicy.replayed``):
a row needs as many forwards of P + 2 L tokens as the most steps of a block, not one of P + L tokens for each step.
``StepTokenLogProb`` does not take these either: its states share blocks (``policies.shared_blocks``), and it computes
fewer positions. This is the published way.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    PROMPT_IDS,
    PROMPT_MASK,
    SELECTED_DISTRIBUTION,
    SELECTED_ENTROPY,
    SELECTED_LOG_PROB,
    SELECTED_TOKEN_LOG_PROB,
    Key,
)
from dlmrl_kit.core.policy import Policy, log_probs_of
from dlmrl_kit.core.registry import register
from dlmrl_kit.likelihoods.steps import Replay, StepTokenLogProb, pack, replay
from dlmrl_kit.policies.block_causal import BlockCausalPolicy
from dlmrl_kit.samplers.base import Sampler


@register(
    "likelihood",
    paper="arXiv 2509.06949; arXiv 2512.22234",
    unbiased=True,
    under="samplers that choose positions from the state alone, with sampling_temperature=True",
)
class BlockReplay(StepTokenLogProb):
    """Computes what ``StepTokenLogProb`` computes, with fewer forwards, for block-causal policies.

    Arguments, keys and values are the same. Where blocks cannot be replayed in parallel, every step has a forward of
    its own, as in ``StepTokenLogProb``: for policies that are not block-causal, samplers whose blocks are not the
    policy's or that draw positions again, and when ``distribution`` or ``entropy`` is asked for.

    Args:
        sampling_temperature: as ``StepTokenLogProb``.
    """

    def forward(
        self, tensordict: TensorDictBase, *, policy: Policy, sampler: Sampler, keys: Collection[Key] = ()
    ) -> TensorDictBase:
        """Adds ``out_keys`` and the on-demand ``keys``; see ``Likelihood.forward``."""
        rebuilt = sampler.records_tokens and not {SELECTED_DISTRIBUTION, SELECTED_ENTROPY} & {*keys}
        if not (rebuilt and isinstance(policy, BlockCausalPolicy) and sampler.block_length == policy.block_size):
            return super().forward(tensordict, policy=policy, sampler=sampler, keys=keys)
        steps = replay(tensordict, policy.mask_id)
        log_probs = self._replay(tensordict, steps, policy, sampler)
        row, committed = steps.used.nonzero(as_tuple=True)[0], steps.decision.committed
        own = log_probs[row]
        tensordict.set(SELECTED_LOG_PROB, steps.scatter((own * committed).sum(-1)))
        if SELECTED_TOKEN_LOG_PROB in keys:
            tensordict.set(SELECTED_TOKEN_LOG_PROB, steps.scatter(pack(own[committed], committed, sampler.max_commits)))
        return tensordict

    def _replay(self, tensordict: TensorDictBase, steps: Replay, policy: BlockCausalPolicy, sampler: Sampler) -> Tensor:
        """Returns the log-probability that each token of a selected step had when committed, 0 elsewhere: [B, L]."""
        tokens, prompt_mask = tensordict[COMPLETION_IDS], tensordict[PROMPT_MASK]
        chosen = steps.scatter(steps.decision.committed.long()).any(1)
        turn = rounds(tensordict[COMMIT_STEP].long(), policy.block_offset(prompt_mask), policy.block_size)
        count = int(turn[chosen].max()) + 1 if bool(chosen.any()) else 0
        turns = torch.arange(count, device=tokens.device)[:, None]
        scored = (turn[:, None] == turns) & chosen[:, None]
        row, number = scored.any(-1).nonzero(as_tuple=True)
        noised = tokens[row].masked_fill(turn[row] >= number[:, None], policy.mask_id)
        scored = scored[row, number]
        features = policy.replayed(tensordict[PROMPT_IDS][row], prompt_mask[row], tokens[row], noised, scored)
        behaviour = sampler.behaviour if self.sampling_temperature else None
        picked = log_probs_of(policy, features, tokens[row][scored], behaviour)
        flat, position = scored.nonzero(as_tuple=True)
        return picked.new_zeros(tokens.shape).index_put((row[flat], position), picked)


def rounds(commit_step: Tensor, offset: Tensor, block_size: int) -> Tensor:
    """Counts in which step of its block each position was committed, from 0: int64 [B, L].

    Args:
        commit_step: int64 [B, L].
        offset: int64 [B], positions of the prompt in the block in which the completion begins.
        block_size: positions of a block.
    """
    batch, length = commit_step.shape
    width = -(-(length + block_size - 1) // block_size) * block_size
    place = offset[:, None] + torch.arange(length, device=commit_step.device)
    grid = torch.full(
        (batch, width), -1, dtype=torch.int64, device=commit_step.device
    )  # places without a position come before every step
    values, order = grid.scatter(1, place, commit_step).view(batch, -1, block_size).sort(dim=-1)
    new = torch.zeros_like(values)
    new[..., 1:] = (values[..., 1:] > values[..., :-1]) & (values[..., :-1] >= 0)
    turn = torch.zeros_like(values).scatter(-1, order, new.cumsum(-1))
    return turn.view(batch, width).gather(1, place)
