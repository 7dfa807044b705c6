"""Random order (MDLM's ancestral sampling, arXiv 2406.07524): positions are drawn uniformly, then their tokens.

    log pi(x_{t+1} | x_t) = sum_{i in S} log p_i(v_i) - log C(m, k)

for the k positions S of the m that may be committed.
"""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.seeding import uniforms
from dlmrl_kit.samplers.base import Decision, View, token_log_prob
from dlmrl_kit.samplers.mask import MaskSampler, draw_tokens, highest
from dlmrl_kit.samplers.subsets import subsets


@register("sampler", paper="arXiv 2406.07524")
class RandomOrder(MaskSampler):
    """Commits positions chosen uniformly at random.

    Arguments as ``MaskSampler``.
    """

    def decide(self, view: View, seed: Tensor) -> Decision:
        """Draws k positions of each row, uniformly without replacement, then their tokens."""
        noise = uniforms(seed, view.allowed.shape[1], purpose="position drawn")
        committed = highest(noise, view.allowed, self.num_commits(view))
        return Decision(committed, draw_tokens(view, committed, seed))

    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        """Lists all sets of k positions."""
        return [(positions, None) for positions in subsets(view.allowed, self.num_commits(view))]

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Subtracts the logarithm of the number of position sets of this size from the token part: [B]."""
        tokens = token_log_prob(view, decision)
        total, count = view.allowed.sum(-1).double(), decision.committed.sum(-1).double()
        sets = (total + 1).lgamma() - (count + 1).lgamma() - (total - count + 1).lgamma()
        return tokens - sets.to(tokens.dtype)
