"""Puts a correction to work on a rollout."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_CORRECTION, SELECTED_STEP, SELECTED_WEIGHT, STEP_LOG_PROB
from dlmrl_kit.core.trajectory import gather_steps, where_used
from dlmrl_kit.corrections.base import Correction, diagnostics


def add_correction(
    trajectory: TensorDictBase, correction: Correction, scored: TensorDictBase, log_prob: Tensor
) -> dict[str, float]:
    """Adds ``("selected", "correction")`` [B, K]: pi over what was sampled from, as the correction weighs it.

    Args:
        trajectory: with a selection and the log-probabilities recorded.
        correction: the recipe's.
        scored: the same, with every step selected where the correction asks for it.
        log_prob: [B, N], log pi of the steps selected in ``scored``.

    Returns:
        Diagnostics, see ``dlmrl_kit.corrections.base``.
    """
    used, happened = trajectory[SELECTED_WEIGHT] != 0, scored[SELECTED_WEIGHT] != 0
    log_ratio = where_used(log_prob - gather_steps(trajectory[STEP_LOG_PROB], scored[SELECTED_STEP]), happened)
    weights, truncated = (part.expand_as(used) for part in correction.weights(log_ratio, happened))
    trajectory.set(SELECTED_CORRECTION, weights.to(trajectory[SELECTED_WEIGHT].dtype).clone())
    return diagnostics(log_ratio[happened], weights[used], truncated[used])


def corrected(trajectory: TensorDictBase) -> TensorDictBase:
    """The trajectory with its weights multiplied by ``("selected", "correction")``."""
    return trajectory.set(SELECTED_WEIGHT, trajectory[SELECTED_WEIGHT] * trajectory[SELECTED_CORRECTION])
