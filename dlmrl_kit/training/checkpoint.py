"""Checkpoints: weights and optimiser state as safetensors, everything else as JSON, in a folder renamed into place.

Where weights are sharded, every process writes its part, and weights and optimiser are folders (``tensor_files``). A
run goes on from either kind with any number of processes, sharded or not.

``<run>/checkpoints/update-000020/`` holds the state after 20 updates. Random numbers need none, see ``core.seeding``.
``checksums.json`` holds the digests of the other files: a checkpoint that is not as it was written is refused, and the
one before it offered. ``state.json`` also holds what the run depended on (``training.identity``).
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from dlmrl_kit.core.checksums import CHECKSUMS, damage, file_digest, names_in, read_checksums, write_checksums
from dlmrl_kit.core.errors import CheckpointError, FileError
from dlmrl_kit.core.files import atomic_folder, reason_of
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.policies.sharding import is_sharded, own_part
from dlmrl_kit.training.identity import Identity
from dlmrl_kit.training.optimiser import go_on
from dlmrl_kit.training.tensor_files import SUFFIX, read, write_parts, write_whole

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


WEIGHTS, MOMENTS, STATE = "weights", "optimiser", "state.json"
"""Names in a checkpoint; the first two are files with the ending ``tensor_files.SUFFIX``, or folders of parts."""
ROLLOUTS = "rollouts"
"""Name of the file with the rollouts that were sampled ahead of their updates, where there were any."""


def save_checkpoint(
    run: Path,
    updates: int,
    parameters: dict[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
    scheduler: LRScheduler,
    counters: Mapping[str, object],
    identity: Identity | None = None,
    processes: Processes = ALONE,
    rollouts: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Writes the state after ``updates`` updates, then removes checkpoints older than the newest two.

    Args:
        run: the run folder.
        updates: how many are done.
        parameters: the trained parameters, by name.
        optimiser, scheduler: of torch.
        counters: other state that ``load_checkpoint`` is to return; must fit in JSON.
        identity: what the run depends on.
        processes: that train together; each of them calls this, and all return when it is written.
        rollouts: that were sampled ahead of their updates, as tensors by name.

    Returns:
        The folder of the checkpoint.

    Raises:
        FileError: it cannot be written; the checkpoints that were there still are.
    """
    folder = run / "checkpoints" / f"update-{updates:06d}"
    tensors, groups = _flatten(optimiser.state_dict())
    state = {
        "updates": updates,
        "groups": groups,
        "moments": sorted(tensors),
        "scheduler": scheduler.state_dict(),
        "counters": {**counters},
        "identity": identity or {},
    }
    weights = {name: parameter.detach() for name, parameter in parameters.items()}

    def finish(temporary: Path, known: Mapping[str, str] | None = None) -> None:
        (temporary / STATE).write_text(json.dumps(state, default=_unserialisable))
        write_checksums(temporary, known)

    def write() -> None:
        with atomic_folder(folder) as temporary:
            write_whole(temporary, WEIGHTS, weights)
            write_whole(temporary, MOMENTS, tensors)
            if rollouts:  # none where weights are sharded, which goes with no collector
                write_whole(temporary, ROLLOUTS, rollouts)
            finish(temporary)

    try:
        if any(map(is_sharded, weights.values())):
            with contextlib.ExitStack() as stack:  # the first process makes the folder, and renames it at the end
                temporary = processes.of_first(lambda: stack.enter_context(atomic_folder(folder)))
                write_parts(temporary, WEIGHTS, weights, processes)
                write_parts(temporary, MOMENTS, tensors, processes)
                digests = _digests(temporary, processes)
                processes.of_first(lambda: finish(temporary, digests))
                processes.of_first(stack.close)
        else:
            processes.of_first(write)
    except FileError as error:
        kept = checkpoints(run)
        last = f"the last checkpoint, {kept[-1][1].name}, is intact" if kept else "there is no checkpoint before it"
        raise FileError(f"{error}; {last}: make room, then resume the run") from error
    processes.of_first(lambda: prune(run))
    return folder


def _digests(folder: Path, processes: Processes) -> dict[str, str]:
    """Returns the digests of the files of a folder, by name; the processes compute them in turn.

    What a process cannot read is left out: a file that another machine has just written may not be there yet.
    """
    own = {}
    for name in names_in(folder)[processes.rank :: processes.world]:
        with contextlib.suppress(OSError):
            own[name] = file_digest(folder / name)
    return {name: digest for part in processes.gather(own) for name, digest in part.items()}


def prune(run: Path) -> None:
    """Removes checkpoints older than the newest two, and folders that a killed process left half-written.

    Raises:
        FileError: they cannot be removed.
    """
    try:
        for _, old in checkpoints(run)[:-KEPT]:
            old.replace(old.with_name(f".{old.name}.old"))  # a kill must not leave half a checkpoint under its own name
        for leftover in (run / "checkpoints").glob(".update-*"):
            shutil.rmtree(leftover)
    except OSError as error:
        raise FileError(f"cannot remove old checkpoints of {run}: {reason_of(error)}") from error


