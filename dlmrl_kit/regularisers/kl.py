r"""KL regularisers: three single-sample estimators of KL(pi || reference), of steps, tokens or whole completions.

Functions of d = log pi - log reference (Schulman 2020, http://joschu.net/blog/kl-approx.html; gradients: arXiv
2506.09477). Under samples of pi:

    k1 = d                  E[k1] = KL(pi || reference),  E[grad k1] = 0
    k2 = d^2 / 2            E[k2] != KL,                  E[grad k2] = grad KL(pi || reference)
    k3 = exp(-d) - 1 + d    E[k3] = KL(pi || reference),  E[grad k3] = grad KL(reference || pi)

    step        loss = coefficient * (1/B) sum_bk w_bk k(d_bk)                          KLK1, KLK2, KLK3
    token       loss = coefficient * sum_bkc share_bkc w_bk k(d_bkc) / count            TokenKLK1, TokenKLK2, TokenKLK3
    completion  loss = coefficient * (1/B) sum_b k(sum_k w_bk d_bk) / |o_b|             SequenceKLK1, SequenceKLK2, ...

Each shares the denominator of the loss beside it, see ``regularisers.base``: the first and the last line are those
beside a loss that averages over samples.

The states are held fixed: how the policy changes the states that later steps meet is not differentiated. After an
update on the same batch the samples are the old policy's, and the expectations hold only approximately.
"""

from __future__ import annotations

from typing import Literal

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import (
    SELECTED_LOG_PROB,
    SELECTED_OLD_LOG_PROB,
    SELECTED_OLD_TOKEN_LOG_PROB,
    SELECTED_REF_LOG_PROB,
    SELECTED_REF_TOKEN_LOG_PROB,
    SELECTED_TOKEN_LOG_PROB,
    SELECTED_WEIGHT,
    SEQUENCE_LENGTH,
    Key,
)
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import where_used
from dlmrl_kit.core.validate import check
from dlmrl_kit.losses.base import Objective, Term, sequence_log_prob
from dlmrl_kit.normalisers.base import Normaliser
from dlmrl_kit.regularisers.base import Regulariser, TokenRegulariser

MAX_EXPONENT = 20.0
"""In k3, d is clamped from below at minus this, where k3 is 5e8 and would soon overflow; beyond, the gradient is 0."""

SCHULMAN = "Schulman 2020, Approximating KL Divergence"

To = Literal["reference", "old"]
"""What pi is compared with: the frozen reference policy, or the policy that generated the batch."""


