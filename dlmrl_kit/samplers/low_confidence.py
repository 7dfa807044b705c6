r"""Low-confidence remasking (LLaDA, arXiv 2502.09992; used by d1 and EGSPO) with its exact log-probability.

A token x_j is drawn at every position j that may be committed; the k with the highest confidence c_j(x_j) are kept:

    log pi(x_{t+1} | x_t) = sum_{i in S} log p_i(v_i) + sum_{j not in S} log F_j,
    F_j = sum over v with c_j(v) < c* of p_j(v),    c* = min_{i in S} c_i(v_i)

The second sum, the *order term*, is the probability that every other position drew something less confident. Ties in
confidence go to the lower position, in the draw and in F_j.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmrl_kit.behaviour import LOG_ZERO, sample
from dlmrl_kit.registry import register
from dlmrl_kit.samplers.base import Decision, Sampler, View, highest, subsets, token_log_prob


@register("sampler", paper="arXiv 2502.09992")
class LowConfidence(Sampler):
    """LLaDA's remasking: draws everywhere, keeps the most confident draws. Arguments as ``Sampler``."""

    def decide(self, view: View, generator: torch.Generator | None) -> Decision:
        """Draws a token at each of the N positions and commits the most confident ones of each row."""
        drawn = sample(view.log_probs, generator)
        scores = view.confidence.gather(-1, drawn[:, None]).squeeze(-1)
        committed = highest(view.dense(scores, -torch.inf), view.allowed, self.num_commits(view))
        tokens = torch.zeros_like(view.allowed, dtype=torch.int64).masked_scatter(view.allowed, drawn)
        return Decision(committed, tokens)

    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        """All sets of k positions: any may turn out the most confident."""
        return [(positions, None) for positions in subsets(view.allowed, self.num_commits(view))]

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Token part plus order term, [B]."""
        return token_log_prob(view, decision) + order_term(view, decision)


def order_term(view: View, decision: Decision) -> Tensor:
    """Log-probability [B] that each position left masked drew something less confident than all committed ones."""
    committed, allowed = decision.committed, view.allowed
    chosen = committed[allowed]
    kept = view.confidence[chosen].gather(-1, decision.tokens[committed][:, None]).squeeze(-1)
    threshold = torch.full(allowed.shape, torch.inf, dtype=kept.dtype, device=kept.device).masked_scatter(
        committed, kept
    )
    least = threshold.amin(-1, keepdim=True)
    positions = torch.arange(allowed.shape[1], device=allowed.device)
    last = positions.masked_fill(~(committed & (threshold == least)), -1).amax(-1)

    row, position = (index[~chosen] for index in view.index)
    scores = view.confidence[~chosen]
    bar = least.squeeze(-1)[row][:, None]
    below = (scores < bar) | ((scores == bar) & (position > last[row])[:, None])
    return view.row_sum(_log_mass(view.log_probs[~chosen], below), row)


def _log_mass(log_probs: Tensor, kept: Tensor) -> Tensor:
    """log of the probability of the tokens in ``kept``: [n] from [n, V]; LOG_ZERO without gradient if there is none."""
    possible = (kept & (log_probs > -torch.inf)).any(-1)
    masked = log_probs.masked_fill(~kept, -torch.inf)
    safe = torch.where(possible[:, None], masked, torch.zeros_like(masked))
    return torch.where(possible, safe.logsumexp(-1), LOG_ZERO)
