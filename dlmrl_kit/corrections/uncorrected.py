"""No correction, as is usual with cached rollouts, though it is biased. The drift is measured all the same."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.corrections.base import Correction


@register("correction")
class Uncorrected(Correction):
    """Treats cached rollouts as if they were samples of the policy, for comparisons."""

    single_steps = False
    weighs = False

    def weights(self, log_ratio: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Returns weights of 1, [B, K], none of them truncated."""
        return torch.ones_like(log_ratio), torch.zeros_like(used)
