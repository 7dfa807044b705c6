"""Gradients of several processes: added up, and clipped by the norm of the sum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dlmrl_kit.core.processes import Processes
from dlmrl_kit.policies.sharding import is_sharded


def add_up_and_clip(parameters: Sequence[nn.Parameter], most: float, processes: Processes) -> float:
    """Adds up the gradients of all processes and clips them to a norm of at most ``most``; returns the norm before."""
    add_up((parameter for parameter in parameters if not is_sharded(parameter)), processes)
    return clip_grad_norm(parameters, most)


def add_up(parameters: Iterable[nn.Parameter], processes: Processes) -> None:
    """Adds up gradients of whole parameters; one that got none in any process has none afterwards.

    Those of sharded parameters were added up when they were computed.
    """
    parameters = list(parameters)
    there = [any(flags) for flags in zip(*processes.gather([p.grad is not None for p in parameters]), strict=True)]
    used = [parameter for parameter, some in zip(parameters, there, strict=True) if some]
    for parameter in used:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
    processes.add_up(parameter.grad for parameter in used if parameter.grad is not None)


def clip_grad_norm(parameters: Iterable[nn.Parameter], most: float) -> float:
    """Clips gradients by the norm of all of them together, sharded and whole ones; returns the norm."""
    with_gradient = [p for p in parameters if p.grad is not None]
    kinds = [[p for p in with_gradient if is_sharded(p) is sharded] for sharded in (True, False)]
    norms = [_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds if kind]
    if len(norms) > 1:  # the parts may lie in the CPU's memory, and what is whole on the device
        norm = torch.stack([norm.to(norms[-1].device) for norm in norms]).norm()
    else:
        norm = norms[0] if norms else torch.zeros(())
    for kind in kinds:  # torch clips no tensors of both kinds at once
        nn.utils.clip_grads_with_norm_(kind, most, norm)
    return norm.item()


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
