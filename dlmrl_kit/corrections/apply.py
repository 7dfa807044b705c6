"""Puts a correction to work on a rollout."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.dataflow import RECORDED, STEP
from dlmrl_kit.core.trajectory import gather_steps
from dlmrl_kit.corrections.base import CORRECTION, Correction, diagnostics
from dlmrl_kit.losses.base import WEIGHT, keep


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
    used, happened = trajectory[WEIGHT] != 0, scored[WEIGHT] != 0
    log_ratio = keep(log_prob - gather_steps(trajectory[RECORDED], scored[STEP]), happened)
    weights, truncated = (part.expand_as(used) for part in correction.weights(log_ratio, happened))
    trajectory.set(CORRECTION, weights.to(trajectory[WEIGHT].dtype).clone())
    return diagnostics(log_ratio[happened], weights[used], truncated[used])


def corrected(trajectory: TensorDictBase) -> TensorDictBase:
    """The trajectory with its weights multiplied by ``("selected", "correction")``, where there is one."""
    if CORRECTION not in trajectory.keys(True, True):
        return trajectory
    return trajectory.set(WEIGHT, trajectory[WEIGHT] * trajectory[CORRECTION])
