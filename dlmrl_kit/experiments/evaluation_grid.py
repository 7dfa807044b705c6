"""The cells of an evaluation grid: models by recipes, tasks, samplers with settings, lengths and steps.

All of them are built once before any runs, so that what does not go together is an error at once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dlmrl_kit.algorithm.algorithm import Algorithm, Pretraining
from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.experiments.evaluation_variation import Variation, key_of, said_of_varied
from dlmrl_kit.policies.adapter_files import holds_adapter
from dlmrl_kit.policies.adapter_settings import base_of
from dlmrl_kit.policies.checkpoint_files import checkpoint_folder
from dlmrl_kit.recipe.decoding import decoder_bindings
from dlmrl_kit.recipe.load import Recipe
from dlmrl_kit.training.evaluation import EvalSettings, check_split_of
from dlmrl_kit.training.identity import content_digest, contents_of, packages_of
from dlmrl_kit.training.opening import OpenedModel, open_model, settings_of
from dlmrl_kit.training.replaced_settings import check_read
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
        vary: settings of samplers, each with the values to take; one that a sampler does not have is left out there.
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
    vary: Mapping[str, Sequence[str]] = field(default_factory=dict)
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
class Place:
    """Where a cell stands in the figure of accuracy against forwards.

    Attributes:
        task: label of the task.
        length: of completions.
        line: what the cells of its line have in common.
        setting: what differs along the line.
    """

    task: str
    length: int
    line: str
    setting: str


@dataclass(frozen=True)
class Cell:
    """One evaluation of a grid.

    Attributes:
        name: of its folder.
        row: what the table calls the model and how it decodes.
        group: how it decodes, without the model: two models are compared in cells of one group.
        column: task and length, without the metric.
        place: in the figure.
        opened: model and recipe.
        settings: of the evaluation.
        facts: everything else that can change a number, by name.
        left_out: settings to vary that concern none of its components.
    """

    name: str
    row: str
    group: str
    column: tuple[str, int]
    place: Place
    opened: OpenedModel
    settings: EvalSettings
    facts: dict[str, str] = field(repr=False)
    left_out: tuple[str, ...] = ()


def plan_cells(grid: Grid) -> list[Cell]:
    """Builds every cell once; returns them, those of a model next to each other.

    Raises:
        UserError: there is no such model, recipe, component or setting, a number of steps does not fit its length or
            blocks, a split is unknown or empty, or two combinations are the same.
    """
    found: dict[str, Cell] = {}
    first = grid.recipes[0] if grid.recipes else None
    digests = {
        model: _model_digest(open_model(model, first, allow_imports=grid.allow_imports)) for model in grid.models
    }
    axes: list[list[Any]] = [
        [*axis] or [None] for axis in (grid.recipes, grid.tasks, grid.samplers, grid.lengths, grid.steps)
    ]
    variation = Variation(grid.vary, grid.temperature)
    for model, recipe, task, sampler, length, steps in itertools.product(grid.models, *axes):
        taken = None if steps is None else _steps(steps, length)
        uses = [*grid.uses, *(f"{kind}={name}" for kind, name in (("task", task), ("sampler", sampler)) if name)]
        load = partial(open_model, model, recipe, uses=uses, allow_imports=grid.allow_imports)
        for varied, opened in variation.opened(load, decoder_bindings(length, taken, [*grid.sets])).items():
            check_read(opened.recipe, grid.sets, grid.temperature)
            cell = _cell(grid, _Choice(model, digests[model], length, taken, steps, varied), opened)
            if cell.name in found:
                raise UserError(
                    f"the grid has {cell.row} on {cell.column[0]}, length {cell.column[1]}, twice: {cell.name}"
                )
            found[cell.name] = cell
    variation.check_used()
    return list(found.values())


@dataclass(frozen=True)
class _Choice:
    """What one cell of a grid takes of its lists; ``pace`` is the number of ``steps`` as it was given."""

    model: str
    digest: str
    length: int | None
    steps: int | None
    pace: str | None
    varied: tuple[str, ...]


def _cell(grid: Grid, choice: _Choice, opened: OpenedModel) -> Cell:
    with said_of_varied(choice.varied):
        built = opened.build()
    taken, number = built.sampler.max_steps, built.sampler.completion_length
    if choice.steps not in (None, taken):
        raise RecipeError(
            f"{choice.model}: {type(built.sampler).__name__} takes {taken} steps for a completion of {choice.length} "
            f"in blocks of {built.sampler.block_length}, not {choice.steps}: choose --steps that divide the block, too"
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
    facts = {"model": choice.model, "model digest": choice.digest, **_facts(opened.recipe, built, settings)}
    label = built.task.label() + (f" ({opened.recipe.name})" if len(grid.recipes) > 1 and not grid.tasks else "")
    sampler, pace = type(built.sampler).__name__, f"{taken} steps"
    if choice.pace is not None and "/" in choice.pace:
        pace = f"steps {choice.pace} of the length"
    named = [sampler, pace] if len(grid.samplers) > 1 or len(grid.steps) > 1 else []
    group = ", ".join([*named, *map(_spaced, choice.varied)])
    asked = {key: value for key, value in facts.items() if not key.startswith(_SURROUNDINGS)}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    stem = "-".join(Path(choice.model).parts[-2:])
    words = f"{stem}-{built.task.label()}-{number}x{taken}-{sampler}"
    return Cell(
        name=re.sub(r"[^\w.-]+", "_", words)[-120:].lstrip(".-") + f"-{digest}",
        row=f"{choice.model}, {group}" if group else choice.model,
        group=group,
        column=(label, number),
        place=_place(grid, choice, opened, built, pace),
        opened=opened,
        settings=settings,
        facts=facts,
        left_out=tuple(key for key in grid.vary if key not in map(key_of, choice.varied)),
    )


def _place(grid: Grid, choice: _Choice, opened: OpenedModel, built: Algorithm | Pretraining, pace: str) -> Place:
    """Finds the place of a cell in the figure: along a line goes the first setting that varies, else the steps."""
    line = [choice.model] if len(grid.models) > 1 else []
    line += [opened.recipe.name] if len(grid.recipes) > 1 else []
    line += [type(built.sampler).__name__] if len(grid.samplers) > 1 or not line else []
    line += [pace] if choice.varied and len(grid.steps) > 1 else []
    line += map(_spaced, choice.varied[1:])
    setting = _spaced(choice.varied[0]) if choice.varied else pace
    return Place(built.task.label(), built.sampler.completion_length, ", ".join(line), setting)


def _spaced(text: str) -> str:
    return " = ".join(part.strip() for part in text.split("=", 1))


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
        **recipe.settings_of("task", "sampler"),
    }
    facts["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":  # sums over another number of threads differ in the last digit
        facts["threads"] = str(torch.get_num_threads())
    facts |= {f"package {package}": version for package, version in packages_of(recipe)}
    facts |= {f"data {what}": version for what, version in known["data"].items()}
    return facts | {f"file {path}": digest for path, digest in known["files"].items()}


def _model_digest(opened: OpenedModel) -> str:
    """Returns a digest of all files of a model, and of the base that an adapter is for."""
    folder = checkpoint_folder(opened.model)
    digest = content_digest(Path(folder))
    if holds_adapter(folder):
        digest += f" on {content_digest(Path(checkpoint_folder(base_of(folder))))}"
    return digest
