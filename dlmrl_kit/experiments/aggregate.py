"""Turns run folders into a tidy table, and into means with bootstrap intervals and paired differences to the base."""

from __future__ import annotations

import csv
import inspect
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.results import FEW, EvalResult
from dlmrl_kit.core.version import VERSION
from dlmrl_kit.experiments.design import BASE, Design
from dlmrl_kit.experiments.runs import Job
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.training.evaluation_files import EVALUATIONS, read_evaluations

RESULTS, SUMMARY, SUMMARY_JSON = "results.csv", "summary.csv", "summary.json"
RESAMPLES = 9999

Series: TypeAlias = dict[str, list[tuple[int, float]]]
"""The metrics of a run: by name, the update and the value."""

UNTIMED = frozenset({"seconds", "cpu_seconds", "tokens_per_second"})
"""Metrics that depend on the machine; tables leave them out so that they can be compared."""

COVERAGE = {2: 50, 3: 75, 4: 80, 5: 85, 6: 86, 8: 89, 10: 90, 15: 92}
"""By number of seeds, the percentage of 95% bootstrap intervals that cover the true mean of normal values; measured."""

ENOUGH = 20


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` values with its 95% bootstrap interval from ``low`` to ``high``, None for fewer than two."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Line:
    """The line of a variant in the summary.

    Attributes:
        swap: name of the variant.
        finished, failed: numbers of runs.
        before: mean accuracy on held-out examples before training.
        accuracy: the same after training.
        difference: accuracy after training minus that of the base with the same seed; None for the base.
        same_as: the first variant whose metrics are the same in all finished runs of common seeds; "" if none is.
    """

    swap: str
    finished: int
    failed: int
    before: float | None
    accuracy: Estimate
    difference: Estimate | None
    same_as: str = ""


@dataclass(frozen=True)
class Summary:
    """The results of an ablation.

    Attributes:
        design: what was compared.
        jobs: all runs.
        lines: one per variant.
        notes: say how far the numbers can be trusted.
        measured: says on what the accuracies were measured.
    """

    design: Design
    jobs: list[Job]
    lines: list[Line]
    notes: list[str] = field(default_factory=list)
    measured: str = ""

    @property
    def failed(self) -> list[Job]:
        """The runs that failed."""
        return [job for job in self.jobs if job.status == "failed"]

    def to_json(self) -> dict[str, object]:
        """Returns everything for JSON, without times and absolute paths, so that equal results give equal files."""
        return {
            "dlmrl_kit": VERSION,
            "recipe": self.design.recipe,
            "seeds": list(self.design.seeds),
            "measured": self.measured,
            "variants": [_line_json(line) for line in self.lines],
            "differences": {v.name: v.difference.to_json() for v in self.design.variants if v.difference is not None},
            "runs": [_job_json(job) for job in self.jobs],
            "notes": [*self.design.notes, *self.notes],
        }


def summarise(design: Design, jobs: list[Job]) -> Summary:
    """Computes means, intervals and differences from the results of the finished runs."""
    results = {(j.variant.name, j.seed): j.result() for j in jobs if j.status == "finished"}
    ends = {key: _accuracy(result, "after") for key, result in results.items()}
    lines, same = [], equal_variants(jobs)
    for variant in design.variants:
        seeds = [seed for seed in design.seeds if (variant.name, seed) in ends]
        before = [_accuracy(results[variant.name, seed], "before") for seed in seeds]
        pairs = [ends[variant.name, seed] - ends[BASE, seed] for seed in seeds if (BASE, seed) in ends]
        line = Line(
            swap=variant.name,
            finished=len(seeds),
            failed=sum(j.variant is variant and j.status == "failed" for j in jobs),
            before=_rounded(math.fsum(before) / len(before)) if before else None,
            accuracy=estimate([ends[variant.name, seed] for seed in seeds]),
            difference=estimate(pairs) if variant.kind else None,
            same_as=same.get(variant.name, ""),
        )
        lines.append(line)
    return Summary(design, jobs, lines, _notes(jobs, lines), _measured(results.values()))


def equal_variants(jobs: Iterable[Job]) -> dict[str, str]:
    """Finds variants whose runs measured the same: what differs between them changed nothing.

    Returns:
        By name, the first variant before it with the same numbers, bit for bit, for every metric that both have, in
        all seeds that both have finished.
    """
    found: dict[str, dict[int, Series]] = {}
    for job in jobs:
        if job.status == "finished":
            found.setdefault(job.variant.name, {})[job.seed] = metrics_of(job)
    same: dict[str, str] = {}
    for name, runs in found.items():
        for other, others in found.items():
            if other == name:
                break
            common = runs.keys() & others.keys()
            if common and all(_equal(runs[seed], others[seed]) for seed in common):
                same[name] = other
                break
    return same


def _equal(one: Series, other: Series) -> bool:
    # A variant may log a metric of its own; training that was another one shows in those that all have.
    common = one.keys() & other.keys()
    return bool(common) and all(repr(one[name]) == repr(other[name]) for name in common)  # NaN is NaN here


def estimate(values: Sequence[float]) -> Estimate:
    """Computes the mean of values and its 95% bootstrap interval by the percentile method, with a fixed seed."""
    if not values:
        return Estimate(None, None, None, 0)
    mean = _rounded(math.fsum(values) / len(values))
    if len(values) < 2:
        return Estimate(mean, None, None, 1)
    low, high = interval([[value] for value in values])
    return Estimate(mean, _rounded(low[0]), _rounded(high[0]), len(values))


def seeded(function: Callable[..., object]) -> dict[str, Any]:
    """Returns the argument of a function of scipy that makes its draws the same every time."""
    import numpy as np

    # Newer versions of scipy call ``random_state`` ``rng``; both take a generator.
    name = "rng" if "rng" in inspect.signature(function).parameters else "random_state"
    return {name: np.random.default_rng(0)}


def interval(rows: Sequence[Sequence[float]], resamples: int = RESAMPLES) -> tuple[list[float], list[float]]:
    """Computes lower and upper ends of 95% bootstrap intervals of the mean of each column, from at least two rows."""
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(rows, dtype=float),),
        np.mean,
        axis=0,
        vectorized=True,
        method="percentile",
        confidence_level=0.95,
        n_resamples=resamples,
        batch=100,
        **seeded(bootstrap),
    ).confidence_interval
    return found.low.tolist(), found.high.tolist()


def write_tables(summary: Summary, folder: Path) -> None:
    """Writes ``results.csv``, ``summary.csv`` and ``summary.json``."""
    write_atomic(folder / RESULTS, csv_text(tidy_rows(summary.jobs)))
    write_atomic(folder / SUMMARY, csv_text(summary_rows(summary.lines)))
    write_atomic(folder / SUMMARY_JSON, json.dumps(summary.to_json(), indent=1, ensure_ascii=False) + "\n")


def tidy_rows(jobs: Iterable[Job]) -> Iterator[Sequence[object]]:
    """Yields a row of titles, then the metrics of the finished runs in long form, one row per number."""
    yield ("run", "seed", "swap", "step", "metric", "value")
    for job in jobs:
        if job.status == "finished":
            for metric, series in sorted(metrics_of(job).items()):
                for step, value in series:
                    yield (job.name, job.seed, job.variant.name, step, metric, value)


def metrics_of(job: Job) -> Series:
    """Reads the metrics and evaluations of a run: by name, a list of (step, value)."""
    series = {name: points for name, points in read_metrics(job.folder).items() if name not in UNTIMED}
    measured: Series = {}
    for step, result in sorted(read_evaluations(job.folder / EVALUATIONS).items()):
        values = {"accuracy": result.accuracy, "reward": result.reward}
        values |= {f"reward/{name}": value for name, value in result.components.items()}
        for name, value in values.items():
            measured.setdefault(f"eval/{name}", []).append((step, value))
    return {**series, **measured}


def summary_rows(lines: Iterable[Line]) -> Iterator[Sequence[object]]:
    """Yields a row of titles, then the lines of the summary; a number that there is not is an empty cell or None."""
    names = ("accuracy", "difference")
    columns = [f"{name}{end}" for name in names for end in ("", "_low", "_high", "_n")]
    yield ("swap", "finished", "failed", "before", *columns)
    for line in lines:
        estimates = (line.accuracy, line.difference)
        cells = [cell for e in estimates for cell in ((e.mean, e.low, e.high, e.n) if e else ("",) * 4)]
        yield (line.swap, line.finished, line.failed, line.before, *cells)


def _accuracy(result: dict[str, Any], when: str) -> float:
    return float(result[when]["accuracy"])


def _rounded(value: float) -> float:
    """Rounds away the noise of sums in another order, by which an interval could miss its own mean; -0 becomes 0."""
    return round(value, 10) + 0.0


def _measured(results: Iterable[dict[str, Any]]) -> str:
    evaluated = ((EvalResult.from_json(result["after"]), result["updates"]) for result in results)
    seen = {(own.task, own.size, own.split, updates, own.temperature()): None for own, updates in evaluated}
    return "; ".join(
        f"{task}: " * bool(task)
        + f"{size} examples of {split} after {updates} updates, {how}"
        + f" (so few that each is {100 / size:.3g} points)" * (size < FEW)
        for task, size, split, updates, how in seen
    )


def _notes(jobs: list[Job], lines: Sequence[Line]) -> list[str]:
    notes = [
        f"{line.swap} and {line.same_as} have the same metrics in every update: what differs between them changed "
        "nothing, and they are one result, not two"
        for line in lines
        if line.same_as
    ]
    counts = {line.accuracy.n for line in lines} | {line.difference.n for line in lines if line.difference}
    fewest = min(counts)
    if fewest < 2:
        notes.append("one run has no interval: give more --seeds" if fewest else "some variants have no finished run")
    few = min((n for n in counts if n >= 2), default=ENOUGH)
    if few < ENOUGH:
        covered = max((n, share) for n, share in COVERAGE.items() if n <= few)[1]
        notes.append(
            f"intervals of few seeds are too narrow: about {covered}% of 95% bootstrap intervals over {few} seeds "
            "cover the true mean"
        )
    if any(job.status == "failed" for job in jobs):
        notes.append("failed runs are left out; the same command tries them again")
    return notes


def _line_json(line: Line) -> dict[str, object]:
    return {
        "swap": line.swap,
        "finished": line.finished,
        "failed": line.failed,
        "before": line.before,
        "accuracy": vars(line.accuracy),
        "difference": vars(line.difference) if line.difference else None,
        "same_as": line.same_as or None,
    }


def _job_json(job: Job) -> dict[str, object]:
    data: dict[str, object] = {"run": job.name, "swap": job.variant.name, "seed": job.seed, "status": job.status}
    return {**data, "error": job.error, "log": f"runs/{job.name}/{job.log.name}"} if job.error else data


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Writes rows as CSV; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(["" if cell is None else cell for cell in row] for row in rows)
    return text.getvalue()
