"""AdamW and its learning-rate schedule, from the trainer's settings."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Makes AdamW, with weight decay on matrices only, and its learning-rate schedule.

    Args:
        parameters: the trained parameters.
        learning_rate, betas, weight_decay: of AdamW.
        schedule: one of ``trainers.base.SCHEDULES``.
        warmup_steps, total_steps: optimiser steps of the warm-up and of the whole run.
        others: further parameters, each list with its own learning rate, which follows the same schedule.
    """
    from transformers import get_scheduler

    groups: list[dict[str, object]] = []
    for members, rate in ((parameters, learning_rate), *others):
        matrices, vectors = [p for p in members if p.dim() >= 2], [p for p in members if p.dim() < 2]
        if matrices:
            groups.append({"params": matrices, "weight_decay": weight_decay, "lr": rate})
        if vectors:
            groups.append({"params": vectors, "weight_decay": 0.0, "lr": rate})
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, betas=betas)
    scheduler = get_scheduler(schedule, optimiser, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
    return optimiser, scheduler
