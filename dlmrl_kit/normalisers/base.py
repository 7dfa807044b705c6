r"""Normalisers: what a weighted sum over tokens is divided by.

    loss = sum over slots k and tokens c of weight_k * share_kc * value_kc / count

The weights are the selector's. Numerator and count are additive over samples, so that micro-batches accumulate exactly
(see ``losses.base``).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor


class Normaliser:
    """Base class of normalisers.

    ``slotwise``: whether the share of a token does not depend on the other slots of its sample.
    """

    slotwise: ClassVar[bool] = True

    def shares(self, mask: Tensor, weight: Tensor) -> Tensor:
        """Share of each token: real [B, K, C] from the tokens that count, bool [B, K, C], and real [B, K]."""
        raise NotImplementedError

    def count(self, mask: Tensor, weight: Tensor) -> Tensor:
        """The denominator of this batch, a scalar."""
        raise NotImplementedError
