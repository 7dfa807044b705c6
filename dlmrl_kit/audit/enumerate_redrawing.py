"""Lists every trajectory of a sampler that draws positions again, with its probability: tokens and noise, step by step.

    P(trajectory) = product over steps of exp(action_log_prob)

Where positions are renoised, the first noise of a block and that of every step is listed, too. It is drawn from U
tokens, and each such position is a factor 1 / U.
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
from dlmrl_kit.samplers.redrawing import RedrawingSampler
from dlmrl_kit.samplers.renoising import noise_tokens

CERTAIN = 1e-30
"""Transitions with a smaller probability cannot happen, as for ``actions.NOTHING``."""


def enumerate_redrawing(
    sampler: RedrawingSampler, policy: Policy, prompts: TensorDictBase, keys: Collection[Key]
) -> TensorDict:
    """Lists all trajectories from each prompt; arguments, result and errors as ``enumerate_trajectories``."""
    tokens_left = noise_tokens(policy)
    start = State.of(prompts, sampler.fully_masked(prompts, policy), policy.mask_id)
    recorder = CanvasRecorder(policy, start, sampler.max_steps, sampler.recorded_keys(keys))
    origin, probability = torch.arange(len(prompts)), torch.ones(len(prompts), dtype=torch.float64)
    with torch.no_grad():
        for step in range(sampler.max_steps):
            _close(sampler, policy, prompts[origin], recorder, step)
            running = sampler.still_running(recorder.state, policy)
            rows = running.nonzero().squeeze(-1)
            if len(rows) == 0:
                break
            rows, state, share = _begun(sampler, recorder.state, rows, tokens_left, policy.mask_id)
            outlook = sampler.look(policy, prompts[origin[rows]], state)
            source, tokens, log_prob, noise = _transitions(sampler, state, outlook, tokens_left)
            check_sums(sampler, log_prob + noise, source, len(rows))
            index = torch.cat([(~running).nonzero().squeeze(-1), rows[source]])
            new = torch.arange(len(index) - len(source), len(index))
            recorder.select(index)
            origin, probability = origin[index], probability[index]
            recorder.step(step, new, state.at(source), _at(outlook, source), tokens, log_prob)
            probability[new] *= share[source] * (log_prob + noise).exp()
        sampler.complete(recorder, prompts[origin], policy, None)
        written = recorder.finish()
    trajectories = TensorDict({key: value.clone() for key, value in written.items()}, [len(origin)])
    return trajectories.update(prompts[origin]).set(PROBABILITY, probability)


def _close(
    sampler: RedrawingSampler, policy: Policy, prompts: TensorDictBase, recorder: CanvasRecorder, step: int
) -> None:
    """Finishes the blocks in which ``step`` would accept nothing. What was renoised has always something to accept."""
    rows = sampler.still_running(recorder.state, policy).nonzero().squeeze(-1)
    if sampler.noise == "uniform" or len(rows) == 0:
        return
    state = recorder.state.at(rows)
    outlook = sampler.look(policy, prompts[rows], state)
    there = (~outlook.committed.any(-1)).nonzero().squeeze(-1)
    if len(there):
        recorder.close(step, rows[there], state.at(there), outlook.view.allowed[there])


def _begun(
    sampler: RedrawingSampler, state: State, rows: Tensor, tokens_left: list[int], mask_id: int
) -> tuple[Tensor, State, Tensor]:
    """Branches rows over every first noise of the blocks that begin in them.

    Returns:
        The row of each branch [n], its state [n], and the probability of its noise [n]; other rows have one branch.
    """
    state = state.at(rows)
    if sampler.noise != "uniform":
        return rows, state, torch.ones(len(rows), dtype=torch.float64)
    fresh = sampler.allowed(state.open) & (state.ids == mask_id)
    source, filled = _fillings(fresh, tokens_left)
    ids = torch.where(fresh[source], filled, state.ids[source])
    share = float(len(tokens_left)) ** -fresh.sum(-1).double()
    return rows[source], state.at(source).with_ids(ids), share[source]


def _transitions(
    sampler: RedrawingSampler, state: State, outlook: Outlook, tokens_left: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lists every transition: row of its state [n], tokens [n, L], log-probabilities of action and noise [n] each."""
    canvas, final, uniform = outlook.view.allowed, outlook.final[:, None], sampler.noise == "uniform"
    changed = canvas & ~final if uniform else outlook.committed
    source, filled = _fillings(changed, tokens_left)
    tokens = torch.where(changed[source], filled, (outlook.best if uniform else state.ids)[source])
    committed = outlook.committed[source]
    log_prob = sampler.action_log_prob(repeated(outlook.view, source), Decision(committed, tokens))
    renoised = (canvas[source] & ~committed).sum(-1) if uniform else torch.zeros_like(source)
    noise = -renoised.to(log_prob.dtype) * math.log(len(tokens_left))
    keep = (log_prob + noise).exp() > CERTAIN
    return source[keep], tokens[keep], log_prob[keep], noise[keep]


def _fillings(positions: Tensor, tokens_left: list[int]) -> tuple[Tensor, Tensor]:
    """Lists every way to fill ``positions``, bool [R, L]: rows [n] and tokens [n, L]. Empty rows have one filling."""
    parts = [fill(positions, None, tokens_left, size) for size in positions.sum(-1).unique().tolist()]
    return torch.cat([rows for rows, _ in parts]), torch.cat([decision.tokens for _, decision in parts])


def _at(outlook: Outlook, rows: Tensor) -> Outlook:
    view = repeated(outlook.view, rows)
    return Outlook(view, outlook.committed[rows], outlook.final[rows], outlook.best[rows])
