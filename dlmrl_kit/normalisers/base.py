r"""Normalisers: what a weighted sum over tokens is divided by.

    loss = sum over segments k and tokens c of weight_k * share_kc * value_kc / count

The weights are the selector's. Numerator and count are additive over samples, so that micro-batches accumulate exactly
(see ``losses.base``).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor


class Normaliser:
    """Base class of normalisers.

    ``segmentwise``: whether the share of a token does not depend on the other segments of its sample.
    """

    segmentwise: ClassVar[bool] = True

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Share of each token, 0 where the mask is False.

        Args:
            mask: bool [B, K, C], the tokens that count; none in segments of weight 0.
            weight: real [B, K], the selector's, without gradient.

        Returns:
            [B, K, C], of the dtype of ``weight``.
        """
        raise NotImplementedError

    def count(self, mask: Tensor, weight: Tensor) -> Tensor:
        """The denominator of this batch, a scalar; arguments as ``shares``."""
        raise NotImplementedError

    def total(self, values: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        """The numerator, a scalar: ``values`` [B, K, C] times weights and shares; nothing outside the mask counts."""
        shares = self.shares(mask, weight) * weight[..., None]
        return (torch.where(mask, shares, 0.0) * torch.where(mask, values, 0.0)).sum()
