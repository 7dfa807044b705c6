"""What training and pre-training begin with: the policy on its device, and its optimiser."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from dlmrl_kit.component import Component
from dlmrl_kit.errors import RecipeError
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.seeding import derive_seed
from dlmrl_kit.training.optimiser import build_optimiser


def start_policy(
    source: Any, settings: Any, total_steps: int, components: Iterable[Component] = ()
) -> tuple[Policy, torch.optim.Optimizer, Any]:
    """Loads the policy reproducibly, in float32 on its device, and builds optimiser and schedule.

    Args:
        source: a policy component.
        settings: a ``Trainer`` or pretrainer, for seed, device and the optimiser's settings.
        total_steps: optimiser steps of the whole run.
        components: that may train modules of their own; they are attached to the policy.

    Raises:
        UserError: no such checkpoint or device.
    """
    torch.manual_seed(derive_seed(settings.seed, "init"))
    policy: Policy = source.load()
    policy.to(find_device(settings.device))
    to_full_precision(policy)
    attach(components, policy)
    optimiser, scheduler = build_optimiser(
        list(trained(policy, components).values()),
        learning_rate=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        schedule=settings.schedule,
        warmup_steps=settings.warmup_steps,
        total_steps=total_steps,
    )
    return policy, optimiser, scheduler


def attach(components: Iterable[Component], policy: Policy) -> None:
    """Lets components create their modules for a policy, on its device."""
    for component in components:
        component.attach(policy)
        component.to(policy.device)


def own_parameters(components: Iterable[Component]) -> dict[str, torch.nn.Parameter]:
    """Parameters that components train beside the policy, by ``component:<class>.<name>``."""
    return {
        f"component:{type(component).__name__}.{name}": parameter
        for component in components
        for name, parameter in component.named_parameters()
        if parameter.requires_grad
    }


def trained(policy: Policy, components: Iterable[Component] = ()) -> dict[str, torch.nn.Parameter]:
    """Everything the optimiser updates, by name."""
    return {**dict(policy.trainable()), **own_parameters(components)}


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
