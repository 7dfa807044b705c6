"""Checkpoints: weights and optimiser state as safetensors, everything else as JSON, in a folder renamed into place.

``<run>/checkpoints/update-000020/`` holds the state after 20 updates. Random numbers need none, see ``core.seeding``.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LRScheduler

from dlmrl_kit.core.errors import CheckpointError
from dlmrl_kit.core.files import atomic_folder

_NAME = re.compile(r"update-(\d+)")
KEPT = 2
"""How many checkpoints stay on disk: the newest, and the one before in case the newest cannot be read."""


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Lists the complete checkpoints of a run, oldest first, as (updates done, folder)."""
    found = []
    for folder in (run / "checkpoints").glob("update-*"):
        match = _NAME.fullmatch(folder.name)
        if match:
            found.append((int(match.group(1)), folder))
    return sorted(found)


def save_checkpoint(
    run: Path,
    updates: int,
    parameters: dict[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
    scheduler: LRScheduler,
    counters: Mapping[str, object],
) -> Path:
    """Writes the state after ``updates`` updates, then removes checkpoints older than the newest two.

    Args:
        run: the run folder.
        updates: how many are done.
        parameters: the trained parameters, by name.
        optimiser, scheduler: of torch.
        counters: other state that ``load_checkpoint`` is to return; must fit in JSON.

    Returns:
        The folder of the checkpoint.
    """
    folder = run / "checkpoints" / f"update-{updates:06d}"
    with atomic_folder(folder) as temporary:
        weights = {name: p.detach().cpu().contiguous() for name, p in parameters.items()}
        save_file(weights, temporary / "weights.safetensors")
        tensors, groups = _flatten(optimiser.state_dict())
        save_file(tensors, temporary / "optimiser.safetensors")
        state = {"updates": updates, "groups": groups, "scheduler": scheduler.state_dict(), "counters": {**counters}}
        (temporary / "state.json").write_text(json.dumps(state, default=_unserialisable))
    prune(run)
    return folder


def prune(run: Path) -> None:
    """Removes checkpoints older than the newest two, and folders that a killed process left half-written."""
    for _, old in checkpoints(run)[:-KEPT]:
        old.replace(old.with_name(f".{old.name}.old"))  # a kill must not leave half a checkpoint under its own name
    for leftover in (run / "checkpoints").glob(".update-*"):
        shutil.rmtree(leftover)


def load_checkpoint(
    folder: Path, parameters: dict[str, torch.nn.Parameter], optimiser: torch.optim.Optimizer, scheduler: LRScheduler
) -> tuple[int, dict[str, Any]]:
    """Loads a checkpoint into ``parameters``, optimiser and schedule; returns (updates done, counters).

    Raises:
        CheckpointError: the weights do not have the names and shapes of ``parameters``, or a file cannot be read.
    """
    try:
        weights = load_file(folder / "weights.safetensors")
        moments = load_file(folder / "optimiser.safetensors")
        state = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} cannot be read ({error}); remove it to go on from the checkpoint before it"
        ) from error
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    if shapes != {name: tuple(w.shape) for name, w in weights.items()}:
        raise CheckpointError(f"{folder}: its weights do not have the names and shapes of the recipe's")
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    optimiser.load_state_dict(_unflatten(moments, state["groups"]))
    scheduler.load_state_dict({**scheduler.state_dict(), **state["scheduler"]})
    return state["updates"], state["counters"]


def _flatten(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, entries in state["state"].items()
        for name, value in entries.items()
    }
    return tensors, state["param_groups"]


def _unflatten(tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": groups}


def _unserialisable(value: object) -> None:
    """Writes null for what is no JSON: schedulers have functions in their state, which the recipe gives again."""
