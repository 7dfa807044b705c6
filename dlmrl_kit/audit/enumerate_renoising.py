"""Lists every trajectory of a renoising sampler with its probability: accepted tokens and all noise, step by step.

    P(trajectory) = product over blocks of U^-(first noise) * product over steps of exp(action_log_prob) * U^-(renoised)

where noise is drawn from U tokens, and the exponents count positions. Where a block begins, the listing branches over
its first noise, too.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.audit.actions import check_sums, fill, repeated
from dlmrl_kit.core.keys import PROBABILITY, Key
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.samplers.base import Decision
from dlmrl_kit.samplers.canvas import CanvasRecorder, Outlook, State
from dlmrl_kit.samplers.renoising import RenoisingSampler, noise_tokens

CERTAIN = 1e-30
"""Transitions with a smaller probability cannot happen, as for ``actions.NOTHING``."""


def enumerate_renoising(
    sampler: RenoisingSampler, policy: Policy, prompts: TensorDictBase, keys: Collection[Key]
) -> TensorDict:
    """Lists all trajectories from each prompt; arguments, result and errors as ``enumerate_trajectories``."""
    vocabulary = noise_tokens(policy).tolist()
    start = State.of(prompts, sampler.fully_masked(prompts, policy), policy.mask_id)
    recorder = CanvasRecorder(policy, start, sampler.max_steps, sampler.recorded_keys(keys))
    origin, probability = torch.arange(len(prompts)), torch.ones(len(prompts), dtype=torch.float64)
    with torch.no_grad():
        for step in range(sampler.max_steps):
            running = sampler.still_running(recorder.state, policy)
            rows = running.nonzero().squeeze(-1)
            if len(rows) == 0:
                break
            rows, state, share = _begun(sampler, recorder.state, rows, vocabulary, policy.mask_id)
            outlook = sampler.look(policy, prompts[origin[rows]], state)
            source, tokens, log_prob, noise = _transitions(sampler, outlook, vocabulary)
            check_sums(sampler, log_prob + noise, source, len(rows))
            index = torch.cat([(~running).nonzero().squeeze(-1), rows[source]])
            new = torch.arange(len(index) - len(source), len(index))
            recorder.select(index)
            origin, probability = origin[index], probability[index]
            recorder.step(step, new, state.at(source), _at(outlook, source), tokens, log_prob)
            probability[new] *= share[source] * (log_prob + noise).exp()
        written = recorder.finish()
    trajectories = TensorDict({key: value.clone() for key, value in written.items()}, [len(origin)])
    return trajectories.update(prompts[origin]).set(PROBABILITY, probability)


def _begun(
    sampler: RenoisingSampler, state: State, rows: Tensor, vocabulary: list[int], mask_id: int
) -> tuple[Tensor, State, Tensor]:
    """Branches rows over every first noise of the blocks that begin in them.

    Returns:
        The row of each branch [n], its state [n], and the probability of its noise [n]; other rows have one branch.
    """
    state = state.at(rows)
    fresh = sampler.allowed(state.open) & (state.ids == mask_id)
    source, filled = _fillings(fresh, vocabulary)
    ids = torch.where(fresh[source], filled, state.ids[source])
    share = float(len(vocabulary)) ** -fresh.sum(-1).double()
    return rows[source], state.at(source).with_ids(ids), share[source]


def _transitions(
    sampler: RenoisingSampler, outlook: Outlook, vocabulary: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lists every transition: row of its state [n], tokens [n, L], log-probabilities of action and noise [n] each."""
    canvas, final = outlook.view.allowed, outlook.final[:, None]
    source, filled = _fillings(canvas & ~final, vocabulary)
    tokens = torch.where(final[source], outlook.best[source], filled)
    committed = outlook.committed[source]
    log_prob = sampler.action_log_prob(repeated(outlook.view, source), Decision(committed, tokens))
    noise = -(canvas[source] & ~committed).sum(-1).to(log_prob.dtype) * math.log(len(vocabulary))
    keep = (log_prob + noise).exp() > CERTAIN
    return source[keep], tokens[keep], log_prob[keep], noise[keep]


def _fillings(positions: Tensor, vocabulary: list[int]) -> tuple[Tensor, Tensor]:
    """Lists every way to fill ``positions``, bool [R, L]: rows [n] and tokens [n, L]. Empty rows have one filling."""
    parts = [fill(positions, None, vocabulary, size) for size in positions.sum(-1).unique().tolist()]
    return torch.cat([rows for rows, _ in parts]), torch.cat([decision.tokens for _, decision in parts])


def _at(outlook: Outlook, rows: Tensor) -> Outlook:
    view = repeated(outlook.view, rows)
    return Outlook(view, outlook.committed[rows], outlook.final[rows], outlook.best[rows])
