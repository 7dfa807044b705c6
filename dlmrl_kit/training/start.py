"""What training and pre-training begin with: the policy on its device, and its optimiser."""

from __future__ import annotations

from typing import Any

import torch

from dlmrl_kit.errors import RecipeError
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.seeding import derive_seed
from dlmrl_kit.training.optimiser import build_optimiser


def start_policy(source: Any, settings: Any, total_steps: int) -> tuple[Policy, torch.optim.Optimizer, Any]:
    """Loads the policy reproducibly, in float32 on its device, and builds optimiser and schedule.

    Args:
        source: a policy component.
        settings: a ``Trainer`` or pretrainer, for seed, device and the optimiser's settings.
        total_steps: optimiser steps of the whole run.

    Raises:
        UserError: no such checkpoint or device.
    """
    torch.manual_seed(derive_seed(settings.seed, "init"))
    policy: Policy = source.load()
    policy.to(find_device(settings.device))
    to_full_precision(policy)
    optimiser, scheduler = build_optimiser(
        [p for _, p in policy.trainable()],
        learning_rate=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        schedule=settings.schedule,
        warmup_steps=settings.warmup_steps,
        total_steps=total_steps,
    )
    return policy, optimiser, scheduler


def to_full_precision(policy: Policy) -> None:
    """Makes trained weights float32 where the checkpoint is in half precision: updates would be rounded away in it."""
    for _, p in policy.trainable():
        if p.dtype in (torch.bfloat16, torch.float16):
            p.data = p.data.float()


def find_device(name: str) -> torch.device:
    """The torch device of a ``device`` setting; ``auto`` is a GPU if there is one.

    Raises:
        RecipeError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RecipeError(f"device = {name!r} cannot be used here: {' '.join(str(error).split())}") from error