def k1(log_ratio: Tensor) -> Tensor:
    """Returns the log-ratio itself."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """Returns half the squared log-ratio."""
    return 0.5 * log_ratio.square()


def k3(log_ratio: Tensor) -> Tensor:
    """Returns exp(-d) - 1 + d, computed as expm1(-d) + d, which keeps its sign in float32."""
    log_ratio = log_ratio.clamp(min=-MAX_EXPONENT)
    return (-log_ratio).expm1() + log_ratio


def compared(component: object, to: str, reference: Key, old: Key) -> tuple[str, Key]:
    """Returns the name of a KL to ``"reference"`` or ``"old"``, and which of the two keys it reads.

    Raises:
        ValueError: ``to`` is neither.
    """
    check(to in ("reference", "old"), component, "to", to, "'reference' or 'old'")
    return ("kl", reference) if to == "reference" else ("kl_old", old)


class KLEstimator(Regulariser):
    """Base class of estimators of KL(pi || reference) from the log-probabilities of steps; ``estimate`` is k.

    Args:
        coefficient: multiplies the mean; at least 0.
        to: ``"reference"``, the frozen reference policy, or ``"old"``, the policy that generated the batch.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "ref_log_prob")`` or
    ``("selected", "old_log_prob")``, and ``("selected", "weight")``, all [B, K]. Returns ``loss_kl`` and ``kl``
    (``loss_kl_old`` and ``kl_old`` for ``"old"``).

    Raises:
        ValueError: a value out of range.
    """

    estimate = staticmethod(k1)

    def __init__(self, coefficient: float = 0.04, to: To = "reference") -> None:
        name, other = compared(self, to, SELECTED_REF_LOG_PROB, SELECTED_OLD_LOG_PROB)
        super().__init__(coefficient, [SELECTED_LOG_PROB, other], f"loss_{name}", name)
        self.to_key = other

    def values(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Returns the estimate at each selected step, and which are used, [B, K]."""
        used = tensordict[SELECTED_WEIGHT] != 0
        new, other = (where_used(tensordict[key], used) for key in (SELECTED_LOG_PROB, self.to_key))
        return self.estimate(new - other.detach()), used

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the numerator of the average of the estimates at the selected steps."""
        return self.average.of_steps(self.values(tensordict)[0], tensordict), {}


@register("regulariser", paper=SCHULMAN)
class KLK1(KLEstimator):
    """Estimates the KL of steps by k1 = d: unbiased in value, but its gradient is 0 on average.

    As a loss it measures the KL and adds noise to the gradient; ``KLK2`` and ``KLExact`` minimise it. Arguments, reads,
    returns, raises as ``KLEstimator``.
    """

    estimate = staticmethod(k1)


@register("regulariser", paper=f"{SCHULMAN}; arXiv 2506.09477")
class KLK2(KLEstimator):
    """Estimates the KL of steps by k2 = d^2 / 2: biased in value, with the right gradient.

    Under samples of the current policy its expected gradient is exactly that of KL(pi || reference), so this is the
    estimator to minimise; the value it reports is not the KL. Arguments, reads, returns, raises as ``KLEstimator``.
    """

    estimate = staticmethod(k2)


@register("regulariser", paper=f"{SCHULMAN}; arXiv 2504.12216; arXiv 2603.12554")
class KLK3(KLEstimator):
    """Estimates the KL of steps by k3 = exp(-d) - 1 + d: unbiased, but with the gradient of KL(reference || pi).

    It is never negative. Minimising it, as d1 and EGSPO do, minimises KL(reference || pi): the same to first order near
    the reference, another thing far from it. d is clamped from below at -20, where k3 is 5e8 and would soon overflow;
    the gradient is 0 there. Arguments, reads, returns, raises as ``KLEstimator``.
    """

    estimate = staticmethod(k3)


class TokenKLEstimator(TokenRegulariser):
    """Base class of estimators of KL(pi || reference) from the log-probabilities of single tokens; ``estimate`` is k.

    Args:
        coefficient: multiplies the mean; at least 0.
        to: ``"reference"``, the frozen reference policy, or ``"old"``, the policy that generated the batch.
        normaliser: what the sum over tokens is divided by; None: what the loss is divided by, see ``TokenRegulariser``.

    Reads ``("selected", "token_log_prob")`` (with gradient), ``("selected", "ref_token_log_prob")`` or
    ``("selected", "old_token_log_prob")``, ``("selected", "token_mask")``, all [B, K, C], and
    ``("selected", "weight")`` [B, K]. Returns ``loss_kl`` and ``kl`` (``loss_kl_old`` and ``kl_old`` for ``"old"``).
    ``count`` is the normaliser's.

    Raises:
        ValueError: a value out of range.
    """

    estimate = staticmethod(k1)

    def __init__(self, coefficient: float = 0.04, to: To = "reference", normaliser: Normaliser | None = None) -> None:
        name, other = compared(self, to, SELECTED_REF_TOKEN_LOG_PROB, SELECTED_OLD_TOKEN_LOG_PROB)
        super().__init__(coefficient, [SELECTED_TOKEN_LOG_PROB, other], f"loss_{name}", name, normaliser)
        self.to_key = other

    def per_token(self, tensordict: TensorDictBase, mask: Tensor) -> Tensor:
        """Returns the estimate at each token, [B, K, C]."""
        new, other = (where_used(tensordict[key], mask) for key in (SELECTED_TOKEN_LOG_PROB, self.to_key))
        return self.estimate(new - other.detach())


@register("regulariser", paper=SCHULMAN)
class TokenKLK1(TokenKLEstimator):
    """Estimates the KL of tokens by k1 = d: unbiased in value, but its gradient is 0 on average.

    It measures the KL; ``TokenKLK2`` minimises it. Arguments, reads, returns, raises as ``TokenKLEstimator``.
    """

    estimate = staticmethod(k1)


@register("regulariser", paper=f"{SCHULMAN}; arXiv 2506.09477; arXiv 2508.13148")
class TokenKLK2(TokenKLEstimator):
    """Estimates the KL of tokens by k2 = d^2 / 2: biased in value, with the right gradient.

    Where tokens are samples of the distributions that score them, its expected gradient is that of their KL. MDPO
    minimises it. Arguments, reads, returns, raises as ``TokenKLEstimator``.
    """

    estimate = staticmethod(k2)


@register("regulariser", paper=f"{SCHULMAN}; arXiv 2504.12216; arXiv 2509.06949")
class TokenKLK3(TokenKLEstimator):
    """Estimates the KL of tokens by k3 = exp(-d) - 1 + d: unbiased, but with the gradient of KL(reference || pi).

    It is never negative. d1 compares with the frozen reference and takes the mean over tokens; TraceRL compares with
    the old policy. d is clamped from below at -20. Arguments, reads, returns, raises as ``TokenKLEstimator``.
    """

    estimate = staticmethod(k3)


class SequenceKLEstimator(Regulariser):
    """Base class of estimators of KL(pi || reference) from the log-probabilities of completions; ``estimate`` is k.

    As in ESPO (arXiv 2512.03759), k is applied to the log-ratio of the whole completion, and its value is divided by
    the length; applied to the log-ratio per token, k2 and k3 would be another quantity.

    Args:
        coefficient: multiplies the mean; at least 0.
        to: ``"reference"``, the frozen reference policy, or ``"old"``, the policy that generated the batch.

    Reads ``("selected", "log_prob")`` (with gradient), ``("selected", "ref_log_prob")`` or
    ``("selected", "old_log_prob")``, ``("selected", "weight")``, all [B, K], and ``("sequence", "length")`` int64 [B].
    Returns ``loss_kl`` and ``kl`` (``loss_kl_old`` and ``kl_old`` for ``"old"``). ``count`` is the loss's, or B.

    Raises:
        ValueError: a value out of range.
    """

    segmentwise = False
    estimate = staticmethod(k1)

    def __init__(self, coefficient: float = 0.01, to: To = "reference") -> None:
        name, other = compared(self, to, SELECTED_REF_LOG_PROB, SELECTED_OLD_LOG_PROB)
        super().__init__(coefficient, [SELECTED_LOG_PROB, other, SEQUENCE_LENGTH], f"loss_{name}", name)
        self.to_key = other

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the numerator of the average over samples of the estimates at the log-ratios of whole completions."""
        weight = tensordict[SELECTED_WEIGHT]
        new, other = (where_used(tensordict[key], weight != 0) for key in (SELECTED_LOG_PROB, self.to_key))
        log_ratio = sequence_log_prob(new - other.detach(), weight)
        return self.average.of_sequences(self.estimate(log_ratio), tensordict), {}

    def beside(self, loss: Objective) -> Term:
        """Returns the term with the loss's average; it is cut between segments only if that can be."""
        own = super().beside(loss)
        if own is not self:
            own.segmentwise = own.segmentwise and loss.average.cuts_sequences
        return own


