r"""KL regularisers of whole completions: an estimator of the sequence log-ratio, per token of the completion.

    loss = coefficient * (1/B) sum_b k(d_b) / |o_b|,    d_b = sum_k w_bk (log pi_bk - log reference_bk)

The estimator is applied to the log-ratio of the whole completion, and its value is divided by the length (ESPO, arXiv
2512.03759); applied to the log-ratio per token, k2 and k3 would be another quantity.
"""

from __future__ import annotations

from typing import Literal

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    SELECTED_LOG_PROB,
    SELECTED_OLD_LOG_PROB,
    SELECTED_REF_LOG_PROB,
    SELECTED_WEIGHT,
    SEQUENCE_LENGTH,
)
from dlmrl_kit.losses.base import keep
from dlmrl_kit.losses.sequence_base import sequence_length, sequence_log_prob
from dlmrl_kit.regularisers.base import Regulariser, compared


class SequenceKLEstimator(Regulariser):
    """Base class of estimators of KL(pi || reference) from the log-probabilities of whole completions.

    Args:
        coefficient: multiplies the mean; at least 0.
        to: ``"reference"``, the frozen reference policy, or ``"old"``, the policy that generated the batch.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "ref_log_prob")`` or
    ``("selected", "old_log_prob")``, ``("selected", "weight")``, all [B, K], and ``("sequence", "length")`` int64 [B].
    Returns ``loss_kl`` and ``kl`` (``loss_kl_old`` and ``kl_old`` for ``"old"``). ``count`` is the number of samples B.

    Raises:
        ValueError: a value out of range.
    """

    slotwise = False

    def __init__(self, coefficient: float = 0.01, to: Literal["reference", "old"] = "reference") -> None:
        name, other = compared(self, to, SELECTED_REF_LOG_PROB, SELECTED_OLD_LOG_PROB)
        super().__init__(coefficient, [SELECTED_LOG_PROB, other, SEQUENCE_LENGTH], f"loss_{name}", name)
        self.to_key = other

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """The estimator at log pi - log reference, element-wise."""
        raise NotImplementedError

    def total(self, tensordict: TensorDictBase) -> Tensor:
        """Sum over samples of the estimate at the sequence log-ratio, each over its length."""
        weight = tensordict[SELECTED_WEIGHT]
        used = weight != 0
        difference = keep(tensordict[SELECTED_LOG_PROB], used) - keep(tensordict[self.to_key], used).detach()
        return (self.estimate(sequence_log_prob(difference, weight)) / sequence_length(tensordict)).sum()
