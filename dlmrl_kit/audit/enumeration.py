"""Every trajectory of a sampler, with its probability: breadth first over the denoising steps.

    P(trajectory) = product over steps of exp(sampler.action_log_prob(state, action))

In every state the probabilities must sum to 1, and what the sampler draws must follow them; a sampler that fails either
has no exact log-probability, and the audit says so.
"""

from __future__ import annotations

import itertools
import math

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    GROUP,
    STEP_DRAFT_IDS,
    STEP_GREEDY_IDS,
    STEP_LOG_PROB,
    STEP_STATE_IDS,
    TOKEN_COMMIT_RANK,
    TREE_NODE,
    TREE_STEP,
    Key,
)
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.samplers.base import Decision, Sampler, View, predict
from dlmrl_kit.samplers.recorder import Recorder

NOT_LISTED: frozenset[Key] = frozenset({STEP_DRAFT_IDS, TREE_NODE, TREE_STEP})
"""Keys of a rollout that are no function of one sample's actions: draws that were thrown away, trees of samples."""

NOTHING = 1e-30
"""Actions less likely than this are those that the kit's floor of -100 stands for: they cannot happen."""


class AuditError(UserError):
    """The audit cannot be done, or a sampler contradicts its own log-probability."""


def enumerate_trajectories(sampler: Sampler, policy: Policy, prompts: TensorDictBase) -> TensorDict:
    """All trajectories from each prompt, as they are sampled: with the sampler's cache, if it has one.

    Args:
        sampler: writes the keys it was asked for, but for those in ``NOT_LISTED``, which hold nothing.
        policy: a small one.
        prompts: TensorDict [Q] with ``prompt_ids``, ``prompt_mask``, ``group``, ``example``.

    Returns:
        TensorDict [N]: the keys of a rollout and ``probability`` float64 [N], given the prompt.

    Raises:
        NotImplementedError: the sampler does not list its choices.
        AuditError: in some state the probabilities of its actions do not sum to 1.
    """
    sampler.attach(policy)
    if sampler.noise == "uniform":
        from dlmrl_kit.audit.enumerate_renoising import enumerate_renoising

        return enumerate_renoising(sampler, policy, prompts)
    ids = torch.full((len(prompts), sampler.completion_length), policy.mask_id, dtype=torch.int64)
    recorder = Recorder(sampler, policy, ids)
    origin, probability = torch.arange(len(prompts)), torch.ones(len(prompts), dtype=torch.float64)
    with torch.no_grad(), sampler.as_sampled(policy):
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
                recorder.greedy(step, new, _greedy(policy, prompt, states)[source])
            recorder.step(step, new, repeated(view, source), decision, log_prob)
            probability[new] *= log_prob.exp()
        written = recorder.finish()
    trajectories = TensorDict({key: value.clone() for key, value in written.items()}, [len(origin)])
    return trajectories.update(prompts[origin]).set("probability", probability)


def actions(sampler: Sampler, view: View, policy: Policy) -> tuple[Tensor, Decision, Tensor]:
    """Every possible action in the states of ``view``: row of the state [n], decisions [n, L], log-probability [n]."""
    tokens = [token for token in range(view.logits.shape[-1]) if token not in policy.forbidden_ids]
    parts = [
        fill(committed, rank, tokens, size)
        for committed, rank in sampler.position_choices(view)
        for size in committed.sum(-1).unique().tolist()
        if size > 0
    ]
    source = torch.cat([rows for rows, _ in parts])
    ranks = [decision.rank for _, decision in parts]
    decision = Decision(
        torch.cat([decision.committed for _, decision in parts]),
        torch.cat([decision.tokens for _, decision in parts]),
        None if ranks[0] is None else torch.cat([rank for rank in ranks if rank is not None]),
    )
    log_prob = sampler.action_log_prob(repeated(view, source), decision)
    keep = log_prob.exp() > NOTHING
    rank = None if decision.rank is None else decision.rank[keep]
    return source[keep], Decision(decision.committed[keep], decision.tokens[keep], rank), log_prob[keep]


def repeated(view: View, rows: Tensor) -> View:
    """The view with the rows at ``rows``, which may repeat."""
    allowed = view.allowed[rows]

    def repeat(values: Tensor) -> Tensor:
        dense = values.new_zeros((*view.allowed.shape, values.shape[-1]))
        dense[view.allowed] = values
        return dense[rows][allowed]

    features = None if view.features is None else repeat(view.features)
    return View(repeat(view.logits), view.behaviour, allowed, features)


def fill(committed: Tensor, rank: Tensor | None, tokens: list[int], size: int) -> tuple[Tensor, Decision]:
    """All fillings of the rows that commit ``size`` positions."""
    rows = (committed.sum(-1) == size).nonzero().squeeze(-1)
    values = torch.tensor(list(itertools.product(tokens, repeat=size)), dtype=torch.int64)
    source = rows.repeat_interleave(len(values))
    chosen = committed[source]
    filled = torch.zeros_like(chosen, dtype=torch.int64).masked_scatter(chosen, values.repeat(len(rows), 1))
    return source, Decision(chosen, filled, None if rank is None else rank[source])


def _greedy(policy: Policy, prompt: TensorDictBase, ids: Tensor) -> Tensor:
    masked = ids == policy.mask_id
    return ids.masked_scatter(masked, predict(policy, prompt, ids, masked).argmax(-1))


def check_sums(sampler: Sampler, log_prob: Tensor, source: Tensor, num_states: int) -> None:
    """Checks that the probabilities of all actions [n] sum to 1 in each state, of which ``source`` [n] is the number.

    Raises:
        AuditError: they do not.
    """
    totals = torch.zeros(num_states, dtype=torch.float64).index_add(0, source, log_prob.exp().double())
    worst = totals[(totals - 1).abs().argmax()].item()
    if not abs(worst - 1) < 1e-10:
        raise AuditError(
            f"{type(sampler).__name__}.action_log_prob is not exact: in one state the probabilities of all actions "
            f"sum to {worst:.6g} instead of 1 (or position_choices leaves out or repeats some)"
        )


def check_draws(sampler: Sampler, policy: Policy, prompts: TensorDictBase, listed: TensorDictBase, draws: int) -> None:
    """Samples each prompt ``draws`` times and compares with what was listed.

    Raises:
        AuditError: a trajectory that is not listed, another log-probability, or frequencies far from the probabilities.
    """
    repeats = torch.arange(len(prompts)).repeat_interleave(draws)
    sampled = sampler(prompts[repeats], policy=policy, generator=torch.Generator().manual_seed(0))
    known = {code: i for i, code in enumerate(_codes(listed))}
    name = type(sampler).__name__
    found = [known.get(code, -1) for code in _codes(sampled)]
    if -1 in found:
        raise AuditError(f"{name} drew a trajectory that its position_choices and action_log_prob say cannot happen")
    index = torch.tensor(found)
    difference = (sampled[STEP_LOG_PROB] - listed[STEP_LOG_PROB][index]).abs().max().item()
    if difference > 1e-9:
        raise AuditError(f"{name} records another log-probability than its action_log_prob gives (by {difference:.3g})")
    expected = draws * listed["probability"]
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
