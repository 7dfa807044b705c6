"""The report of a comparison: tables as Markdown, LaTeX, CSV and JSON, and figures, from the outcomes in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dlmrl_kit.core.errors import CheckpointError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.experiments.aggregate import Estimate, csv_text
from dlmrl_kit.experiments.evaluation_files import percent
from dlmrl_kit.experiments.referee.audits import Audited, read_audits
from dlmrl_kit.experiments.referee.claims import Verdict, claims_rows, claims_table, verdicts
from dlmrl_kit.experiments.referee.figures import draw_curves, draw_differences
from dlmrl_kit.experiments.referee.outcomes import Outcome
from dlmrl_kit.experiments.referee.records import RUNS, read_outcomes
from dlmrl_kit.experiments.referee.spec import Claim
from dlmrl_kit.experiments.referee.statistics import POWER, Difference, Row, ranks, rows
from dlmrl_kit.experiments.text_tables import latex_table, markdown_table

MARKDOWN, LATEX, CSV, JSON, CLAIMS = "table.md", "table.tex", "table.csv", "table.json", "claims.csv"
TITLES = (
    "algorithm",
    "final",
    "best on validation",
    "area",
    "at half the forwards",
    "seeds' deviation",
    "collapsed",
    "forwards",
    "CPU seconds",
    "difference",
    "p",
    "detectable",
)
CLAIMS_NOTE = (
    "A claim is about final accuracies, in points, paired by seed. It holds where the whole interval is above what is "
    "claimed, and does not where none of it is; else it cannot be told. The intervals hold all at once with 95% "
    "(Student's, Bonferroni). Detectable is how far above what is claimed the difference must be to be found by as "
    f"many pairs with probability {POWER:g}."
)
ESTIMATES = ("before", "final", "best", "area", "half")
PLAIN = ("deviation", "finished", "failed", "collapsed", "forwards", "tokens", "seconds")


@dataclass(frozen=True)
class Report:
    """The results of a comparison.

    Attributes:
        base: the algorithm that the others are compared with.
        budget: of forwards.
        rows: one for each algorithm on each task.
        ranks: mean ranks over tasks and seeds.
        audits: by algorithm, what the audit found.
        outcomes: of all runs.
        verdicts: on the claims that were to be tested.
    """

    base: str
    budget: float
    rows: list[Row]
    ranks: dict[str, Estimate]
    audits: dict[str, Audited]
    outcomes: list[Outcome]
    verdicts: list[Verdict]

    @property
    def tasks(self) -> list[str]:
        """The tasks, in order."""
        return list(dict.fromkeys(row.task for row in self.rows))

    def to_json(self) -> dict[str, object]:
        """Returns everything but the runs for JSON."""
        return {
            "base": self.base,
            "forwards": self.budget,
            "rows": [asdict(row) for row in self.rows],
            "ranks": {recipe: vars(rank) for recipe, rank in self.ranks.items()},
            "audit": {recipe: vars(found) for recipe, found in self.audits.items()},
            "claims": [asdict(verdict) for verdict in self.verdicts],
            "notes": self.notes(),
        }

    def notes(self) -> list[str]:
        """Says how the numbers are to be read."""
        seeds = len({outcome.seed for outcome in self.outcomes})
        tests = sum(row.difference is not None and row.difference.p_value is not None for row in self.rows)
        return [
            f"Every run had a budget of {self.budget:,.0f} forwards of the model: as many updates as fit, if each "
            f"takes what the first one of its algorithm does. What runs took, more or less, is in the table. "
            f"Accuracies in percent on held-out examples, decoded by each algorithm's own sampler, greedily unless a "
            f"task sets Trainer.eval_temperature; means over {seeds} seeds with Student's 95% intervals.",
            f"The difference is to {self.base}, in points, paired by seed, with an interval of its own; p is of the "
            f"paired t test, adjusted for {tests} tests by Benjamini and Hochberg. Detectable is the difference that "
            f"as many seeds would have shown with probability {POWER:g} in a single test at 5%: after adjusting it "
            f"takes more, and a smaller one cannot be told at this size.",
            "CPU seconds are those of the updates of a run, in all processes that train together, without evaluations.",
            "A run collapsed if it failed, or ended below the 95% interval of the accuracy it began with.",
        ]


def read_report(folder: Path, base: str, budget: float, claims: Sequence[Claim] = ()) -> Report:
    """Makes the report of the outcomes that a folder holds.

    Raises:
        CheckpointError: its files are missing or damaged, or hold no run yet.
    """
    outcomes = read_outcomes(folder)
    if not outcomes:
        raise CheckpointError(f"{folder / RUNS} holds no run")
    found = rows(outcomes, base, budget), ranks(outcomes), read_audits(folder), outcomes, verdicts(claims, outcomes)
    return Report(base, budget, *found)


def write_report(folder: Path, base: str, budget: float, claims: Sequence[Claim] = ()) -> Report:
    """Writes tables and figures of the outcomes that a folder holds; returns the report."""
    report = read_report(folder, base, budget, claims)
    write_atomic(folder / MARKDOWN, markdown(report))
    write_atomic(folder / LATEX, latex(report))
    write_atomic(folder / CSV, csv_text(csv_rows(report)))
    if claims:
        write_atomic(folder / CLAIMS, csv_text(claims_rows(report.verdicts)))
    write_atomic(folder / JSON, json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n")
    draw_curves(report.outcomes, base, budget, folder)
    draw_differences(report.rows, folder)
    return report


def task_table(report: Report, task: str) -> list[list[str]]:
    """Returns the table of a task: a row of titles, then one for each algorithm, the best final accuracy first."""
    own = [row for row in report.rows if row.task == task]
    own.sort(key=lambda row: -(row.final.mean if row.final.mean is not None else -1.0))
    return [list(TITLES), *([*_cells(row)] for row in own)]


def rank_table(report: Report) -> list[list[str]]:
    """Returns the table of mean ranks, the best first, with what the audit found."""
    titles = ["algorithm", "mean rank", "audit: bias", "after scale", "scale", "relative variance"]
    lines = []
    for recipe, rank in sorted(report.ranks.items(), key=lambda item: item[1].mean or 0.0):
        found = report.audits.get(recipe)
        numbers = [None] * 4 if found is None else [*vars(found).values()]
        lines.append([recipe, _rank(rank), *("-" if value is None else f"{value:.3g}" for value in numbers)])
    return [titles, *lines] if report.audits else [titles[:2], *(line[:2] for line in lines)]


def markdown(report: Report) -> str:
    """Returns the report as Markdown."""
    parts = ["# Comparison", *report.notes()]
    for task in report.tasks:
        before = [row.before.mean for row in report.rows if row.task == task and row.before.mean is not None]
        start = f"Before training: {100 * min(before):.1f} to {100 * max(before):.1f}." if before else ""
        parts += [f"## {task}", start, markdown_table(task_table(report, task))]
        tuned = [[row.recipe, row.settings] for row in report.rows if row.task == task and row.settings]
        if tuned:
            parts += [
                "Settings that were chosen on validation examples:",
                markdown_table([["algorithm", "settings"], *tuned]),
            ]
    parts += ["## Ranks", markdown_table(rank_table(report))]
    if report.verdicts:
        parts += ["## Claims", CLAIMS_NOTE, markdown_table(claims_table(report.verdicts))]
    return "\n\n".join(filter(None, parts)) + "\n"


def latex(report: Report) -> str:
    """Returns the tables for the package ``booktabs``."""
    tables = [latex_table(task_table(report, task), [task, *report.notes()]) for task in report.tasks]
    tables.append(latex_table(rank_table(report), ["mean ranks over tasks and seeds"]))
    if report.verdicts:
        tables.append(latex_table(claims_table(report.verdicts), ["claims", CLAIMS_NOTE]))
    return "\n".join(tables)


def csv_rows(report: Report) -> list[Sequence[object]]:
    """Returns a row of titles, then one for each number."""
    found: list[Sequence[object]] = [("task", "recipe", "metric", "mean", "low", "high", "n")]
    for row in report.rows:
        what = (row.task, row.recipe)
        estimates = {name: getattr(row, name) for name in ESTIMATES}
        found += [(*what, name, e.mean, e.low, e.high, e.n) for name, e in estimates.items()]
        plain = {name: getattr(row, name) for name in PLAIN}
        if row.difference is not None:
            value = row.difference.value
            found.append((*what, "difference", value.mean, value.low, value.high, value.n))
            plain |= {"p_value": row.difference.p_value, "detectable": row.difference.detectable}
        found += [(*what, name, value, None, None, row.finished) for name, value in plain.items()]
    found += [("", recipe, "rank", e.mean, e.low, e.high, e.n) for recipe, e in report.ranks.items()]
    return found


def _cells(row: Row) -> Sequence[str]:
    runs = row.finished + row.failed
    deviation = "-" if row.deviation is None else f"{100 * row.deviation:.1f}"
    accuracies = (percent(row.final), percent(row.best), percent(row.area), percent(row.half))
    return (
        row.recipe,
        *accuracies,
        deviation,
        f"{row.collapsed} of {runs}",
        f"{row.forwards:,.0f}",
        "-" if row.seconds is None else f"{row.seconds:,.0f}",
        *_tested(row.difference),
    )


def _tested(difference: Difference | None) -> tuple[str, str, str]:
    if difference is None:
        return "base", "", ""
    p_value, shown = difference.p_value, difference.detectable
    return (
        percent(difference.value, "+"),
        "-" if p_value is None else f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001",
        "-" if shown is None else f"{100 * shown:.1f}",
    )


def _rank(rank: Estimate) -> str:
    if rank.low is None or rank.high is None:
        return f"{rank.mean:.2f}"
    return f"{rank.mean:.2f} [{rank.low:.2f}, {rank.high:.2f}]"
