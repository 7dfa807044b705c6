"""Writes what docs/referee.md says of the papers' claims, from the folders of their comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dlmrl_kit.experiments.evaluation_files import percent
from dlmrl_kit.experiments.referee.claims import FAILS, HOLDS, UNKNOWN, Verdict
from dlmrl_kit.experiments.referee.report import Report, read_report
from dlmrl_kit.experiments.referee.run import stored_question
from dlmrl_kit.experiments.text_tables import markdown_table

HERE = Path(__file__).parent
COMPARISONS = ("claims", "claims_sudoku")
"""Specifications, and the folders of what they found."""


def report(name: str) -> Report:
    """Reads what one of ``COMPARISONS`` found."""
    return read_report(HERE / name, *stored_question(HERE / name))


def blocks() -> dict[str, str]:
    """Returns what stands on the page between the markers of each name."""
    verdicts = [verdict for name in COMPARISONS for verdict in report(name).verdicts]
    tasks = list(dict.fromkeys(verdict.task for verdict in verdicts))
    counts = [_count(task, [verdict for verdict in verdicts if verdict.task == task]) for task in tasks]
    return {"claims": markdown_table(_table(verdicts, tasks)), "claims count": "\n".join(counts)}


def _count(task: str, verdicts: Sequence[Verdict]) -> str:
    told = Counter(verdict.verdict for verdict in verdicts)
    count = ", ".join(f"{told[name]} {name}" for name in (HOLDS, FAILS, UNKNOWN))
    pairs = {verdict.difference.n for verdict in verdicts}
    seeds = str(pairs.pop()) if len(pairs) == 1 else f"{min(pairs)} to {max(pairs)}"
    return f"- {task}, {len(verdicts)} claims, each in pairs of {seeds} seeds: {count}."


def _table(verdicts: Sequence[Verdict], tasks: Sequence[str]) -> list[list[str]]:
    by_claim: dict[str, dict[str, Verdict]] = {}
    for verdict in verdicts:
        by_claim.setdefault(verdict.claim.text, {})[verdict.task] = verdict
    titles = [title for task in tasks for title in (task, f"{task}: difference", "detectable")]
    return [
        ["claim", *titles],
        *([text, *(cell for task in tasks for cell in _cells(own.get(task)))] for text, own in by_claim.items()),
    ]


def _cells(verdict: Verdict | None) -> list[str]:
    if verdict is None:
        return ["", "", ""]
    detectable = "" if verdict.detectable is None else f"{100 * verdict.detectable:.1f}"
    return [verdict.verdict, percent(verdict.difference, "+"), detectable]
