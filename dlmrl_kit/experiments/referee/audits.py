"""The audit of each algorithm of a comparison: bias, scale and variance of its gradient, kept as ``audit.csv``."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from dlmrl_kit.audit import audit_recipe
from dlmrl_kit.audit.actions import AuditError
from dlmrl_kit.core.errors import CheckpointError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.experiments.aggregate import csv_text
from dlmrl_kit.experiments.referee.records import table_rows
from dlmrl_kit.experiments.referee.spec import Algorithm, Spec

FILE = "audit.csv"
TITLES = ("recipe", "bias", "bias_after_scale", "scale", "relative_variance")


@dataclass(frozen=True)
class Audited:
    """What the audit found of an algorithm, in the kit's own sizes of problems; None where there is no number.

    Attributes:
        bias: the largest relative bias over the problems.
        bias_after_scale: the same after the best scale.
        scale: its mean.
        variance: mean over the problems of the variance over the squared norm of the mean gradient.
    """

    bias: float | None
    bias_after_scale: float | None
    scale: float | None
    variance: float | None


def audit_recipes(spec: Spec, folder: Path) -> None:
    """Audits the algorithms that ``audit.csv`` does not have yet, as they are without the settings of a task."""
    known = read_audits(folder)
    for algorithm in spec.algorithms:
        if algorithm.name not in known:
            known[algorithm.name] = _audited(algorithm, spec.allow_imports)
            rows = [(name, *vars(found).values()) for name, found in known.items()]
            write_atomic(folder / FILE, csv_text([TITLES, *rows]))


def read_audits(folder: Path) -> dict[str, Audited]:
    """Reads ``audit.csv``: by recipe, what was found; empty where there is no such file.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    rows = table_rows(path, TITLES, numbers=())
    names = {field.name: title for field, title in zip(fields(Audited), TITLES[1:], strict=True)}
    try:
        return {
            row["recipe"]: Audited(**{name: float(row[title]) if row[title] else None for name, title in names.items()})
            for row in rows
        }
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _audited(algorithm: Algorithm, allow_imports: bool) -> Audited:
    try:
        report = audit_recipe(
            algorithm.recipe,
            uses=algorithm.uses,
            sets=algorithm.sets,
            allow_imports=allow_imports,
            attribution=False,
        )
    except AuditError:  # an algorithm that cannot be listed: it has no numbers
        return Audited(None, None, None, None)
    variances = [found.relative_variance for found in report.measured if found.relative_variance is not None]
    return Audited(
        bias=_known(report.relative_bias),
        bias_after_scale=_known(report.relative_bias_after_scale),
        scale=_known(report.scale),
        variance=sum(variances) / len(variances) if variances else None,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
