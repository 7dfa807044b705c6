r"""Regularisers are terms added to the loss, summed over selected segments and averaged over samples as losses are.

    loss = coefficient * (1/B) sum_b sum_k w_bk value_bk

Policy term and regularisers share their denominator unless a recipe says otherwise: a regulariser of tokens without a
normaliser of its own takes that of the loss beside it.

They accumulate over micro-batches exactly (see ``losses.base``), and padding (weight 0) counts exactly nothing.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_TOKEN_MASK, SELECTED_WEIGHT, Key
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import Objective, Term, scored_tokens, weighted_sum
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.normalisers.means import PerToken


class Regulariser(Term):
    """Base class of regularisers. Subclasses implement ``total``, and ``count`` if that is not B.

    Args:
        coefficient: multiplies the mean; at least 0.
        in_keys: keys that ``total`` reads; the weight is added.
        loss_key: key of the term in the loss, ``loss_`` and something.
        mean_key: key of the mean before it is multiplied.

    Writes the scalars ``loss_key`` (to be minimised) and ``mean_key`` (detached).

    Raises:
        ValueError: a value out of range.
    """

    segmentwise = True
    sign: ClassVar[float] = 1.0
    """-1 for a bonus: the mean is then subtracted."""

    def __init__(self, coefficient: float, in_keys: Sequence[Key], loss_key: str, mean_key: str) -> None:
        super().__init__([*in_keys, SELECTED_WEIGHT], [loss_key, mean_key])
        check(0 <= coefficient < math.inf, self, "coefficient", coefficient, "at least 0 and finite")
        self.coefficient = coefficient
        self.factor = self.sign * coefficient
        self.mean_key = mean_key


class StepRegulariser(Regulariser):
    """Base class of regularisers that are a weighted sum over the selected steps: subclasses implement ``per_step``.

    Arguments, writes, raises as ``Regulariser``.
    """

    @abstractmethod
    def per_step(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the regularised quantity of each selected step, [B, K], with gradient."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum over the selected steps."""
        return weighted_sum(self.per_step(tensordict), tensordict[SELECTED_WEIGHT]), {}


class TokenRegulariser(Regulariser):
    """Base class of regularisers of single tokens: subclasses implement ``per_token``.

    Args:
        coefficient, in_keys, loss_key, mean_key: as ``Regulariser``; the token mask is read too.
        normaliser: what the sum over tokens is divided by; None: that of the loss, ``PerToken()`` beside a loss that
            has none.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        coefficient: float,
        in_keys: Sequence[Key],
        loss_key: str,
        mean_key: str,
        normaliser: Normaliser | None,
    ) -> None:
        super().__init__(coefficient, [*in_keys, SELECTED_TOKEN_MASK], loss_key, mean_key)
        check(normaliser is None or isinstance(normaliser, Normaliser), self, "normaliser", normaliser, "a normaliser")
        self.normaliser = normaliser
        self.segmentwise = self.divisor.segmentwise

    @property
    def divisor(self) -> Normaliser:
        """The normaliser in use."""
        return PerToken() if self.normaliser is None else self.normaliser

    def beside(self, loss: Objective) -> Term:
        """Returns the term with the loss's normaliser, if it was made without one."""
        if self.normaliser is not None or loss.normaliser is None:
            return self
        own = copy.copy(self)
        own.normaliser, own.segmentwise = loss.normaliser, loss.normaliser.segmentwise
        return own

    @abstractmethod
    def per_token(self, tensordict: TensorDictBase, mask: Tensor) -> Tensor:
        """Returns the regularised quantity of each token in ``mask`` (bool [B, K, C]): [B, K, C], with gradient."""

    def count(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the normaliser's denominator of this batch, a scalar."""
        return self.divisor.count(scored_tokens(tensordict), tensordict[SELECTED_WEIGHT].detach())

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the normaliser's numerator."""
        mask, weight = scored_tokens(tensordict), tensordict[SELECTED_WEIGHT].detach()
        return self.divisor.total(self.per_token(tensordict, mask), mask, weight), {}
