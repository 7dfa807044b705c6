r"""Regularisers are terms added to the loss, summed over selected segments and averaged as the loss beside them is.

    loss = coefficient * (1/B) sum_b sum_k w_bk value_bk                        beside a loss that averages over samples
    loss = coefficient * sum_bkc share_bkc w_bk (value_bk / n_bk) / count       beside a loss of tokens

Policy term and regularisers share their denominator unless a recipe says otherwise, by giving a regulariser of tokens a
normaliser of its own. Beside a loss of tokens the value of a step (of n_bk tokens) or of a completion is spread evenly
over its tokens, and these are averaged as the tokens of the loss are.

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
from dlmrl_kit.core.promises import Given, like, promises, tensor_fault
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import Objective, Term, TokenAverage, scored_tokens
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.normalisers.means import PerToken


def _of_segments(result: object, given: Given) -> str:
    weight = given["tensordict"][SELECTED_WEIGHT]
    return tensor_fault(result, "real", weight.shape, device=weight.device)


class Regulariser(Term):
    """Base class of regularisers. Subclasses implement ``total`` by the methods of ``average``.

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

    def beside(self, loss: Objective) -> Term:
        """Returns the term with the loss's average, so that both share their denominator."""
        if loss.average is self.average:
            return self
        own = copy.copy(self)
        own.average = loss.average
        own.in_keys = [*self.in_keys, *(key for key in loss.average.reads if key not in self.in_keys)]
        own.segmentwise = self.segmentwise and loss.average.segmentwise
        return own


class StepRegulariser(Regulariser):
    """Base class of regularisers that are a weighted sum over the selected steps: subclasses implement ``per_step``.

    Arguments, writes, raises as ``Regulariser``.
    """

    @abstractmethod
    @promises(_of_segments)
    def per_step(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the regularised quantity of each selected step, [B, K], with gradient."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the numerator of the average over the selected steps."""
        return self.average.of_steps(self.per_step(tensordict), tensordict), {}

    def values(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Returns the regularised quantity of each step, and which are used, [B, K]."""
        return self.per_step(tensordict), tensordict[SELECTED_WEIGHT] != 0


class TokenRegulariser(Regulariser):
    """Base class of regularisers of single tokens: subclasses implement ``per_token``.

    Args:
        coefficient, in_keys, loss_key, mean_key: as ``Regulariser``; the token mask is read too.
        normaliser: what the sum over tokens is divided by; None: what the loss is divided by, and ``PerToken()`` where
            there is no loss.

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
        self.average = TokenAverage(PerToken() if normaliser is None else normaliser)
        self.segmentwise = self.average.segmentwise

    def beside(self, loss: Objective) -> Term:
        """Returns the term with the loss's average, if it was made without a normaliser."""
        return self if self.normaliser is not None else super().beside(loss)

    @abstractmethod
    @promises(like("real", "mask"))
    def per_token(self, tensordict: TensorDictBase, mask: Tensor) -> Tensor:
        """Returns the regularised quantity of each token in ``mask`` (bool [B, K, C]): [B, K, C], with gradient."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the numerator of the average over the tokens."""
        return self.average.of_tokens(*self.values(tensordict), tensordict), {}

    def values(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Returns the regularised quantity of each token, and which are used, [B, K, C]."""
        mask = scored_tokens(tensordict)
        return self.per_token(tensordict, mask), mask
