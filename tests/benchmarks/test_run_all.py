"""All benchmarks on one page: what runs, what fails, and what stands beside an earlier commit."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import results_page
import run_all
from results_page import Benchmark

WRITES = """
import json, pathlib, sys
import dlmrl_kit
rows = [{"size": 8, "seconds": float(sys.argv[1]), "package": dlmrl_kit.__path__[0]}]
pathlib.Path("benchmark-results").mkdir(exist_ok=True)
pathlib.Path("benchmark-results", "writes.json").write_text(json.dumps({"rows": rows}))
"""
SCRIPTS = {
    "fails": "print('so far'); raise SystemExit('no such thing')",
    "hangs": "import time; time.sleep(600)",
    "prints": "print('| a |\\n| --- |\\n| 1 |')",
    "writes": WRITES,
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real scripts, which fail, hang, print and write a table, in place of the benchmarks."""
    table = {}
    for name, text in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(text)
        table[name] = Benchmark(f"It {name}", (str(tmp_path / f"{name}.py"), "2.5"), None)
    monkeypatch.setattr(run_all, "BENCHMARKS", table)
    return tmp_path / "out"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["run_all.py", *arguments])
    run_all.main()


def test_every_script_is_on_the_page_or_said_to_be_left_out() -> None:
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()}
    run = {benchmark.full[0] for benchmark in run_all.BENCHMARKS.values()}
    assert run | {*run_all.NOT_HERE} == scripts
    assert not run & {*run_all.NOT_HERE}


def test_what_fails_is_said_and_the_others_go_on(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="failed: fails"):
        call(monkeypatch, "--out", str(small), "--only=fails", "--only=prints")
    page = (small / "results.md").read_text()
    assert "no such thing" in page
    assert "\n| a |\n| --- |\n| 1 |\n" in page
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(" CPU s  ")[1] for line in lines] == ["FAILED: exit code 1", "done"]
    assert str(small / "results.md") in last
    assert (small / "results.csv").read_text().startswith("benchmark,package,run,row,column,value\n")


@pytest.mark.thorough
def test_a_script_that_hangs_is_ended(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="failed: hangs"):
        call(monkeypatch, "--out", str(small), "--only=hangs", "--limit=1")
    assert "ended after 1 s, the limit" in (small / "results.md").read_text()


@pytest.mark.thorough
def test_an_earlier_commit_stands_beside_this_one(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a clone, whose worktrees are its own."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(clone)], check=True)
    monkeypatch.setattr(run_all, "ROOT", clone)
    commit = run_all.git("rev-parse", "--short", "HEAD")
    call(monkeypatch, "--out", str(small), "--only=writes", "--against=HEAD", "--rounds=2")
    assert len(run_all.git("worktree", "list").splitlines()) == 1
    stored = json.loads((small / "results.json").read_text())["benchmarks"]["writes"]["runs"]
    assert [run["package"] for run in stored] == ["here", commit, "here", commit]
    here, there = (Path(run["rows"][0]["package"]) for run in stored[:2])
    assert here == clone / "dlmrl_kit"
    assert there != here
    assert there.name == "dlmrl_kit"
    assert "| size 8 | seconds | 2.5 | 2.5 | 1.000 |" in (small / "results.md").read_text()
    lines = [*csv.DictReader((small / "results.csv").read_text().splitlines())]
    assert sum(line["column"] == "seconds" and line["value"] == "2.5" for line in lines) == 4
    with pytest.raises(SystemExit, match="no-such-commit"):
        call(monkeypatch, "--out", str(small), "--only=writes", "--against=no-such-commit")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only=nothing"], "no benchmark nothing"),
        (["--only=writes", "--quick"], "no quick version"),
        (["--rounds=0"], "at least 1"),
    ],
)
def test_bad_options(small: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=said):
        call(monkeypatch, "--out", str(small), *arguments)


def test_medians_are_of_what_was_measured() -> None:
    rounds = [[{"vocab": 512, "seconds": seconds}] for seconds in (3.0, 1.0, 2.0)]
    assert results_page.median_rows(rounds) == [{"vocab": 512, "seconds": 2.0}]
    with pytest.raises(ValueError, match="different lengths"):
        results_page.median_rows([*rounds, []])
