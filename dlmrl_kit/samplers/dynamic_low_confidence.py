r"""Dynamic low-confidence remasking (SDAR, arXiv 2510.06303): keep every draw above a threshold, k of them at least.

    S = { j : q_j(x_j) > threshold },  or the k most confident draws if these are fewer

for tokens x_j drawn from q_j, the distribution after temperature and filters. With c* as in ``LowConfidence``,

    log pi(x_{t+1} | x_t) = sum_{i in S} log q_i(v_i) + sum_{j not in S} log F_j(min(c*, threshold))

where a draw at the threshold counts as less confident. A set of more than k that has one at or below it is not drawn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlmrl_kit.core.behaviour import LOG_ZERO, confidence_of
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.core.trajectory import places
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.base import Decision, View, token_log_prob
from dlmrl_kit.samplers.low_confidence import order_term
from dlmrl_kit.samplers.mask import MaskSampler
from dlmrl_kit.samplers.subsets import subsets
from dlmrl_kit.samplers.tempered import TemperedLowConfidence


@register("sampler", paper="arXiv 2510.06303")
class DynamicLowConfidence(TemperedLowConfidence):
    """Keeps all draws that are more probable than ``threshold``, at least as many as ``tokens_per_step`` says.

    SDAR's ``low_confidence_dynamic``. ``ConfidenceThreshold`` asks the best token of a position instead.

    Args:
        completion_length, tokens_per_step, block_length, temperature, top_k, top_p, stop_at_eos: as ``MaskSampler``.
        threshold: on the probability, after temperature and filters, of the token drawn; in (0, 1].

    Raises:
        ValueError: a value out of range.
    """

    @with_parameters_of(MaskSampler)
    def __init__(self, *decoding: Any, threshold: float = 0.85, **named: Any) -> None:
        super().__init__(*decoding, **named)
        check(0 < threshold <= 1, self, "threshold", threshold, "in (0, 1]")
        self.threshold = threshold

    @property
    def max_commits(self) -> int:
        """A step may commit a whole block."""
        return self.block_length

    def decide(self, view: View, seed: Tensor) -> Decision:
        """Draws a token at each of the N positions and commits those above the threshold, the best ones if too few."""
        best = super().decide(view, seed)
        certain = self.ranked(view).confidence(best.tokens[view.index])
        sure = view.dense(certain, -torch.inf) > confidence_of(self.threshold)
        return Decision(best.committed | sure, best.tokens, drawn=view.allowed)

    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        """Lists all sets of k positions or more."""
        least, most = self.num_commits(view), view.allowed.sum(-1)
        counts = [least + more for more in range(view.allowed.shape[-1])]
        sets = [subsets(view.allowed, count.masked_fill(count > most, 0)) for count in counts]
        return [(positions, None) for found in sets for positions in found]

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Adds the order term to the token part, ``LOG_ZERO`` where the set is none that this sampler draws: [B]."""
        ranked, bar = self.ranked(view), confidence_of(self.threshold)
        kept = ranked.confidence(decision.tokens[places(decision.committed)], view.where(decision.committed))
        unsure = torch.zeros_like(decision.committed).masked_scatter(decision.committed, kept <= bar).any(-1)
        count, least = decision.committed.sum(-1), self.num_commits(view)
        impossible = (count < least) | (unsure & (count > least))
        drawn = token_log_prob(view, decision) + order_term(ranked, decision, bar)
        return torch.where(impossible, LOG_ZERO, drawn)
