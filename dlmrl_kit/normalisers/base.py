r"""The interface of normalisers, which say how much each token counts in a loss, and what the sum is divided by.

    loss = sum over segments k and tokens c of weight_k * share_kc * value_kc / count

with the selector's weights. Numerator and count are additive over samples, so that micro-batches accumulate exactly
(see ``losses.base``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from dlmrl_kit.core.component import Resizable
from dlmrl_kit.core.promises import like, promises, scalar


class Normaliser(Resizable, ABC):
    """Base class of normalisers.

    Attributes:
        segmentwise: whether the share of a token is independent of the other segments of its sample, so that a sample
            may be cut between them.
    """

    segmentwise: ClassVar[bool] = True

    @abstractmethod
    @promises(like("real", "mask"))
    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Returns the share of each token, 0 where the mask is False.

        Args:
            mask: bool [B, K, C], the tokens that count; none in segments of weight 0.
            weight: float [B, K], the selector's, without gradient.

        Returns:
            [B, K, C], of the dtype of ``weight``.
        """

    @abstractmethod
    @promises(scalar("number", "mask"))
    def count(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Returns the denominator of this batch, a scalar; arguments as ``shares``."""

    @promises(scalar("real", "mask"))
    def total(self, values: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        """Returns the numerator, a scalar: the sum of ``values`` [B, K, C] times weights and shares, over the mask."""
        shares = self.shares(mask, weight) * weight[..., None]
        return (torch.where(mask, shares, 0.0) * torch.where(mask, values, 0.0)).sum()
