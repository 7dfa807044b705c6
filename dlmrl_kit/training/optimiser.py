"""AdamW and its learning-rate schedule, from the trainer's settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler


def build_optimiser(
    parameters: list[nn.Parameter],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    schedule: str,
    warmup_steps: int,
    total_steps: int,
    others: Sequence[tuple[list[nn.Parameter], float]] = (),
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """AdamW (weight decay on matrices only), and one of ``trainers.base.SCHEDULES`` over ``total_steps`` steps.

    ``others``: parameters with a learning rate of their own, which follows the same schedule.
    """
    from transformers import get_scheduler

    groups: list[dict[str, Any]] = []
    for members, rate in ((parameters, learning_rate), *others):
        groups += [
            {"params": [p for p in members if p.dim() >= 2], "weight_decay": weight_decay, "lr": rate},
            {"params": [p for p in members if p.dim() < 2], "weight_decay": 0.0, "lr": rate},
        ]
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas)
    scheduler = get_scheduler(schedule, optimiser, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
    return optimiser, scheduler
