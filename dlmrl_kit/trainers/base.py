"""Settings that training and pre-training share: AdamW, its schedule, the device and the seed."""

from __future__ import annotations

from typing import TypedDict

from dlmrl_kit.core.dependencies import Dependent
from dlmrl_kit.core.validate import check

SCHEDULES: tuple[str, ...] = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
)
"""The schedules of ``transformers.get_scheduler`` that need nothing but warm-up and number of steps."""


PRECISIONS: tuple[str, ...] = ("float32", "bfloat16")
"""What forwards may compute in; weights and optimiser stay in float32."""

EVAL_BATCH_SIZE = 256
"""Completions that an evaluation decodes at once, where no setting says how many."""


FLOAT32 = 3e38
"""Larger numbers are infinite in float32."""


class OptimiserArguments(TypedDict):
    """Types the arguments of ``OptimiserSettings`` that subclasses hand on as ``**settings``."""

    learning_rate: float
    schedule: str
    warmup_steps: int
    betas: tuple[float, float]
    weight_decay: float
    max_grad_norm: float
    device: str
    seed: int


class OptimiserSettings(Dependent):
    """AdamW (arXiv 1711.05101) with a learning-rate schedule and gradient clipping.

    Args:
        learning_rate: peak learning rate.
        schedule: one of ``SCHEDULES``.
        warmup_steps: optimiser steps of linear warm-up.
        betas, weight_decay: of AdamW.
        max_grad_norm: gradient clipping by global norm.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` ...
        seed: of everything random.

    Attributes:
        precision: what the forwards of rollouts and evaluations compute in: ``float32`` or ``bfloat16``.
        eval_batch_size: completions that an evaluation decodes at once.

    Raises:
        ValueError: a value out of range.
    """

    precision: str = "float32"
    eval_batch_size: int = EVAL_BATCH_SIZE

    def __init__(
        self,
        learning_rate: float,
        schedule: str,
        warmup_steps: int,
        betas: tuple[float, float],
        weight_decay: float,
        max_grad_norm: float,
        device: str,
        seed: int,
    ) -> None:
        check(learning_rate > 0, self, "learning_rate", learning_rate, "positive")
        for name, beta in zip(("beta1", "beta2"), betas, strict=True):
            check(0 <= beta < 1, self, name, beta, "in [0, 1)")
        check(weight_decay >= 0, self, "weight_decay", weight_decay, "at least 0")
        step = max(learning_rate / (1 - betas[0]), learning_rate * weight_decay)  # what AdamW multiplies weights with
        fits = step < FLOAT32
        check(fits, self, "learning_rate", learning_rate, f"so small that AdamW's steps are below {FLOAT32:.0e}")
        check(max_grad_norm > 0, self, "max_grad_norm", max_grad_norm, "positive")
        check(schedule in SCHEDULES, self, "schedule", schedule, f"one of {', '.join(SCHEDULES)}")
        check(warmup_steps >= 0, self, "warmup_steps", warmup_steps, "at least 0")
        allowed = warmup_steps == 0 or schedule != "constant"
        check(allowed, self, "warmup_steps", warmup_steps, "0 with schedule 'constant' (or take constant_with_warmup)")
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.beta1, self.beta2 = betas
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.device = device
        self.seed = seed

    @property
    def betas(self) -> tuple[float, float]:
        """Of AdamW: ``beta1`` and ``beta2``."""
        return self.beta1, self.beta2
