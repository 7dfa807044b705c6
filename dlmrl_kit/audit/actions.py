"""Lists every action of a sampler in given states, with its probability."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.samplers.base import Decision, Sampler, View
from dlmrl_kit.samplers.mask import MaskSampler

NOTHING = 1e-30
"""Actions with a smaller probability cannot happen: their log-probability is ``LOG_ZERO``, the floor of -100."""


class AuditError(UserError):
    """The audit cannot be done, or a sampler contradicts its own log-probability."""


def actions(sampler: MaskSampler, view: View, policy: Policy) -> tuple[Tensor, Decision, Tensor]:
    """Lists every possible action in the states of a view.

    Args:
        sampler: must list its ``position_choices``.
        view: of the states [B].
        policy: says which tokens are forbidden.

    Returns:
        For each of n actions the row of its state, int64 [n], the decisions [n], and log-probabilities [n], with
        gradient.
    """
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
    """Returns the view of the states at ``rows``, int64 [n], which may repeat."""
    allowed = view.allowed[rows]

    def repeat(values: Tensor) -> Tensor:
        dense = values.new_zeros((*view.allowed.shape, values.shape[-1]))
        dense[view.allowed] = values
        return dense[rows][allowed]

    features = None if view.features is None else repeat(view.features)
    offset = None if view.offset is None else view.offset[rows]
    return View(repeat(view.logits), view.behaviour, allowed, features, offset)


def fill(committed: Tensor, rank: Tensor | None, tokens: list[int], size: int) -> tuple[Tensor, Decision]:
    """Fills the rows that commit ``size`` positions with tokens in every possible way.

    Args:
        committed: bool [R, L]; other rows are left out.
        rank: int64 [R, L], passed on to the decisions; None: none.
        tokens: that a position may hold.
        size: positions to fill.

    Returns:
        The row of each filling, int64 [n], and the decisions [n].
    """
    rows = (committed.sum(-1) == size).nonzero().squeeze(-1)
    values = torch.tensor(list(itertools.product(tokens, repeat=size)), dtype=torch.int64)
    source = rows.repeat_interleave(len(values))
    chosen = committed[source]
    filled = torch.zeros_like(chosen, dtype=torch.int64).masked_scatter(chosen, values.repeat(len(rows), 1))
    return source, Decision(chosen, filled, None if rank is None else rank[source])


def check_sums(sampler: Sampler, log_prob: Tensor, source: Tensor, num_states: int) -> None:
    """Checks that the probabilities of all actions sum to 1 in each state.

    Args:
        sampler: is named in the error.
        log_prob: [n], of the actions.
        source: int64 [n], the number of each action's state.
        num_states: how many states there are.

    Raises:
        AuditError: in some state they do not.
    """
    totals = torch.zeros(num_states, dtype=torch.float64).index_add(0, source, log_prob.exp().double())
    worst = totals[(totals - 1).abs().argmax()].item()
    if not abs(worst - 1) < 1e-10:
        raise AuditError(
            f"{type(sampler).__name__}.action_log_prob is not exact: in one state the probabilities of all actions "
            f"sum to {worst:.6g} instead of 1 (or position_choices leaves out or repeats some)"
        )
