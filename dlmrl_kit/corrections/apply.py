"""Applies a correction to a rollout: computes its weights, and multiplies those of the selection by them."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_CORRECTION, SELECTED_STEP, SELECTED_WEIGHT, STEP_LOG_PROB
from dlmrl_kit.core.trajectory import gather_steps, where_used
from dlmrl_kit.corrections.base import Correction, Drift


def add_correction(
    trajectory: TensorDictBase, correction: Correction, scored: TensorDictBase, log_prob: Tensor
) -> Drift:
    """Adds ``("selected", "correction")`` [B, K], the importance weights of the selected steps.

    Args:
        trajectory: with a selection, and with the sampler's recorded log-probabilities.
        correction: computes weights from log-ratios.
        scored: the same trajectory, but with every step selected if ``correction.every_step``.
        log_prob: [B, N], log pi of the steps selected in ``scored``.

    Returns:
        How far the rollout is from the policy.
    """
    used, happened = trajectory[SELECTED_WEIGHT] != 0, scored[SELECTED_WEIGHT] != 0
    log_ratio = where_used(log_prob - gather_steps(trajectory[STEP_LOG_PROB], scored[SELECTED_STEP]), happened)
    weights, truncated = (part.expand_as(used) for part in correction.weights(log_ratio, happened))
    trajectory.set(SELECTED_CORRECTION, weights.to(trajectory[SELECTED_WEIGHT].dtype).clone())
    return Drift.of(log_ratio[happened], weights[used], truncated[used])


def of_selected(trajectory: TensorDictBase, correction: Correction, values: Tensor) -> Tensor:
    """Returns the values [B, K, ...] of the selected steps, 0 where the weight is.

    Args:
        trajectory: with a selection.
        correction: which steps were scored.
        values: [B, T, ...] of every step if ``correction.every_step``, else already those of the selected ones.
    """
    if not correction.every_step:
        return values
    found, used = gather_steps(values, trajectory[SELECTED_STEP]), trajectory[SELECTED_WEIGHT] != 0
    return where_used(found, used.reshape(*used.shape, *[1] * (found.dim() - 2)))


def apply_correction(trajectory: TensorDictBase) -> TensorDictBase:
    """Multiplies the weights of a trajectory by ``("selected", "correction")``, in place; returns the trajectory."""
    return trajectory.set(SELECTED_WEIGHT, trajectory[SELECTED_WEIGHT] * trajectory[SELECTED_CORRECTION])
