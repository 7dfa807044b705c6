"""What is left of a run whose numbers are not finite any more: which of its checkpoints still holds a policy.

A checkpoint is called intact only if it is as it was written, its weights are finite, and they are near those before:
those of the checkpoint before it, and, not as near, those that the run started from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.finite import all_finite
from dlmrl_kit.core.seeding import derive_seed
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.training.checkpoint import WEIGHTS, checkpoints, intact
from dlmrl_kit.training.tensor_files import read

NEAR, NEAR_START = 1.0, 10.0
"""The largest distances from the weights of the checkpoint before and from the first ones, relative to their norms."""

Weights = Mapping[str, Tensor]


def what_is_left(run: Path, start: Callable[[], Weights]) -> str:
    """Says which checkpoint of a run folder is intact, and what is wrong with the later ones.

    Args:
        run: the run folder.
        start: returns the trained weights before the first update; only called where there is a checkpoint.

    Returns:
        The end of a sentence on an error.
    """
    found = [folder for _, folder in reversed(checkpoints(run))]
    if not found:
        return "there is no checkpoint yet: start a new run"
    first, faults = _start(start), list[str]()
    for folder, before in zip(found, [*found[1:], None], strict=True):
        earlier = first if before is None else _read(before)
        fault, distance = _compare(folder, earlier, first)
        if not fault:
            name = "the start" if before is None else before.name
            nearness = f"its weights are finite and {distance:.1%} away from those of {name}"
            kind = "the checkpoint before it" if faults else "the last checkpoint"
            removed = f"{'; '.join(faults)}: remove it; " if faults else ""
            return f"{removed}{kind}, {folder.name}, is intact ({nearness})"
        faults.append(f"{folder.name} must not be used ({fault})")
    return f"{'; '.join(faults)}: start a new run"


def start_weights(source: PolicySource, seed: int) -> dict[str, Tensor]:
    """Loads the policy as a run of this seed starts from it, and returns its trained weights on the CPU."""
    torch.manual_seed(derive_seed(seed, "init"))
    return {name: p.detach() for name, p in source.load().trainable()}


def _start(start: Callable[[], Weights]) -> Weights | None:
    try:
        return start()
    except (UserError, OSError, RuntimeError):  # it was there when the run began; now nothing can be compared with it
        return None


def _read(folder: Path) -> Weights | None:
    try:
        return read(folder, WEIGHTS, lambda name, shape: None) if intact(folder) else None
    except OSError:
        return None


def _compare(folder: Path, earlier: Weights | None, first: Weights | None) -> tuple[str, float]:
    """Returns what is wrong with a checkpoint's weights ("": nothing), and how far they are from the earlier ones."""
    weights = _read(folder)
    if weights is None:
        return "it is damaged", math.inf
    broken = next((name for name, tensor in weights.items() if not all_finite(tensor)), None)
    if broken is not None:
        return f"its {broken} has NaN or infinite values", math.inf
    if earlier is None or first is None:
        return "there is nothing to compare it with", math.inf
    moved, since_start = _distance(weights, earlier), _distance(weights, first)
    if since_start > NEAR_START:
        return f"its weights moved by {since_start:.1e} times their size since the start", moved
    return f"its weights moved by {moved:.1e} times their size since the one before" if moved > NEAR else "", moved


def _distance(weights: Weights, earlier: Weights) -> float:
    """Returns the norm of the difference of the weights that both have, relative to the norm of the earlier ones."""
    shared = [name for name in weights if name in earlier and weights[name].shape == earlier[name].shape]
    moved = math.hypot(*((weights[name].double() - earlier[name].double()).norm().item() for name in shared))
    size = math.hypot(*(earlier[name].double().norm().item() for name in shared))
    return moved / size if size else math.inf