def load_checkpoint(
    folder: Path, parameters: dict[str, torch.nn.Parameter], optimiser: torch.optim.Optimizer, scheduler: LRScheduler
) -> tuple[int, dict[str, Any]]:
    """Loads a checkpoint into ``parameters``, optimiser and schedule; returns (updates done, counters).

    The settings of optimiser and schedule stay those they were built with, so that learning rates follow the recipe.

    Raises:
        CheckpointError: a file cannot be read or is not as it was written, the state is not that of the folder's name,
            or weights or moments do not have the names and shapes of ``parameters``, or are not finite.
    """
    state = _state(folder, _damage(folder))
    try:
        weights = read(folder, WEIGHTS, lambda name, shape: parameters.get(name))
        moments = read(folder, MOMENTS, lambda name, shape: _parameter_of(name, optimiser))
    except OSError as error:
        raise refused(folder, reason_of(error)) from error
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    if shapes != {name: tuple(w.shape) for name, w in weights.items()}:
        raise CheckpointError(f"{folder}: its weights do not have the names and shapes of the recipe's")
    for name, value in weights.items():
        if not torch.isfinite(own_part(value)).all():
            raise refused(folder, f"weight {name} has numbers that are not finite")
    try:
        _check_moments(moments, state, optimiser)
        updates, counters = int(state["updates"]), dict(state["counters"])
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)
        go_on(optimiser, scheduler, _unflatten(moments, state["groups"]), state["scheduler"])
    except (KeyError, TypeError, ValueError) as error:
        raise refused(folder, f"{STATE} is not the state of a run: {type(error).__name__}: {error}") from error
    return updates, counters


def load_rollouts(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the rollouts of a checkpoint that were sampled ahead of their updates, possibly none.

    Raises:
        CheckpointError: they cannot be read.
    """
    if not (folder / f"{ROLLOUTS}{SUFFIX}").is_file():
        return {}
    try:
        return read(folder, ROLLOUTS, lambda name, shape: None)
    except OSError as error:
        raise refused(folder, reason_of(error)) from error


def identity_in(folder: Path) -> Identity:
    """Returns what the run depended on when it wrote a checkpoint.

    Of its files only ``state.json`` is read: ``load_checkpoint`` looks at all of them, which takes minutes where they
    are large.

    Raises:
        CheckpointError: that file is damaged.
    """
    found: Identity = _state(folder, _damage(folder, [STATE])).get("identity", {})
    return found


def refused(folder: Path, reason: str) -> CheckpointError:
    """Makes the error for a checkpoint that is not as it was written; it offers the one before it."""
    before = [other for _, other in checkpoints(folder.parent.parent) if other.name < folder.name and intact(other)]
    offer = (
        f"the checkpoint before it, {before[-1].name}" if before else "the start, as there is no checkpoint before it"
    )
    return CheckpointError(f"{folder} cannot be read ({' '.join(reason.split())}); remove it to go on from {offer}")


def intact(folder: Path) -> bool:
    """Tells whether the files of a checkpoint are as they were written."""
    return not _damage(folder)


def _state(folder: Path, problem: str) -> dict[str, Any]:
    """Reads ``state.json`` of a checkpoint, unless there is a ``problem`` with its files: it is refused then."""
    if problem:
        raise refused(folder, problem)
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
        updates = int(state["updates"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise refused(folder, f"{STATE}: {error}") from error
    match = _NAME.fullmatch(folder.name)
    if match is None or int(match.group(1)) != updates:
        raise refused(folder, f"it holds the state after {updates} updates, which is not what its name says")
    return state


def _damage(folder: Path, names: Collection[str] = ()) -> str:
    """Says which file of a checkpoint, or of those ``names``, is not as it was written, and how; "" if all are."""
    try:
        sums = read_checksums(folder)
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS}: {error}"
    there = {path.relative_to(folder).as_posix() for path in folder.glob(f"*/*{SUFFIX}")}  # parts of any process
    whole = {} if there else {f"{WEIGHTS}{SUFFIX}", f"{MOMENTS}{SUFFIX}"}
    for name in names or sorted({*sums, *there, *whole, STATE}):
        if problem := damage(folder / name, sums.get(name)):
            return f"{name}: {problem}"
    return ""


def _check_moments(moments: dict[str, torch.Tensor], state: dict[str, Any], optimiser: torch.optim.Optimizer) -> None:
    """Checks that all moments are there that were written, in the shapes of their parameters, and finite.

    Raises:
        ValueError: they are not.
    """
    missing = sorted(set(state["moments"]) ^ set(moments))
    if missing:
        raise ValueError(f"{MOMENTS} and {STATE} do not agree about {missing[0]}")
    groups = optimiser.state_dict()["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in state["groups"]]:
        raise ValueError("the optimiser's groups are not those of the recipe")
    for key, value in moments.items():
        parameter = _parameter_of(key, optimiser)
        expected = None if parameter is None else parameter.shape
        if expected is None or (value.dim() and value.shape != expected):
            raise ValueError(f"moment {key} has shape {list(value.shape)}, its parameter {list(expected or ())}")
        if not torch.isfinite(own_part(value)).all():
            raise ValueError(f"moment {key} has numbers that are not finite")


def _parameter_of(key: str, optimiser: torch.optim.Optimizer) -> torch.Tensor | None:
    """Returns the parameter that a moment is of, by its name ``<index>.<name>``; None if there is no such parameter."""
    parameters: list[torch.Tensor] = [p for group in optimiser.param_groups for p in group["params"]]
    index = int(key.split(".", 1)[0])
    return parameters[index] if 0 <= index < len(parameters) else None


def _flatten(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    tensors = {
        f"{index}.{name}": value.detach()
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
