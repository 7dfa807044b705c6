r"""Regularisers: terms added to the loss, summed over selected steps and averaged over samples as the losses are.

    loss = coefficient * (1/B) sum_b sum_k w_bk value_bk

They accumulate over micro-batches exactly (see ``losses.base``), and padded slots (weight 0) count exactly nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_LOG_PROB, SELECTED_OLD_LOG_PROB, SELECTED_REF_LOG_PROB, SELECTED_WEIGHT, Key
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import Term, keep, weighted_sum


class Regulariser(Term):
    """Base class of regularisers. Subclasses implement ``per_step``; or ``total``, and ``count`` if that is not B.

    Args:
        coefficient: multiplies the mean; at least 0.
        in_keys: keys that ``per_step`` reads; the weight is added.
        loss_key: name of the term in the loss, ``loss_`` and something.
        mean_key: name of the mean before it is multiplied.

    Writes the scalars ``loss_key`` (to be descended) and ``mean_key`` (detached).

    Raises:
        ValueError: a value out of range.
    """

    slotwise = True
    sign: ClassVar[float] = 1.0
    """-1 for a bonus: the mean is then subtracted."""

    def __init__(self, coefficient: float, in_keys: Sequence[Key], loss_key: str, mean_key: str) -> None:
        super().__init__([*in_keys, SELECTED_WEIGHT], [loss_key, mean_key])
        check(0 <= coefficient < math.inf, self, "coefficient", coefficient, "at least 0 and finite")
        self.coefficient = coefficient

    def per_step(self, tensordict: TensorDictBase) -> Tensor:
        """The regularised quantity of each selected step, [B, K], with gradient."""
        raise NotImplementedError

    def total(self, tensordict: TensorDictBase) -> Tensor:
        """The numerator of the mean, a scalar: here the weighted sum over the selected steps."""
        return weighted_sum(self.per_step(tensordict), tensordict[SELECTED_WEIGHT])

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The term of this batch, and its mean before it is multiplied."""
        mean = self.mean(self.total(tensordict), tensordict)
        loss_key, mean_key = self.out_keys
        return TensorDict({loss_key: self.sign * self.coefficient * mean, mean_key: mean.detach()})


def compared(component: object, to: str, reference: Key, old: Key) -> tuple[str, Key]:
    """Name of a KL to ``"reference"`` or ``"old"``, and which of the two keys it reads.

    Raises:
        ValueError: ``to`` is neither.
    """
    check(to in ("reference", "old"), component, "to", to, "'reference' or 'old'")
    return ("kl", reference) if to == "reference" else ("kl_old", old)


class KLEstimator(Regulariser):
    """Base class of single-sample estimators of KL(pi || reference), functions of d = log pi - log reference.

    The states are held fixed: how the policy changes the states that later steps meet is not differentiated (arXiv
    2506.09477 discusses this for sequences). The expectations that subclasses name are under samples of the current pi;
    after an update on the same batch the samples are the old policy's, and they hold only approximately.

    Args:
        coefficient: multiplies the mean; at least 0.
        to: ``"reference"``, the frozen reference policy, or ``"old"``, the policy that generated the batch.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "ref_log_prob")`` or
    ``("selected", "old_log_prob")``, and ``("selected", "weight")``, all [B, K]. Returns ``loss_kl`` and ``kl``
    (``loss_kl_old`` and ``kl_old`` for ``"old"``).

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, coefficient: float = 0.04, to: Literal["reference", "old"] = "reference") -> None:
        name, other = compared(self, to, SELECTED_REF_LOG_PROB, SELECTED_OLD_LOG_PROB)
        super().__init__(coefficient, [SELECTED_LOG_PROB, other], f"loss_{name}", name)
        self.to_key = other

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """The estimator at log pi - log reference, element-wise."""
        raise NotImplementedError

    def per_step(self, tensordict: TensorDictBase) -> Tensor:
        """The estimate at each selected step, [B, K]."""
        used = tensordict[SELECTED_WEIGHT] != 0
        return self.estimate(keep(tensordict[SELECTED_LOG_PROB], used) - keep(tensordict[self.to_key], used).detach())
