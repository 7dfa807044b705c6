"""The cells of an evaluation grid: models by recipes, tasks, samplers, lengths and steps.

All of them are built once before any runs, so that what does not go together is an error at once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from dlmrl_kit.algorithm.algorithm import Algorithm, Pretraining
from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.policies.adapter_files import holds_adapter
from dlmrl_kit.policies.adapter_settings import base_of
from dlmrl_kit.policies.checkpoint_files import checkpoint_folder
from dlmrl_kit.recipe.decoding import decoder_bindings
from dlmrl_kit.recipe.load import Recipe
from dlmrl_kit.training.evaluation import EvalSettings, check_split_of
from dlmrl_kit.training.identity import content_digest, contents_of, packages_of
from dlmrl_kit.training.opening import OpenedModel, open_model, settings_of
from dlmrl_kit.training.start import find_device


@dataclass(frozen=True)
class Grid:
    """Says what is evaluated: every combination of its lists.

    Attributes:
        models: run folders, model folders, hub ids or ``shipped:NAME``.
        recipes: whose task and sampler are used; empty: each model's own.
        tasks: components that replace the recipe's task; empty: none does.
        samplers: components that replace its sampler.
        lengths: positions of a completion; empty: those of the recipe.
        steps: denoising steps: a number, or a share of the length such as ``"1/2"``; empty: as the recipe says.
        split, size, temperature, samples, seed: as ``training.evaluate``.
        batch_size, precision: as ``training.evaluate``; None: as the recipe's training evaluates.
        sets, uses, allow_imports: as ``load_recipe``, for every cell.
    """

    models: Sequence[str]
    recipes: Sequence[str] = ()
    tasks: Sequence[str] = ()
    samplers: Sequence[str] = ()
    lengths: Sequence[int] = ()
    steps: Sequence[str] = ()
    split: str = "heldout"
    size: int = 512
    temperature: float = 0.0
    samples: int = 1
    seed: int = 0
    batch_size: int | None = None
    precision: str | None = None
    sets: Sequence[str] = ()
    uses: Sequence[str] = ()
    allow_imports: bool = False


@dataclass(frozen=True)
class Cell:
    """One evaluation of a grid.

    Attributes:
        name: of its folder.
        row: what the table calls the model and how it decodes.
        group: how it decodes, without the model: two models are compared in cells of one group.
        column: task and length, without the metric.
        opened: model and recipe.
        settings: of the evaluation.
        facts: everything else that can change a number, by name.
    """

    name: str
    row: str
    group: str
    column: tuple[str, int]
    opened: OpenedModel
    settings: EvalSettings
    facts: dict[str, str] = field(repr=False)


def plan_cells(grid: Grid) -> list[Cell]:
    """Builds every cell once; returns them, those of a model next to each other.

    Raises:
        UserError: there is no such model, recipe or component, a number of steps does not fit its length or blocks,
            a split is unknown or empty, or two combinations are the same.
    """
    found: dict[str, Cell] = {}
    first = grid.recipes[0] if grid.recipes else None
    digests = {
        model: _model_digest(open_model(model, first, allow_imports=grid.allow_imports)) for model in grid.models
    }
    axes: list[list[Any]] = [
        [*axis] or [None] for axis in (grid.recipes, grid.tasks, grid.samplers, grid.lengths, grid.steps)
    ]
    for model, recipe, task, sampler, length, steps in itertools.product(grid.models, *axes):
        cell = _cell(grid, (model, digests[model]), recipe, (task, sampler), (length, steps))
        if cell.name in found:
            raise UserError(f"the grid has {cell.row} on {cell.column[0]}, length {cell.column[1]}, twice: {cell.name}")
        found[cell.name] = cell
    return list(found.values())


def _cell(
    grid: Grid,
    model: tuple[str, str],
    recipe: str | None,
    swaps: tuple[str | None, str | None],
    sizes: tuple[int | None, str | None],
) -> Cell:
    length, text = sizes
    steps = None if text is None else _steps(text, length)
    uses = [*grid.uses, *(f"{kind}={name}" for kind, name in zip(("task", "sampler"), swaps, strict=True) if name)]
    sets = decoder_bindings(length, steps, [*grid.sets])
    opened = open_model(model[0], recipe, sets, uses, grid.allow_imports)
    built = opened.build()
    taken = built.sampler.max_steps
    if steps is not None and taken != steps:
        raise RecipeError(
            f"{model[0]}: {type(built.sampler).__name__} takes {taken} steps for a completion of {length} in blocks of "
            f"{built.sampler.block_length}, not {steps}: choose --steps that divide the block, too"
        )
    check_split_of(built.task, grid.split)
    own = settings_of(built)
    settings = EvalSettings(
        grid.split,
        grid.size,
        grid.temperature,
        grid.samples,
        grid.seed,
        grid.batch_size or own.eval_batch_size,
        grid.precision or own.precision,
    )
    facts = {"model": model[0], "model digest": model[1], **_facts(opened.recipe, built, settings)}
    number = built.sampler.completion_length
    pace = f"steps {text} of the length" if text is not None and "/" in text else f"{taken} steps"
    group = f"{type(built.sampler).__name__}, {pace}"
    group = group if len(grid.samplers) > 1 or len(grid.steps) > 1 else ""
    label = built.task.label() + (f" ({opened.recipe.name})" if len(grid.recipes) > 1 and not grid.tasks else "")
    asked = {key: value for key, value in facts.items() if not key.startswith(_SURROUNDINGS)}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    stem = "-".join(Path(model[0]).parts[-2:])
    words = f"{stem}-{built.task.label()}-{number}x{taken}-{type(built.sampler).__name__}"
    name = re.sub(r"[^\w.-]+", "_", words)[-120:].lstrip(".-") + f"-{digest}"
    row = f"{model[0]}, {group}" if group else model[0]
    return Cell(name, row, group, (label, number), opened, settings, facts)


def _steps(text: str, length: int | None) -> int:
    """Returns a number of denoising steps, given as such or as a share of the length.

    Raises:
        UserError: it is neither, or no whole number of steps.
    """
    try:
        number = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"--steps {text}: expected a whole number, or a share of the length such as 1/2") from None
    if "/" in text:
        if length is None:
            raise UserError(f"--steps {text} needs a --length of which it is a share")
        number *= length
    if number < 1 or number.denominator != 1:
        raise UserError(f"--steps {text} of a length of {length} is {number}, no whole number of steps, at least 1")
    return int(number)


_SURROUNDINGS = ("package ", "data ", "file ", "model digest", "device", "threads")
"""How facts begin that the user does not ask for: a cell that was measured with others is not measured again."""


def _facts(recipe: Recipe, built: Algorithm | Pretraining, settings: EvalSettings) -> dict[str, str]:
    """Lists everything that can change a number, the model aside."""
    device = find_device(settings_of(built).device)
    known = contents_of([built.task, built.sampler])
    size = built.task.size(settings.split)
    facts = {
        "task": built.task.label(),
        "split": settings.split,
        "examples": f"the first {min(settings.size, size)} of {size}",
        "completion length": str(built.sampler.completion_length),
        "denoising steps": str(built.sampler.max_steps),
        "sampler": type(built.sampler).__name__,
        "temperature": f"{settings.temperature:g}" if settings.temperature else "0 (greedy)",
        "completions per example": str(settings.samples_per_prompt),
        "seed": str(settings.seed),
        "batch size": str(settings.batch_size),
        "precision": settings.precision,
        **_settings_of_slots(recipe, ("task", "sampler")),
    }
    facts["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":  # sums over another number of threads differ in the last digit
        facts["threads"] = str(torch.get_num_threads())
    facts |= {f"package {package}": version for package, version in packages_of(recipe)}
    facts |= {f"data {what}": version for what, version in known["data"].items()}
    return facts | {f"file {path}": digest for path, digest in known["files"].items()}


def _settings_of_slots(recipe: Recipe, slots: Sequence[str]) -> dict[str, str]:
    """Returns the settings of the components in some slots, and of those that they were given, as in the recipe."""
    texts = {key: bound.text or f"a {type(bound.value).__name__}" for key, bound in recipe.bindings.items()}
    todo, found = [f"{recipe.root}.{slot}" for slot in slots], dict[str, str]()
    while todo:
        key = todo.pop(0)
        if key not in found:
            found[key] = texts[key]
            names = re.findall(r"@([\w./]+)", texts[key])
            todo += [other for other in texts if other.rpartition(".")[0] in names]
    return found


def _model_digest(opened: OpenedModel) -> str:
    """Returns a digest of all files of a model, and of the base that an adapter is for."""
    folder = checkpoint_folder(opened.model)
    digest = content_digest(Path(folder))
    if holds_adapter(folder):
        digest += f" on {content_digest(Path(checkpoint_folder(base_of(folder))))}"
    return digest
