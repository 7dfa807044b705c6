"""Random weights for samplers whose order of positions is a module."""

from __future__ import annotations

from typing import Any

import torch

from dlmrl_kit.samplers.learned_order import ModuleOrder


def randomise(sampler: ModuleOrder, policy: Any, scale: float) -> None:
    """Attaches a sampler to a policy, and draws all weights of its module from a normal distribution, in float64."""
    sampler.attach(policy)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sampler.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
