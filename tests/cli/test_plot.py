"""``dlmrl plot``: figures of a run, formats, and what is none."""

from __future__ import annotations

from pathlib import Path

from support.command_line import dlmrl

from dlmrl_kit.loggers.metrics_csv import MetricsCSV


def test_plot(tmp_path: Path) -> None:
    logger = MetricsCSV()
    logger.open(tmp_path, 0)
    logger.log(0, {"reward": 1.0})
    logger.close()
    shown = dlmrl("plot", str(tmp_path), "--out", str(tmp_path / "paper"), "--format", "svg", "--format", "svg")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines() == [str(tmp_path / "paper" / name) for name in ("curve.svg", "rewards.svg")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "paper"]


def test_what_is_no_run_or_no_place_is_one_line(tmp_path: Path) -> None:
    missing = dlmrl("plot", str(tmp_path))
    assert (missing.exit_code, missing.stderr.count("\n")) == (2, 1)
    assert "has no metrics.csv" in missing.stderr
    (tmp_path / "metrics.csv").write_text("update,metric,value\n0,reward,1.0\n")
    (tmp_path / "file").touch()
    blocked = dlmrl("plot", str(tmp_path), "--out", str(tmp_path / "file"), "--format", "svg")
    assert blocked.exit_code == 2
    assert "cannot write" in blocked.stderr
    assert dlmrl("plot", str(tmp_path), "--format", "gif").exit_code == 2
