"""Lists every trajectory of a sampler with its probability, breadth first over the denoising steps.

    P(trajectory) = product over steps of exp(sampler.action_log_prob(state, action))

In every state these probabilities must sum to 1, and the sampler's draws must follow them. A sampler that fails either
check has no exact log-probability, and the audit says so.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.audit.actions import AuditError, actions, check_sums, repeated
from dlmrl_kit.audit.enumerate_redrawing import enumerate_redrawing
from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.behaviour import forbid
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    GROUP,
    PROBABILITY,
    PROMPT_IDS,
    PROMPT_MASK,
    SEED,
    STEP_DRAFT_IDS,
    STEP_GREEDY_IDS,
    STEP_LOG_PROB,
    STEP_STATE_IDS,
    TOKEN_COMMIT_RANK,
    Key,
)
from dlmrl_kit.core.policy import Policy, completion_logits
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.mask import MaskSampler
from dlmrl_kit.samplers.recorder import MaskRecorder
from dlmrl_kit.samplers.redrawing import RedrawingSampler

NOT_LISTED: frozenset[Key] = frozenset({STEP_DRAFT_IDS})
"""Keys of a rollout that do not follow from the actions of a sample: draws that were dropped."""


def enumerate_trajectories(
    sampler: Sampler,
    policy: Policy,
    prompts: TensorDictBase,
    *,
    keys: Collection[Key] = (),
    cache: Cache | None = None,
) -> TensorDict:
    """Lists every trajectory that the sampler can take from each prompt.

    Args:
        sampler: a ``MaskSampler`` or a ``RedrawingSampler``.
        policy: a small one.
        prompts: TensorDict [Q] with ``prompt_ids``, ``prompt_mask``, ``group``, ``example``.
        keys: on-demand keys to write; keys in ``NOT_LISTED`` are written without content.
        cache: the cache that is sampled with; None: none.

    Returns:
        TensorDict [N]: the keys of a rollout, and ``probability`` float64 [N], given the prompt.

    Raises:
        NotImplementedError: the sampler does not list its choices.
        AuditError: in some state the probabilities of its actions do not sum to 1.
    """
    sampler.attach(policy)
    if isinstance(sampler, RedrawingSampler):
        return enumerate_redrawing(sampler, policy, prompts, keys)
    if isinstance(sampler, MaskSampler):
        return _enumerate_masks(sampler, policy, prompts, keys, cache)
    raise NotImplementedError(
        f"{type(sampler).__name__} is neither a MaskSampler nor a RedrawingSampler: its trajectories cannot be listed"
    )


def _enumerate_masks(
    sampler: MaskSampler, policy: Policy, prompts: TensorDictBase, keys: Collection[Key], cache: Cache | None
) -> TensorDict:
    recorder = MaskRecorder(
        policy, sampler.fully_masked(prompts, policy), sampler.max_steps, sampler.recorded_keys(keys)
    )
    origin, probability = torch.arange(len(prompts)), torch.ones(len(prompts), dtype=torch.float64)
    with torch.no_grad(), sampler.sampling_from(policy, cache):
        for step in range(sampler.max_steps):
            running = sampler.running(recorder.ids, policy)
            rows = running.nonzero().squeeze(-1)
            if len(rows) == 0:
                break
            prompt, states = prompts[origin[rows]], recorder.ids[rows]
            view = sampler.view(policy, prompt, states)
            source, decision, log_prob = actions(sampler, view, policy)
            check_sums(sampler, log_prob, source, len(rows))
            index = torch.cat([(~running).nonzero().squeeze(-1), rows[source]])
            new = torch.arange(len(index) - len(source), len(index))
            recorder.select(index)
            origin, probability = origin[index], probability[index]
            if recorder.wants(STEP_GREEDY_IDS):
                recorder.put(STEP_GREEDY_IDS, step, new, _greedy(policy, prompt, states)[source])
            recorder.step(step, new, repeated(view, source), decision, log_prob)
            probability[new] *= log_prob.exp()
        written = recorder.finish()
    trajectories = TensorDict({key: value.clone() for key, value in written.items()}, [len(origin)])
    return trajectories.update(prompts[origin]).set(PROBABILITY, probability)


def _greedy(policy: Policy, prompt: TensorDictBase, ids: Tensor) -> Tensor:
    masked = ids == policy.mask_id
    logits = completion_logits(policy, prompt[PROMPT_IDS], prompt[PROMPT_MASK], ids, masked)
    return ids.masked_scatter(masked, forbid(logits, policy.forbidden_ids).argmax(-1))


def check_draws(
    sampler: Sampler,
    policy: Policy,
    prompts: TensorDictBase,
    listed: TensorDictBase,
    draws: int,
    cache: Cache | None = None,
) -> None:
    """Checks a list of trajectories: samples each prompt ``draws`` times and compares.

    Raises:
        AuditError: a sampled trajectory is not listed or has another log-probability, or frequencies are far from the
            listed probabilities.
    """
    repeats = torch.arange(len(prompts)).repeat_interleave(draws)
    asked = prompts[repeats].set(SEED, sample_seeds(len(repeats), "cpu", 0))
    asked.set(GROUP, torch.arange(len(repeats)))  # a group may share steps: frequencies are of independent samples
    sampled = sampler(asked, policy=policy, cache=cache).set(GROUP, prompts[GROUP][repeats])
    known = {code: i for i, code in enumerate(_codes(listed))}
    name = type(sampler).__name__
    found = [known.get(code, -1) for code in _codes(sampled)]
    if -1 in found:
        raise AuditError(f"{name} drew a trajectory that its position_choices and action_log_prob say cannot happen")
    index = torch.tensor(found)
    difference = (sampled[STEP_LOG_PROB] - listed[STEP_LOG_PROB][index]).abs().max().item()
    if difference > 1e-9:
        raise AuditError(f"{name} records another log-probability than its action_log_prob gives (by {difference:.3g})")
    expected = draws * listed[PROBABILITY]
    counts = torch.bincount(index, minlength=len(expected))
    statistic = ((counts - expected).square() / expected.clamp(min=1)).sum().item()
    if statistic > len(expected) + 8 * math.sqrt(2 * len(expected)):
        raise AuditError(f"{name} does not draw with the probabilities that its action_log_prob gives")


def _codes(trajectories: TensorDictBase) -> list[tuple[int, ...]]:
    parts = [trajectories[GROUP][:, None], trajectories[COMPLETION_IDS], trajectories[COMMIT_STEP].long()]
    if STEP_STATE_IDS in trajectories.keys(True, True):
        parts.append(trajectories[STEP_STATE_IDS].long().flatten(1))
    if TOKEN_COMMIT_RANK in trajectories.keys(True, True):
        parts.append(trajectories[TOKEN_COMMIT_RANK].long())
    return [tuple(row) for row in torch.cat(parts, -1).tolist()]
