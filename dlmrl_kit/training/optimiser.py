"""AdamW and its learning-rate schedule, from the trainer's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


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


def go_on(
    optimiser: torch.optim.Optimizer, scheduler: LRScheduler, state: dict[str, Any], progress: Mapping[str, Any]
) -> None:
    """Takes over moments and steps of an interrupted run, and keeps all settings as they were built.

    Learning rates are those of the schedule as it was built, at the step that the run had reached. In a run that goes
    on with the same settings they are the ones it stopped with, to the last bit.

    Args:
        optimiser, scheduler: from ``build_optimiser``.
        state: of the optimiser, as ``state_dict`` returned it.
        progress: of the schedule, as ``state_dict`` returned it.
    """
    built = [{name: value for name, value in group.items() if name != "params"} for group in optimiser.param_groups]
    rates = list(scheduler.base_lrs)
    optimiser.load_state_dict(state)
    steps = {name: progress[name] for name in ("last_epoch", "_step_count")}
    if isinstance(scheduler, LambdaLR):  # all of transformers' schedules that need nothing but the number of steps
        rates = [rate * at(steps["last_epoch"]) for rate, at in zip(rates, scheduler.lr_lambdas, strict=True)]
    scheduler.load_state_dict({**scheduler.state_dict(), **steps, "_last_lr": rates})
    for group, own, rate in zip(optimiser.param_groups, built, rates, strict=True):
        group.update({**own, "lr": rate})