@register("regulariser", paper=SCHULMAN)
class SequenceKLK1(SequenceKLEstimator):
    """Estimates the KL of completions, per token, by k1 = d: unbiased in value, but its gradient is 0 on average.

    It measures the KL; ``SequenceKLK2`` minimises it. Arguments, reads, returns, raises as ``SequenceKLEstimator``.
    """

    segmentwise = True  # linear in the log-ratio
    estimate = staticmethod(k1)


@register("regulariser", paper=f"{SCHULMAN}; arXiv 2506.09477; arXiv 2512.03759")
class SequenceKLK2(SequenceKLEstimator):
    """Estimates the KL of completions, per token, by k2 = d^2 / 2: biased in value, with the right gradient.

    ESPO minimises it. Under samples of the current policy its expected gradient is that of the KL, as far as log pi is
    exact. Arguments, reads, returns, raises as ``SequenceKLEstimator``.
    """

    estimate = staticmethod(k2)


@register("regulariser", paper=SCHULMAN)
class SequenceKLK3(SequenceKLEstimator):
    """Estimates the KL of completions, per token, by k3 = exp(-d) - 1 + d: the gradient is that of KL(reference || pi).

    Unbiased, as far as log pi is exact, and never negative. The exponential of a whole completion's log-ratio has a
    large variance; d is clamped from below at -20. Arguments, reads, returns, raises as ``SequenceKLEstimator``.
    """

    estimate = staticmethod(k3)
