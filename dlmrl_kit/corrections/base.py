r"""Corrections: importance weights of steps that were sampled from another distribution than the policy.

A cached rollout (``dlmrl_kit.caches``) draws step t from mu(. | x_t) and records log mu(a_t | x_t). Before the first
update the policy's own log pi(a_t | x_t) is computed at the steps that need it, and

    rho_t = pi(a_t | x_t) / mu(a_t | x_t)

becomes a factor of the weight of the selected step. The loss keeps its own ratio, of the policy during the update over
the one before it, which starts at 1 as ever.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from dlmrl_kit.core.behaviour import MAX_LOG_RATIO
from dlmrl_kit.core.trajectory import where_used

POOR_SAMPLE_SIZE = 0.5
"""An effective sample size below this share of the samples is worth a warning."""
MANY_TRUNCATED = 0.2
"""So is a share of truncated weights above this."""


class Correction(ABC):
    """Base class of corrections."""

    every_step: ClassVar[bool] = False
    """Whether it needs log pi of every step, not only of those selected: as many forwards as an exact rollout."""
    single_steps: ClassVar[bool] = True
    """Whether an entry of a selection must stand for one step, which it weighs."""

    @abstractmethod
    def weights(self, log_ratio: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Importance weights of steps.

        Args:
            log_ratio: log rho, [B, N], of the selected steps, or of every step where ``every_step``.
            used: bool [B, N], the steps that there are; the others hold anything.

        Returns:
            Weights [B, N] or [B, 1] that multiply those of the selected steps, without gradient; and bool of the same
            shape, where they were truncated.
        """


def ratios(log_ratio: Tensor, used: Tensor) -> Tensor:
    """rho, [B, N], 1 where there is no step; log-ratios are clamped to +-20 so that none overflows."""
    return where_used(log_ratio, used).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def diagnostics(drifts: Tensor, weights: Tensor, truncated: Tensor) -> dict[str, float]:
    """What to report of a correction.

    Args:
        drifts: log rho of steps, [n].
        weights, truncated: of the selected steps, real and bool [m].

    Returns:
        ``correction/drift``: mean |log rho|, in nats; ``correction/effective_sample_size``: (sum w)^2 / (m sum w^2), in
        (0, 1]; ``correction/truncated``: share of the weights that were truncated. Nothing without steps.
    """
    if drifts.numel() == 0 or weights.numel() == 0:
        return {}
    w = weights.double()
    return {
        "correction/drift": drifts.abs().mean().item(),
        "correction/effective_sample_size": (w.sum().square() / (len(w) * w.square().sum()).clamp(min=1e-300)).item(),
        "correction/truncated": truncated.double().mean().item(),
    }


def warning(metrics: dict[str, float]) -> str | None:
    """What a user should know of these diagnostics, in a sentence; None if they are fine."""
    size, share = metrics.get("correction/effective_sample_size", 1.0), metrics.get("correction/truncated", 0.0)
    if size >= POOR_SAMPLE_SIZE and share <= MANY_TRUNCATED:
        return None
    return (
        f"the rollout's distribution is far from the policy's: effective sample size {size:.0%} of the steps, "
        f"{share:.0%} of the importance weights truncated, drift {metrics['correction/drift']:.2g} nats per step; "
        "PrefixCache, a smaller block_length or no cache would be closer"
    )
