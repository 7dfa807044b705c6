"""Writes the tables of docs/referee.md, and its figures of bias and of steps, from the CSV files beside this script.

From the root of the repository::

    dlmrl compare --tables --out benchmarks/referee/results
    dlmrl compare --tables --out benchmarks/referee/claims
    dlmrl compare --tables --out benchmarks/referee/claims_sudoku
    python benchmarks/referee/write_page.py
"""

from __future__ import annotations

import csv
from pathlib import Path

import claims_page
import why

from dlmrl_kit.experiments.referee.report import Report, rank_table, read_report, task_table
from dlmrl_kit.experiments.referee.run import stored_question
from dlmrl_kit.experiments.text_tables import markdown_table

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parents[1] / "docs" / "referee.md"
SHOWN = (
    "algorithm",
    "final",
    "best on validation",
    "area",
    "collapsed",
    "forwards",
    "CPU seconds",
    "difference",
    "p",
    "detectable",
)


def results() -> Report:
    """Reads what the comparison found."""
    return read_report(RESULTS, *stored_question(RESULTS))


def blocks(report: Report) -> dict[str, str]:
    """Returns what stands on the page between the markers of each name."""
    found = {"ranks": markdown_table(rank_table(report)), "notes": "\n".join(f"- {note}" for note in report.notes())}
    for task in report.tasks:
        titles, *lines = task_table(report, task)
        columns = [titles.index(title) for title in SHOWN]
        found[task] = markdown_table([[line[column] for column in columns] for line in (titles, *lines)])
        settings = [[row.recipe, row.settings.rpartition(" = ")[2]] for row in report.rows if row.task == task]
        found[f"{task} rates"] = ", ".join(f"{name} {value}" for name, value in settings)
    found["difficulty"] = _difficulty()
    rho, p_value, number = correlation(report)
    found["correlation"] = f"Spearman's rho {rho:+.2f}, p = {p_value:.2f}, {number} algorithms"
    return found | why.blocks() | claims_page.blocks()


def correlation(report: Report) -> tuple[float, float, int]:
    """Returns Spearman's correlation of bias after scale and mean rank, its p-value, and the number of algorithms."""
    from scipy.stats import spearmanr

    biases, means = zip(*_bias_and_rank(report).values(), strict=True)
    found = spearmanr(biases, means)
    return float(found.statistic), float(found.pvalue), len(biases)


def _bias_and_rank(report: Report) -> dict[str, tuple[float, float]]:
    found = {}
    for recipe, audited in report.audits.items():
        mean = report.ranks[recipe].mean
        if audited.bias_after_scale is not None and mean is not None:
            found[recipe] = (audited.bias_after_scale, mean)
    return found


def _difficulty() -> str:
    with (HERE / "difficulty.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [
        [
            *(row["task"], row["form"], row["tokens per step"]),
            f"{float(row['greedy']):.1%} [{float(row['low']):.1%}, {float(row['high']):.1%}]",
            *(f"{float(row[name]):.1%}" for name in ("sampled", "mixed groups")),
        ]
        for row in rows
    ]
    return markdown_table([["task", "form", "tokens per step", "greedy", "sampled", "mixed groups"], *lines])


def written(text: str, found: dict[str, str]) -> str:
    """Returns the page with what stands between each pair of markers replaced."""
    for name, block in found.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        if text.count(start) != 1:
            raise SystemExit(f"{PAGE} has {text.count(start)} places for {name!r}, not 1")
        head, _, rest = text.partition(start)
        text = f"{head}{start}{block}\n{end}{rest.partition(end)[2]}"
    return text


def draw(report: Report) -> None:
    """Draws the bias that the audit finds against the mean rank, with its interval."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    labels: dict[tuple[float, int], tuple[tuple[float, float], list[str]]] = {}
    for recipe, (bias, mean) in _bias_and_rank(report).items():
        rank = report.ranks[recipe]
        if rank.low is not None and rank.high is not None:
            axes.plot([bias, bias], [rank.low, rank.high], color="0.8", zorder=1)
        axes.scatter([bias], [mean], color="C0", zorder=2)
        labels.setdefault((round(bias, 1), round(2 * mean)), ((bias, mean), []))[1].append(recipe)
    for (bias, mean), names in labels.values():
        place = (12, 2) if len(names) > 1 else (6, 2)
        axes.annotate(", ".join(names), (bias, mean), place, textcoords="offset points", fontsize=7)
    axes.set_xlim(-0.05, 1.35)
    axes.invert_yaxis()
    axes.set(xlabel="relative bias of the gradient after scale (audit)", ylabel="mean rank, 95% interval (1 is best)")
    figure.savefig(RESULTS / "bias.png", dpi=120)
    plt.close(figure)


def main() -> None:
    """Writes the page and the figures."""
    report = results()
    draw(report)
    why.draw()
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), blocks(report)), encoding="utf-8")


if __name__ == "__main__":
    main()
