"""Random order (MDLM's ancestral sampling, arXiv 2406.07524): positions are drawn uniformly, then their tokens.

    log pi(x_{t+1} | x_t) = sum_{i in S} log p_i(v_i) - log C(m, k)

for the k positions S of the m that may be committed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.samplers.base import Decision, View, token_log_prob
from dlmrl_kit.samplers.mask import StateScoreSampler, highest, subsets


@register("sampler", paper="arXiv 2406.07524")
class RandomOrder(StateScoreSampler):
    """Commits positions chosen uniformly at random.

    Arguments as ``MaskSampler``.
    """

    def committed(self, view: View, generator: torch.Generator | None) -> Tensor:
        """Draws k positions of each row, uniformly without replacement: bool [B, L]."""
        noise = torch.rand(view.allowed.shape, generator=generator, device=view.allowed.device, dtype=torch.float64)
        return highest(noise, view.allowed, self.num_commits(view))

    def position_choices(self, view: View) -> list[tuple[Tensor, Tensor | None]]:
        """Lists all sets of k positions."""
        return [(positions, None) for positions in subsets(view.allowed, self.num_commits(view))]

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Subtracts the logarithm of the number of position sets of this size from the token part: [B]."""
        tokens = token_log_prob(view, decision)
        total, count = view.allowed.sum(-1).double(), decision.committed.sum(-1).double()
        sets = (total + 1).lgamma() - (count + 1).lgamma() - (total - count + 1).lgamma()
        return tokens - sets.to(tokens.dtype)
