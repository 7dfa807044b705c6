"""The page of all benchmarks, and its numbers as JSON and CSV: what ``run_all.py`` writes."""

from __future__ import annotations

import csv
import io
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster import table
from common import machine

from dlmrl_kit.core.files import write_atomic

HERE = "here"
"""What the package of this checkout is called, beside an earlier commit."""

PACKAGES = ("torch", "transformers", "peft", "tensordict", "torchrl", "numpy")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what it measures, and its script with options, for the page and for a quick look."""

    what: str
    full: tuple[str, ...]
    quick: tuple[str, ...] | None


@dataclass(frozen=True)
class Run:
    """What a process of a benchmark came to.

    Attributes:
        package: whose: ``HERE`` or a commit.
        printed: its standard output.
        rows: of its table, None where it writes none.
        failed: why it failed; empty where it did not.
        wall, cpu: seconds; those of the CPU include all processes that it started.
    """

    package: str
    printed: str
    rows: list[dict[str, Any]] | None
    failed: str
    wall: float
    cpu: float

    @property
    def state(self) -> str:
        """Whether it worked, in a line."""
        return f"FAILED: {self.failed.splitlines()[0]}" if self.failed else "done"


def write_results(
    out: Path,
    commit: str,
    benchmarks: Mapping[str, Benchmark],
    tasks: Mapping[str, Sequence[str]],
    results: Mapping[str, Sequence[Run]],
) -> None:
    """Writes ``results.md``, ``results.json`` and ``results.csv`` of what has run so far.

    Args:
        out: folder.
        commit: of the checkout.
        benchmarks: all of them.
        tasks: scripts and options of what runs, by name.
        results: runs by name; both packages by turns, where there are two.
    """
    about = about_machine(commit)
    head = ["# Benchmarks", "", *(f"* {name}: {value}" for name, value in about.items()), ""]
    head += ["Processor seconds and medians where nothing else is said; each benchmark in a process of its own.", ""]
    head += [overview(results), ""]
    if left := [name for name in tasks if name not in results]:
        head += [f"Not run yet: {', '.join(left)}.", ""]
    parts = [part(name, benchmarks[name], tasks[name], runs) for name, runs in results.items()]
    write_atomic(out / "results.md", "\n".join(head) + "\n" + "\n".join(parts))
    stored = {
        name: {"command": " ".join(tasks[name]), "runs": [asdict(run) for run in runs]}
        for name, runs in results.items()
    }
    write_atomic(out / "results.json", json.dumps({"about": about, "benchmarks": stored}, indent=1) + "\n")
    write_atomic(out / "results.csv", as_csv(results))


def about_machine(commit: str) -> dict[str, str]:
    """Says when and where the numbers were measured."""
    found = machine()
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit,
        "machine": f"{found['cores']} cores of {found['processor']}, one thread",
        "versions": f"Python {found['python']}, {versions}",
        "command": " ".join(["python", *sys.argv]),
    }


def overview(results: Mapping[str, Sequence[Run]]) -> str:
    """Writes the table of what ran."""
    rows = [
        [f"[{name}](#{name})", run.package, run.state, f"{run.cpu:.0f}", f"{run.wall:.0f}"]
        for name, runs in results.items()
        for run in runs
    ]
    return table(["benchmark", "package", "state", "CPU s", "wall s"], rows)


def part(name: str, benchmark: Benchmark, command: Sequence[str], runs: Sequence[Run]) -> str:
    """Writes the part of a benchmark."""
    lines = [f"## {name}", "", f"{benchmark.what}: `OMP_NUM_THREADS=1 python benchmarks/{' '.join(command)}`.", ""]
    for run in runs:
        if run.failed:
            lines += [f"**{run.package}: failed.**", "", "```", run.failed, "```", ""]
    good = [run for run in runs if not run.failed]
    packages = list(dict.fromkeys(run.package for run in good))
    if all(run.rows is not None for run in good):
        tables = {package: [run.rows or [] for run in good if run.package == package] for package in packages}
        medians = {package: median_rows(rounds) for package, rounds in tables.items()}
        for package, rows in medians.items():
            lines += [*([f"{package}:", ""] if len(runs) > 1 else []), markdown(rows), ""]
        if len(medians) == 2:
            lines += [beside(*medians, *medians.values()), ""]
    else:
        for package in packages:
            printed = next(run.printed for run in good if run.package == package).strip()
            is_table = all(line.startswith("|") or not line.strip() for line in printed.splitlines())
            shown = [printed] if is_table else ["```", printed, "```"]
            lines += [*([f"{package}:", ""] if len(packages) > 1 else []), *shown, ""]
    return "\n".join(lines)


def median_rows(tables: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """Returns the rows of the first table with the medians of all tables for what was measured, which are floats."""
    if len({len(rows) for rows in tables}) > 1:
        raise ValueError("the rounds of a benchmark have tables of different lengths")
    return [
        {
            column: statistics.median(row[column] for row in same) if isinstance(value, float) else value
            for column, value in same[0].items()
        }
        for same in zip(*tables, strict=True)
    ]


def markdown(rows: Sequence[Row]) -> str:
    """Writes rows as a table."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return table(columns, [[cell(row.get(column, "")) for column in columns] for row in rows])


def cell(value: object) -> str:
    """Writes a value, numbers with three digits."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def beside(name: str, other: str, rows: Sequence[Row], before: Sequence[Row]) -> str:
    """Writes what was measured with both packages, a line each, where their tables have the same rows and columns."""
    lines = []
    for row, old in zip(rows, before, strict=False):
        what = ", ".join(f"{k} {v}" for k, v in row.items() if not isinstance(v, float) and old.get(k) == v)
        for column, value in row.items():
            past = old.get(column)
            if isinstance(value, float) and isinstance(past, float):
                ratio = f"{value / past:.3f}" if past else ""
                lines.append([what, column, cell(past), cell(value), ratio])
    return table(["", "measured", other, name, f"{name} / {other}"], lines)


def as_csv(results: Mapping[str, Sequence[Run]]) -> str:
    """Writes every cell of every table as a line: benchmark, package, run, row, column, value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["benchmark", "package", "run", "row", "column", "value"])
    for name, runs in results.items():
        for number, run in enumerate(runs):
            writer.writerow([name, run.package, number, "", "cpu seconds", run.cpu])
            for index, row in enumerate(run.rows or ()):
                writer.writerows([name, run.package, number, index, column, value] for column, value in row.items())
    return out.getvalue()
