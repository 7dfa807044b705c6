"""Runs the cells of an evaluation grid that are not measured yet, and keeps what each came to in a folder.

``<out>/cells/<name>/`` holds ``completions.jsonl`` (every completion in full), ``completions.html`` (to read them) and,
written last, ``cell.json``: a cell that has it is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dlmrl_kit.core.errors import ComponentError, UserError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.results import EvalResult
from dlmrl_kit.core.run_folder import one_writer, read_json
from dlmrl_kit.experiments.completions_page import page
from dlmrl_kit.experiments.evaluation_grid import Cell
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.tasks.base import BaseTask, prompt_text
from dlmrl_kit.training.evaluation import Answered, answer, pass_at_k, powers, summary
from dlmrl_kit.training.model_work import ModelWork
from dlmrl_kit.training.opening import settings_of

CELLS, RECORD, COMPLETIONS, PAGE = "cells", "cell.json", "completions.jsonl", "completions.html"
CHECKED = 8
"""Examples that are decoded again, one at a time, to see whether the batch size changes completions."""


@dataclass(frozen=True)
class BatchCheck:
    """How many completions are others when they are decoded one at a time.

    Attributes:
        completions: how many were decoded twice.
        differ: how many of these came out as another text.
        batch_size: of the evaluation.
    """

    completions: int
    differ: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.differ} of {self.completions} completions differ between batch sizes {self.batch_size} and 1"


@dataclass(frozen=True)
class CellResult:
    """What a cell came to.

    Attributes:
        facts: everything that can change a number; those of the cell, and a digest of the prompts.
        asked: a digest of each example, in order.
        values: by metric, what it is for each example: its mean over the completions.
        names: by metric, what the table calls it.
        result: the evaluation.
        check: whether the batch size changes completions; None: this was not looked at.
        forwards: states through the model for each completion; None: it was measured by a version that counted none.
        tokens: of all of these, padding included, for each completion.
    """

    facts: dict[str, str]
    asked: list[str]
    values: dict[str, list[float]]
    names: dict[str, str]
    result: EvalResult
    check: BatchCheck | None
    forwards: float | None = None
    tokens: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns everything for JSON."""
        return {**vars(self), "result": self.result.to_json(), "check": self.check and asdict(self.check)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CellResult:
        """Rebuilds what ``to_json`` wrote."""
        check = data["check"] and BatchCheck(**data["check"])
        return cls(**{**data, "result": EvalResult.from_json(data["result"]), "check": check})


class GridObserver:
    """Is told how a grid goes on; this base class ignores it."""

    def on_start(self, cells: Sequence[Cell], known: int) -> None:
        """Called before anything runs; ``known`` of the cells are measured already."""

    def on_cell(self, cell: Cell, result: CellResult) -> None:
        """Called when a cell was measured."""


def run_cells(
    cells: Sequence[Cell], folder: Path, *, checked: int = CHECKED, observer: GridObserver | None = None
) -> dict[str, CellResult]:
    """Measures the cells that ``folder`` has no result of.

    Args:
        cells: from ``plan_cells``.
        folder: is created, or holds cells of this or another grid.
        checked: examples to decode again one at a time; 0: none.
        observer: is told how it goes.

    Returns:
        By name, the results of all cells, in order.

    Raises:
        UserError: ``folder`` holds something else, or a cell that was measured under other circumstances.
    """
    observer = observer or GridObserver()
    others = [path.name for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
    if (folder.exists() and not folder.is_dir()) or (others and CELLS not in others):
        raise UserError(f"{folder} is no folder of an evaluation; choose another --out")
    with one_writer(folder):
        known = {cell.name: _known(cell, folder) for cell in cells}
        observer.on_start(cells, sum(result is not None for result in known.values()))
        found: dict[str, CellResult] = {}
        loaded = _Loaded()
        for cell in cells:
            result = known[cell.name]
            if result is None:
                result = _measure(cell, folder / CELLS / cell.name, checked, loaded)
                observer.on_cell(cell, result)
            found[cell.name] = result
    return found


def _known(cell: Cell, folder: Path) -> CellResult | None:
    """Returns the stored result of a cell, if there is one.

    Raises:
        UserError: it was measured with other packages, data, weights or on another device.
    """
    path = folder / CELLS / cell.name / RECORD
    if not path.is_file():
        return None
    stored = read_json(path, CellResult.from_json, f"remove {path.parent}, and it is measured again")
    for key in dict.fromkeys([*cell.facts, *stored.facts]):
        before, now = stored.facts.get(key, "not there"), cell.facts.get(key, "not there")
        if before != now and key != "prompts":
            raise UserError(
                f"{path.parent} was measured with something else: {key} was {before}, now {now}; undo that, or choose "
                "another --out, so that all cells compare"
            )
    return stored


class _Loaded:
    """The model that was used last: cells of one model load it once."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._policy: TransformersPolicy | None = None

    def open(self, cell: Cell) -> tuple[TransformersPolicy, Sampler, BaseTask]:
        """Returns the policy, sampler and task of a cell."""
        built = cell.opened.build()
        source = built.policy
        key = (cell.opened.model, source.mask_id, source.eos_ids, settings_of(built).device)
        if self._policy is None or key != self._key:
            self._policy = None  # its memory is needed for the next one
            self._policy = cell.opened.load(built, [built.sampler])
            self._key = key
        else:
            cell.opened.attach(self._policy, [built.sampler])
        return self._policy, built.sampler, built.task


def _measure(cell: Cell, folder: Path, checked: int, loaded: _Loaded) -> CellResult:
    policy, sampler, task = loaded.open(cell)
    work = ModelWork()
    with work.watching(policy):
        answers = answer(policy, sampler, task, cell.settings)
    completions = len(answers) * cell.settings.samples_per_prompt
    asked = [_digest(answered) for answered in answers]
    prompts = hashlib.sha256("".join(asked).encode()).hexdigest()
    result = CellResult(
        facts={**cell.facts, "prompts": prompts},
        asked=asked,
        values=_values(answers, task, cell.settings.samples_per_prompt),
        names={**task.metrics(), **{f"pass@{k}": f"pass@{k}" for k in powers(cell.settings.samples_per_prompt)[1:]}},
        result=summary(answers, sampler, task, cell.settings),
        check=_check(policy, sampler, task, cell, answers[:checked]),
        forwards=work.rollout / completions,
        tokens=work.tokens / completions,
    )
    rows = [_row(answered) for answered in answers]
    lines = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
    write_atomic(folder / COMPLETIONS, lines)
    write_atomic(folder / PAGE, page(f"{cell.row}: {cell.column[0]}, length {cell.column[1]}", rows))
    write_atomic(folder / RECORD, json.dumps(result.to_json(), indent=1))
    return result


def _digest(answered: Answered) -> str:
    """Returns a digest of what an example asks, as a policy is given it."""
    example = answered.example
    asked = json.dumps([prompt_text(example.prompt), example.prefix, example.most, example.answer])
    return hashlib.sha256(asked.encode()).hexdigest()


def _values(answers: Sequence[Answered], task: BaseTask, samples: int) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for metric in task.metrics():
        for answered in answers:
            of_completions = [score[metric] for score in answered.scores if metric in score]
            if not of_completions:
                have = ", ".join(answered.scores[0])
                raise ComponentError(f"{task.label()} reports the metric {metric!r}, but its scores have {have}")
            values.setdefault(metric, []).append(sum(of_completions) / len(of_completions))
    for k in powers(samples)[1:]:
        values[f"pass@{k}"] = [pass_at_k(answered.solved, samples, k) for answered in answers]
    return values


def _check(
    policy: Policy, sampler: Sampler, task: BaseTask, cell: Cell, answers: Sequence[Answered]
) -> BatchCheck | None:
    """Decodes the examples of some answers again, one completion at a time, and compares the texts."""
    size = cell.settings.batch_size
    if not answers or size == 1:
        return None
    alone = answer(policy, sampler, task, replace(cell.settings, size=len(answers), batch_size=1))
    pairs = [
        (one, other)
        for before, now in zip(answers, alone, strict=True)
        for one, other in zip(before.completions, now.completions, strict=True)
    ]
    return BatchCheck(len(pairs), sum(one != other for one, other in pairs), size)


def _row(answered: Answered) -> dict[str, Any]:
    example = answered.example
    return {
        "index": answered.index,
        "prompt": example.prompt,
        "prefix": example.prefix,
        "answer": example.answer,
        "completions": [
            {"text": text, "scores": scores} for text, scores in zip(answered.completions, answered.scores, strict=True)
        ],
    }
