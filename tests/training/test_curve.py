"""The plot of a run."""

from __future__ import annotations

import io
from pathlib import Path

import numpy
import pytest
from PIL import Image

from dlmrl_kit.core.errors import CheckpointError
from dlmrl_kit.loggers.metrics_csv import MetricsCSV
from dlmrl_kit.training.curve import curve_figure, plot_curve
from dlmrl_kit.training.figure_style import png, running_mean

pytestmark = pytest.mark.usefixtures("fine_pictures")


def write_metrics(folder: Path, updates: int, names: tuple[str, ...] = ("reward", "accuracy", "entropy", "kl")) -> None:
    logger = MetricsCSV()
    logger.open(folder, 0)
    logger.log(0, {"eval/accuracy": 0.4})
    for update in range(updates):
        logger.log(update, {name: 0.01 * update for name in names})
    logger.log(updates, {"eval/accuracy": 0.6})
    logger.close()


@pytest.mark.parametrize("updates", [0, 1, 80])
def test_plot(tmp_path: Path, updates: int) -> None:
    write_metrics(tmp_path, updates)
    path = plot_curve(tmp_path)
    assert path == tmp_path / "curve.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve.png", "metrics.csv"]


def test_a_png_file_shows_what_savefig_shows(tmp_path: Path) -> None:
    """Drawn once, it is what matplotlib's way makes, which draws twice; the layout's last digits are not fixed."""
    write_metrics(tmp_path, 12)
    figure, file = curve_figure(tmp_path), io.BytesIO()
    before = figure.dpi
    curve_figure(tmp_path).savefig(file, dpi=150, format="png")
    found, expected = (numpy.asarray(Image.open(io.BytesIO(c)), float) for c in (png(figure, 150), file.getvalue()))
    assert found.shape == expected.shape
    assert numpy.abs(found - expected).max() <= 8
    assert expected.std() > 8
    assert figure.dpi == before != 150


def test_plot_shows_what_there_is(tmp_path: Path) -> None:
    """Panels of metrics that were not logged are left out: the picture is lower."""
    heights = {}
    for number, names in enumerate((("reward",), ("reward", "entropy"), ("reward", "entropy", "kl"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_metrics(folder, 3, names)
        heights[number] = int.from_bytes(plot_curve(folder).read_bytes()[20:24], "big")
    assert heights[0] < heights[1] < heights[2]


def test_plot_with_numbers_that_are_none(tmp_path: Path) -> None:
    logger = MetricsCSV()
    logger.open(tmp_path, 0)
    logger.log(0, {"entropy": float("nan"), "kl": float("inf"), "reward": 0.5})
    logger.close()
    assert plot_curve(tmp_path).is_file()


def test_plot_without_metrics(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"metrics\.csv"):
        plot_curve(tmp_path)


def test_running_mean() -> None:
    assert running_mean([0.0, 3.0, 6.0, 0.0], 1) == [1.5, 3.0, 3.0, 3.0]
    assert running_mean([], 2) == []
