"""What the cells of an evaluation grid say together: a table with intervals, and tests between models.

Intervals are of 95%: Wilson's for a share of examples, else by the bootstrap over examples. Two models are compared on
the same examples: by McNemar's exact test where each answer is right or wrong (a binomial test of the examples that
only one of them solves), else by a permutation test of the pairs; the interval of a difference is by the bootstrap of
the pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dlmrl_kit.core.results import wilson_interval
from dlmrl_kit.experiments.aggregate import RESAMPLES, Estimate, estimate, seeded
from dlmrl_kit.experiments.evaluation_grid import Cell
from dlmrl_kit.experiments.evaluation_runs import CellResult


@dataclass(frozen=True)
class Column:
    """A column of the table: a metric of a task at a completion length."""

    task: str
    metric: str
    length: int

    def __str__(self) -> str:
        return f"{self.task} {self.metric}, {self.length}"


@dataclass(frozen=True)
class Comparison:
    """A test between two models on the same examples.

    Attributes:
        column: what was measured.
        group: how both were decoded; "" where the whole table is decoded alike.
        first, second: the models.
        difference: of the means, second minus first, with its interval.
        only_first, only_second: examples that one of them alone solves; None for other metrics.
        p_value: two-sided, not corrected for the number of tests.
        test: its name.
    """

    column: Column
    group: str
    first: str
    second: str
    difference: Estimate
    only_first: int | None
    only_second: int | None
    p_value: float
    test: str


@dataclass(frozen=True)
class Point:
    """The accuracy of a cell, and what it took.

    Attributes:
        cell: its name.
        panel: what was answered: the task and the length of completions.
        line: what the points of a line have in common.
        setting: what differs along the line.
        accuracy: with its interval.
        forwards: states through the model, for each completion.
        tokens: of all of these, padding included, for each completion.
    """

    cell: str
    panel: str
    line: str
    setting: str
    accuracy: Estimate
    forwards: float
    tokens: float


@dataclass(frozen=True)
class GridResults:
    """The results of a grid.

    Attributes:
        rows: models, with how they decode where that varies.
        columns: in the order of the grid.
        cells: means with intervals, by row and column; of some pairs there are none.
        places: name of the cell, row and column of each of them.
        header: what is the same in every cell.
        differences: by cell, what is not; digests in full.
        comparisons: between models.
        checks: by cell, whether the batch size changes completions, in words.
        curve: accuracy against forwards; without cells of which forwards were not counted.
    """

    rows: list[str]
    columns: list[Column]
    cells: dict[tuple[str, Column], Estimate]
    places: list[tuple[str, str, Column]]
    header: dict[str, str]
    differences: dict[str, dict[str, str]]
    comparisons: list[Comparison]
    checks: dict[str, str]
    curve: list[Point]

    def to_json(self) -> dict[str, Any]:
        """Returns everything for JSON."""
        values = [
            {"cell": name, "row": row, **asdict(column), **vars(self.cells[row, column])}
            for name, row, column in self.places
        ]
        return {
            "header": self.header,
            "cells": self.differences,
            "values": values,
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "batch_size": self.checks,
            "curve": [asdict(point) for point in self.curve],
        }


def share(values: Sequence[float]) -> Estimate:
    """Returns the mean of a number per example with its interval: Wilson's if all are 0 or 1, else the bootstrap's."""
    if set(values) <= {0.0, 1.0}:
        mean = math.fsum(values) / len(values)
        return Estimate(mean, *wilson_interval(mean, len(values)), len(values))
    return estimate(values)


def compare(first: Sequence[float], second: Sequence[float]) -> tuple[Estimate, tuple[int, int] | None, float, str]:
    """Compares two models by a number for each of the same examples.

    Returns:
        The difference of the means, how many examples only the first and only the second solves (None if the numbers
        are not all 0 or 1), the p-value, and the name of the test.
    """
    from scipy.stats import binomtest, permutation_test

    difference = estimate([other - one for one, other in zip(first, second, strict=True)])
    if set(first) | set(second) <= {0.0, 1.0}:
        pairs = list(zip(first, second, strict=True))
        alone = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
        p_value = float(binomtest(alone[0], sum(alone), 0.5).pvalue) if sum(alone) else 1.0
        return difference, alone, p_value, "McNemar, exact"
    import numpy as np

    def statistic(one: Any, other: Any, axis: int) -> Any:
        return np.mean(other - one, axis=axis)

    found = permutation_test(
        (np.asarray(first), np.asarray(second)),
        statistic,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=100,
        **seeded(permutation_test),
    )
    return difference, None, float(found.pvalue), "paired permutation"


def collect(cells: Sequence[Cell], results: Mapping[str, CellResult]) -> GridResults:
    """Puts the results of cells together; arguments as ``run_cells`` takes and returns them."""
    table: dict[tuple[str, Column], Estimate] = {}
    places: list[tuple[str, str, Column]] = []
    paired: dict[tuple[Column, str], list[tuple[str, CellResult, str]]] = {}
    for cell in cells:
        result = results[cell.name]
        for metric, values in result.values.items():
            column = Column(cell.column[0], result.names[metric], cell.column[1])
            table[cell.row, column] = share(values)
            places.append((cell.name, cell.row, column))
            paired.setdefault((column, cell.group), []).append((cell.facts["model"], result, metric))
    facts = {cell.name: results[cell.name].facts for cell in cells}
    header, differences = _common(facts)
    return GridResults(
        rows=list(dict.fromkeys(cell.row for cell in cells)),
        columns=list(dict.fromkeys(column for _, column in table)),
        cells=table,
        places=places,
        header=header,
        differences=differences,
        comparisons=[
            _comparison(column, group, one, other)
            for (column, group), found in paired.items()
            for one, other in itertools.combinations(found, 2)
            if one[1].asked == other[1].asked and one[0] != other[0]
        ],
        checks={cell.name: str(results[cell.name].check or "not looked at") for cell in cells},
        curve=_curve(cells, results),
    )


def _curve(cells: Sequence[Cell], results: Mapping[str, CellResult]) -> list[Point]:
    """Puts cells that answer the same prompts into one panel; a second panel of a name says which prompts."""
    prompts: dict[str, str] = {}
    points = []
    for cell in cells:
        result, place = results[cell.name], cell.place
        if result.forwards is None or result.tokens is None:
            continue
        panel, asked = f"{place.task}, length {place.length}", result.facts["prompts"]
        if prompts.setdefault(panel, asked) != asked:
            panel += f" (prompts {asked[:8]})"  # as in the facts of the table
        accuracy = share(result.values["solved"])
        points.append(Point(cell.name, panel, place.line, place.setting, accuracy, result.forwards, result.tokens))
    return points


def _comparison(
    column: Column, group: str, one: tuple[str, CellResult, str], other: tuple[str, CellResult, str]
) -> Comparison:
    found = compare(one[1].values[one[2]], other[1].values[other[2]])
    difference, alone, p_value, test = found
    only = alone or (None, None)
    return Comparison(column, group, one[0], other[0], difference, only[0], only[1], p_value, test)


def _common(facts: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Divides the facts of cells into those that are the same in all, and the others."""
    keys = list(dict.fromkeys(key for own in facts.values() for key in own))
    first = next(iter(facts.values()))
    same = {key: first[key] for key in keys if all(own.get(key) == first.get(key) for own in facts.values())}
    return same, {
        name: {key: own[key] for key in keys if key not in same and key in own} for name, own in facts.items()
    }
