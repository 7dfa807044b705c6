"""No correction: what is usually done with cached rollouts, and biased. The drift is reported all the same."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmrl_kit.core.registry import register
from dlmrl_kit.corrections.base import Correction


@register("correction")
class Uncorrected(Correction):
    """Takes what was sampled for samples of the policy; for comparisons."""

    single_steps = False

    def weights(self, log_ratio: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Ones, [B, K]."""
        return torch.ones_like(log_ratio), torch.zeros_like(used)
