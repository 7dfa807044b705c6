r"""Low-confidence remasking (LLaDA, arXiv 2502.09992; used by d1 and EGSPO) with its exact log-probability.

A token x_j is drawn at every position j that may be committed; the k with the highest confidence c_j(x_j) are kept:

    log pi(x_{t+1} | x_t) = sum_{i in S} log p_i(v_i) + sum_{j not in S} log F_j,
    F_j = sum over v with c_j(v) < c* of p_j(v),    c* = min_{i in S} c_i(v_i)

The second sum, the *order term*, is the probability that every other position drew something less confident. Ties in
confidence go to the lower position, in the draw and in F_j.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlmrl_kit.core.behaviour import log_mass
from dlmrl_kit.core.keys import PROMPT_MASK, STEP_DRAFT_IDS
from dlmrl_kit.core.policy import Policy, is_large
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.scan import scanned
from dlmrl_kit.core.trajectory import places
from dlmrl_kit.samplers.base import Decision, View, token_log_prob
from dlmrl_kit.samplers.mask import MaskSampler, highest
from dlmrl_kit.samplers.recorder import MaskRecorder, Rows
from dlmrl_kit.samplers.subsets import subsets


@register("sampler", paper="arXiv 2502.09992")
class LowConfidence(MaskSampler):
    """Draws a token at every position and keeps the most confident draws (LLaDA's remasking).

    Arguments as ``MaskSampler``.
    """

    def ranked(self, view: View) -> View:
        """Returns the view whose confidences rank the draws: itself, so those of softmax(logits)."""
        return view

    def seen_in_rollout(self, policy: Policy, features: Tensor, some: Rows, recorder: MaskRecorder) -> View:
        """Returns the view, in a large vocabulary by one pass, as a token is drawn at each of the N positions."""
        drafts = recorder.wants(STEP_DRAFT_IDS)  # which are drawn elsewhere, too
        if is_large(policy.vocab_size) and not drafts and self.processing(some.prompt, some.asked) is None:
            found = scanned(policy, features, self.behaviour, recorder.scratch)
            if found is not None:
                offset = policy.block_offset(some.prompt[PROMPT_MASK])
                kept = features if self.needs_features else None
                return View(found.logits, self.behaviour, some.asked, kept, offset, found)
        return super().seen_in_rollout(policy, features, some, recorder)

    def decide(self, view: View, seed: Tensor) -> Decision:
        """Draws a token at each of the N positions and commits the most confident ones of each row."""
        drawn = view.draw(seed)
        certain = self.ranked(view).confidence(drawn)
        committed = highest(view.dense(certain, -torch.inf), view.allowed, self.num_commits(view))
        tokens = torch.zeros_like(view.allowed, dtype=torch.int64).masked_scatter(view.allowed, drawn)
        return Decision(committed, tokens, drawn=view.allowed)

    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        """Lists all sets of k positions: any may turn out the most confident."""
        return [(positions, None) for positions in subsets(view.allowed, self.num_commits(view))]

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Adds the order term to the token part: [B]."""
        return token_log_prob(view, decision) + order_term(self.ranked(view), decision)


def order_term(view: View, decision: Decision, bar: float = math.inf) -> Tensor:
    """Returns the log-probability [B] that each position left masked drew a less confident token than all committed.

    Args:
        view: of the states.
        decision: the actions.
        bar: a confidence above which every draw is committed; the positions left masked drew none above it.
    """
    committed, allowed = decision.committed, view.allowed
    kept = view.confidence(decision.tokens[places(committed)], view.where(committed))
    threshold = torch.full(allowed.shape, torch.inf, dtype=kept.dtype, device=kept.device).masked_scatter(
        committed, kept
    )
    least = threshold.amin(-1, keepdim=True)
    positions = torch.arange(allowed.shape[1], device=allowed.device)
    last = positions.masked_fill(~(committed & (threshold == least) & (least <= bar)), -1).amax(-1)
    least = least.clamp(max=bar)

    rest = view.where(committed, others=True)
    row, position = (index[rest] for index in view.index)
    certain = view.certainty.at(rest)
    below = certain.threshold(least.squeeze(-1)[row], ties=position > last[row])
    if view.scan is not None:
        return view.row_sum(view.scan.log_mass(rest, below), row)
    return view.row_sum(log_mass(view.logits, rest, view.behaviour, certain, below), row)
