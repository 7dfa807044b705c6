"""Writes what docs/referee.md says of the papers' claims, from ``claims/claims.csv`` and the runs beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dlmrl_kit.experiments.evaluation_files import percent
from dlmrl_kit.experiments.referee.claims import FAILS, HOLDS, UNKNOWN, Verdict
from dlmrl_kit.experiments.referee.report import Report, read_report
from dlmrl_kit.experiments.referee.run import stored_question
from dlmrl_kit.experiments.text_tables import markdown_table

CLAIMS = Path(__file__).parent / "claims"


def report() -> Report:
    """Reads what the comparison of ``claims.toml`` found."""
    return read_report(CLAIMS, *stored_question(CLAIMS))


def blocks(found: Report) -> dict[str, str]:
    """Returns what stands on the page between the markers of each name."""
    tasks = list(dict.fromkeys(verdict.task for verdict in found.verdicts))
    told = Counter(verdict.verdict for verdict in found.verdicts)
    count = ", ".join(f"{told[name]} {name}" for name in (HOLDS, FAILS, UNKNOWN))
    pairs = {verdict.difference.n for verdict in found.verdicts}
    seeds = str(pairs.pop()) if len(pairs) == 1 else f"{min(pairs)} to {max(pairs)}"
    return {
        "claims": markdown_table(_table(found.verdicts, tasks)),
        "claims count": f"Of {len(found.verdicts)} claims on a task, each in pairs of {seeds} seeds: {count}.",
    }


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
