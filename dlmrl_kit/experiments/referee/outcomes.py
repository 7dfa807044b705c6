"""What each run of a comparison came to, read from its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dlmrl_kit.core.results import wilson_interval
from dlmrl_kit.experiments.folder import portable, stated
from dlmrl_kit.experiments.referee.entries import Entry
from dlmrl_kit.experiments.runs import Job
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.training.evaluation_files import EVALUATIONS, VALIDATIONS, read_evaluations


@dataclass(frozen=True)
class Point:
    """An evaluation of a run.

    Attributes:
        update: updates before it.
        forwards, tokens: that went through the model in these.
        accuracy, reward: on held-out examples.
        validation: accuracy on validation examples; None: there are none.
    """

    update: int
    forwards: float
    tokens: float
    accuracy: float
    reward: float
    validation: float | None


@dataclass(frozen=True)
class Outcome:
    """A run of a comparison.

    Attributes:
        task, recipe, seed: what was run.
        settings: that were tuned, as bindings joined by "; ".
        status: ``finished`` or ``failed``; a failed run counts with its last evaluation, as its checkpoint is there.
        size: held-out examples.
        curve: its evaluations, in order; empty where it failed before the first.
        seconds: of the CPU, in all its updates; None where they were not all measured.
        run: its name among files, such as ``sudoku-egspo-0-seed-3`` with the number of its settings.
        digest: of the resolved recipe with its seed, by which a finished run is known again.
    """

    task: str
    recipe: str
    seed: int
    settings: str
    status: str
    size: int
    curve: tuple[Point, ...]
    seconds: float | None = None
    run: str = ""
    digest: str = ""

    @property
    def before(self) -> float:
        """Accuracy before training."""
        return self.curve[0].accuracy

    @property
    def final(self) -> float:
        """Accuracy at the last evaluation."""
        return self.curve[-1].accuracy

    @property
    def best(self) -> float | None:
        """Held-out accuracy of the model that is best on validation examples; None without these."""
        trained = [point for point in self.curve[1:] if point.validation is not None]
        if not trained:
            return None
        return max(trained, key=lambda point: (point.validation or 0.0, -point.update)).accuracy

    @property
    def collapsed(self) -> bool:
        """Whether the run failed, or ended below the 95% interval of the accuracy that it began with."""
        return self.status == "failed" or self.final < wilson_interval(self.before, self.size)[0]


def outcome_of(entry: Entry, point: int, job: Job, folder: Path) -> Outcome:
    """Reads what a run of a comparison, in ``folder``, came to."""
    found = measured(job.folder)
    return Outcome(
        entry.task,
        entry.recipe,
        job.seed,
        settings="; ".join(entry.points[point]),
        status=job.status,
        size=found.size,
        curve=found.curve,
        seconds=found.seconds,
        run=run_name(job),
        digest=run_digest(job, folder),
    )


def run_name(job: Job) -> str:
    """Returns the name of a run among files."""
    return f"{job.variant.folder}-seed-{job.seed}"


def run_digest(job: Job, folder: Path) -> str:
    """Returns what identifies a run: a digest, of 16 letters, of what its resolved recipe with its seed states.

    Args:
        job: the run.
        folder: of the comparison, from where the recipe's paths count.
    """
    lines = stated(portable(job.variant.texts[job.seed], folder).splitlines())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


class Measured(NamedTuple):
    """What was measured in a run; attributes as of ``Outcome``."""

    curve: tuple[Point, ...] = ()
    size: int = 0
    seconds: float | None = None


def measured(folder: Path) -> Measured:
    """Reads what was measured in a run from its folder; nothing where it was not evaluated yet."""
    path = folder / EVALUATIONS
    if not path.is_file():
        return Measured()
    metrics = read_metrics(folder)
    results = sorted(read_evaluations(path).items())
    chosen_on = read_evaluations(folder / VALIDATIONS) if (folder / VALIDATIONS).is_file() else {}
    spent = {name: dict(metrics.get(f"forwards/{name}", [])) for name in ("rollout", "update", "tokens")}

    def total(name: str, updates: int) -> float:
        return sum(value for update, value in spent[name].items() if update < updates)

    curve = tuple(
        Point(
            update,
            total("rollout", update) + total("update", update),
            total("tokens", update),
            result.accuracy,
            result.reward,
            chosen_on[update].accuracy if update in chosen_on else None,
        )
        for update, result in results
    )
    return Measured(curve, results[0][1].size, _seconds(dict(metrics.get("cpu_seconds", [])), curve[-1].update))


def _seconds(of_updates: Mapping[int, float], updates: int) -> float | None:
    """Adds up the CPU's seconds of the updates before an evaluation; None where one has none."""
    return sum(of_updates[update] for update in range(updates)) if of_updates.keys() >= {*range(updates)} else None
