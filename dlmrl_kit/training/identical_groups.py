"""Finds groups whose samples are all the same, where sampling once more gives other ones.

Identical samples have equal rewards, so that nothing is learned of them; they come from one seed or a temperature of 0
for the whole group, or from a cache of answers. A policy that is nearly certain repeats itself, too. So the prompts are
sampled again: with q the chance that a sample is the group's, the other g - 1 samples of the group and n new ones, d of
which differ, have a probability of at most

    max over q of q^(g - 1 + n - d) (1 - q)^d
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    COMPLETION_IDS,
    GROUP,
    PROMPT_IDS,
    PROMPT_MASK,
    SEED,
    STEP_ENTROPY,
    STEP_NUM_COMMITTED,
    STEP_VALID,
)
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.core.trajectory import canvas_state, states
from dlmrl_kit.samplers.base import Sampler

SURPRISE = 25.0
"""Entropy (nats) of the samples of a group above which it is suspicious if they are identical."""
AGAIN = 16
"""Samples of each suspicious prompt that are drawn again."""
PROMPTS = 4
"""The most prompts that are sampled again."""
CHANCE = 1e-5
"""Probability below which identical samples are no accident."""


def identical_groups(trajectory: TensorDictBase, policy: Policy, sampler: Sampler, batch_size: int) -> str:
    """Says in one line that groups are identical which should not be; "" if there is nothing to say.

    Args:
        trajectory: a rollout [B]. Only if at least half of its groups are identical in spite of a high recorded
            entropy, some are sampled again.
        policy, sampler: what to sample with.
        batch_size: the most samples at once.
    """
    if sampler.temperature == 0:
        return ""
    group, ids = trajectory[GROUP], trajectory[COMPLETION_IDS]
    names = group.unique().tolist()
    groups = ((group == name).nonzero().squeeze(-1) for name in names)
    suspicious = [rows for rows in groups if _suspicious(trajectory, rows, sampler)]
    if not suspicious or 2 * len(suspicious) < len(names):
        return ""
    logs = 0.0
    for rows in suspicious[:PROMPTS]:
        differ = (_sampled_again(trajectory, int(rows[0]), policy, sampler, batch_size) != ids[rows[0]]).any(-1)
        same = _independent(sampler.last_fork(trajectory[rows])[1])
        logs += _log_chance(same + int((~differ).sum()), int(differ.sum()))
    if logs > math.log(CHANCE):
        return ""
    rows = suspicious[0].tolist()
    return (
        f"all samples of a group are identical in {len(suspicious)} of {len(names)} groups (the first one: samples "
        f"{', '.join(map(str, rows))}), though the policy draws other ones at temperature {sampler.temperature:g}; "
        "likely cause: one seed, or temperature 0, for the whole group, or answers from a cache"
    )


def _suspicious(trajectory: TensorDictBase, rows: Tensor, sampler: Sampler) -> bool:
    ids = trajectory[COMPLETION_IDS][rows]
    if len(rows) < 2 or not bool((ids == ids[0]).all()):
        return False
    part = trajectory[rows]
    fork, state = sampler.last_fork(part)
    number = torch.arange(part[STEP_VALID].shape[1], device=rows.device)
    counted = part[STEP_VALID][0] & (number >= fork[0])
    entropy = torch.where(counted, part[STEP_ENTROPY][0] * part[STEP_NUM_COMMITTED][0], 0.0).sum().item()
    return entropy * _independent(state) > SURPRISE


def _independent(state: Tensor) -> int:
    """Returns how many samples there are besides the first one from each state: an int, of int64 [B]."""
    return len(state) - len(state.unique())


def _sampled_again(trajectory: TensorDictBase, row: int, policy: Policy, sampler: Sampler, batch_size: int) -> Tensor:
    """Completes a sample anew from where it became independent of others, ``AGAIN`` times: int64 [n, L]."""
    one = trajectory[row : row + 1]
    step = sampler.last_fork(one)[0][:, None]
    prompt = TensorDict({key: one[key] for key in (PROMPT_IDS, PROMPT_MASK)}, [1])
    if step.any():
        start = states(one, step, policy.mask_id).squeeze(1)
        prompt.update({key: value.squeeze(1) for key, value in canvas_state(one, step).items()})
    else:
        start = sampler.fully_masked(prompt, policy)
    prompt = prompt[[0] * AGAIN]
    prompt.set(SEED, sample_seeds(AGAIN, policy.device, int(one[SEED]), "sampled again"))
    found = [
        sampler.resume(
            prompt[first : first + batch_size], start.expand(len(prompt[first : first + batch_size]), -1), policy=policy
        )
        for first in range(0, AGAIN, batch_size)
    ]
    return torch.cat([part[COMPLETION_IDS] for part in found])


def _log_chance(same: int, differ: int) -> float:
    """Returns log max_q q^same (1 - q)^differ."""
    total = same + differ
    return sum(count * math.log(count / total) for count in (same, differ) if count)
