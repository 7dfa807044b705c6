r"""The interface of corrections: importance weights of steps that were not sampled from the policy itself.

A cached rollout (``dlmrl_kit.caches``) draws step t from mu(. | x_t) and records log mu(a_t | x_t). Before the first
optimiser step on the rollout, log pi(a_t | x_t) of the exact policy is computed at the steps that need it, and

    rho_t = pi(a_t | x_t) / mu(a_t | x_t)

becomes a factor of the selected step's weight. The ratio in the loss is another one: of the policy during the update to
the exact policy before it. It starts at 1 as without a cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from typing import Any, ClassVar

from torch import Tensor

from dlmrl_kit.core.behaviour import MAX_LOG_RATIO
from dlmrl_kit.core.component import Resizable
from dlmrl_kit.core.promises import Given, parts_fault, promises, tensor_fault
from dlmrl_kit.core.trajectory import where_used

SAMPLE_SIZE = "correction/effective_sample_size"
"""The metric of how many samples of weight 1 the weights are worth, as a share of them."""

POOR_SAMPLE_SIZE = 0.5
"""The user is warned if the effective sample size is below this share of the selected steps ..."""
MANY_TRUNCATED = 0.2
"""... or if the share of truncated weights is above this."""


def _weighed(result: Any, given: Given) -> str:
    if fault := parts_fault(result, "weights", "what was truncated"):
        return fault
    used, (weights, truncated) = given["used"], result
    shapes = (used.shape, (len(used), 1))
    return tensor_fault(weights, "real", *shapes, device=used.device, name="weights") or tensor_fault(
        truncated, "bool", weights.shape, device=used.device, name="what was truncated"
    )


class Correction(Resizable, ABC):
    """Base class of corrections."""

    every_step: ClassVar[bool] = False
    """Whether it needs log pi of every step, not only of the selected ones: as many forwards as an exact rollout."""
    single_steps: ClassVar[bool] = True
    """Whether it weighs single steps, so that each entry of a selection must stand for one step."""

    weighs: ClassVar[bool] = True
    """Whether its weights tell of drift, as ``AdaptiveRefresh`` needs: it does not where all of them are 1."""

    @abstractmethod
    @promises(_weighed)
    def weights(self, log_ratio: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Computes importance weights, by which the weights of the selected steps are multiplied.

        Args:
            log_ratio: log rho, [B, N], of the selected steps, or of all steps if ``every_step``.
            used: bool [B, N], False at padding, where ``log_ratio`` may hold anything.

        Returns:
            Weights [B, N], or [B, 1] for whole samples, without gradient; and bool of the same shape, True where a
            weight was truncated.
        """


def ratios(log_ratio: Tensor, used: Tensor) -> Tensor:
    """Computes rho, [B, N], 1 where ``used`` is False; log-ratios are clamped to +-20 so that none overflows."""
    return where_used(log_ratio, used).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


@dataclass(frozen=True)
class Drift:
    """How far a rollout is from the policy: sums over its steps, so that those of several processes add up.

    Attributes:
        steps: number of steps whose log-ratio is known.
        distance: sum of their |log rho|, in nats.
        weights: number of importance weights.
        total, squares: sums of the weights and of their squares.
        truncated: number of truncated ones.
    """

    steps: int = 0
    distance: float = 0.0
    weights: int = 0
    total: float = 0.0
    squares: float = 0.0
    truncated: int = 0

    @classmethod
    def of(cls, drifts: Tensor, weights: Tensor, truncated: Tensor) -> Drift:
        """Adds up log rho of steps, float [n], and the weights of the selected steps, float and bool [m]."""
        w = weights.double()
        sums = w.sum().item(), w.square().sum().item(), int(truncated.sum())
        return cls(len(drifts), drifts.double().abs().sum().item(), len(w), *sums)

    def __add__(self, other: Drift) -> Drift:
        return Drift(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of a correction; none without steps.

        They are ``correction/drift``, the mean |log rho| in nats; ``correction/effective_sample_size``, which is
        (sum w)^2 / (m sum w^2), in (0, 1]; ``correction/truncated``, the share of truncated weights.
        """
        if not self.steps or not self.weights:
            return {}
        return {
            "correction/drift": self.distance / self.steps,
            SAMPLE_SIZE: self.total**2 / max(self.weights * self.squares, 1e-300),
            "correction/truncated": self.truncated / self.weights,
        }


def warning(metrics: dict[str, float], stale: bool = False) -> str | None:
    """Returns a sentence for the user if ``Drift.metrics`` show that samples are far from the policy, else None.

    Args:
        metrics: of a rollout.
        stale: whether it was sampled with weights of an earlier update.
    """
    size, share = metrics.get(SAMPLE_SIZE, 1.0), metrics.get("correction/truncated", 0.0)
    if size >= POOR_SAMPLE_SIZE and share <= MANY_TRUNCATED:
        return None
    closer = "PrefixCache, a smaller refresh or block_length, or no cache would be closer"
    if stale:
        closer = "a lower learning rate, EntropyOrder, or rollouts that are no update behind would be closer"
    return (
        f"the rollout's distribution is far from the policy's: effective sample size {size:.0%} of the steps, "
        f"{share:.0%} of the importance weights truncated, drift {metrics['correction/drift']:.2g} nats per step; "
        + closer
    )
