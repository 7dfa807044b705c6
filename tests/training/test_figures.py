"""The figures of a run: what they show, that no text covers another one, and the files that they end up in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from support.trackers import evaluation

from dlmrl_kit.core.errors import CheckpointError
from dlmrl_kit.loggers.metrics_csv import MetricsCSV
from dlmrl_kit.training.curve import curve_figure
from dlmrl_kit.training.evaluation_files import EVALUATIONS, write_evaluations
from dlmrl_kit.training.figure_style import WIDTH
from dlmrl_kit.training.figures import LEAST, ROLLOUT_MAPS, UPDATE_MAPS, UPDATES, plot_run, run_figures
from dlmrl_kit.training.update_lines import STEPS

pytestmark = pytest.mark.usefixtures("fine_pictures")

NAMES = ["reward", "accuracy", "reward/cells", "reward/format", "entropy", "kl", "ratio", "ratio_max", "clip_fraction"]
NAMES += ["approx_kl", "grad_norm", "learning_rate"]


def write_run(folder: Path, updates: int = 40, falls: bool = False, parts: tuple[str, ...] = ()) -> Path:
    """Writes what a run leaves of its numbers: metrics, evaluations, and means of seven steps with gaps."""
    folder.mkdir(exist_ok=True)
    logger = MetricsCSV()
    logger.open(folder, 0)
    evaluations = {}
    for update in range(updates + 1):
        if update % 10 == 0:
            part = 0.25 + 0.5 * update / max(updates, 1)
            evaluations[update] = evaluation(1 - part if falls else part, size=40)
            logger.log(update, {"eval/accuracy": evaluations[update].accuracy})
        if update < updates:
            values = {name: 0.5 + 0.3 * np.sin(update + index) for index, name in enumerate([*NAMES, *parts])}
            logger.log(update, {name: float(value) for name, value in values.items()})
    logger.close()
    write_evaluations(folder / EVALUATIONS, evaluations)
    maps = (*ROLLOUT_MAPS, *UPDATE_MAPS)
    lines = [
        {"update": update, **{name: [None, *(0.1 * step + 0.01 * update for step in range(6))] for name in maps}}
        for update in range(updates)
    ]
    (folder / STEPS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def texts(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    """All texts that are seen, and where; of the ticks those within what the axes show."""
    hidden = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        hidden |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    for text in figure.findobj(Text):
        box = text.get_window_extent()
        if text.get_visible() and text.get_text().strip() and text not in hidden and box.width:
            yield text.get_text(), box


@pytest.mark.thorough
@pytest.mark.parametrize(("updates", "falls"), [(40, False), (40, True), (1, False), (400, True)])
def test_no_text_covers_another(tmp_path: Path, updates: int, falls: bool) -> None:
    folder = write_run(tmp_path / "a-rather-long-name-20261128-225100", updates, falls)
    for name, figure in run_figures(folder).items():
        figure.canvas.draw()
        page, seen = figure.bbox, list(texts(figure))
        assert len(seen) > 10
        for (one, first), (other, second) in itertools.combinations(seen, 2):
            common = Bbox.intersection(first, second)
            assert common is None or min(common.width, common.height) < 1, (name, one, other)
        for text, box in seen:
            assert page.x0 - 1 <= box.x0 < box.x1 <= page.x1 + 1, (name, text)
        assert figure.get_size_inches()[0] == WIDTH


def test_the_interval_is_that_of_the_evaluations(tmp_path: Path) -> None:
    held, training, *_ = curve_figure(write_run(tmp_path)).axes
    assert held.get_title("left") == "Accuracy on held-out examples, 95% interval"
    assert training.get_title("left") == "Training rollouts"
    (bars,) = [found for found in held.collections if len(found.get_paths()) > 1]
    drawn = [(path.vertices[0][1], path.vertices[1][1]) for path in bars.get_paths()]
    assert drawn == [evaluation(a, 40).interval() for a in (0.25, 0.375, 0.5, 0.625, 0.75)]
    assert [text.get_text() for text in held.texts] == ["25.0%", "75.0%"]
    assert not held.lines[0].get_label().startswith("training")


@pytest.mark.parametrize(("name", "panels"), [("steps", ROLLOUT_MAPS), ("updates-by-step", UPDATE_MAPS)])
def test_heat_maps_are_the_means_by_step(tmp_path: Path, name: str, panels: dict[str, tuple[str, str, str]]) -> None:
    figure = run_figures(write_run(tmp_path, 3))[name]
    maps = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title("left") for axis in maps] == [title for title, *_ in panels.values()]
    shown = maps[0].images[0].get_array()
    assert shown.shape == (7, 3)
    assert shown.mask[0].all()
    assert shown[6].tolist() == pytest.approx([0.5, 0.51, 0.52])
    left, right, bottom, top = maps[0].images[0].get_extent()
    assert (left, right, bottom, top) == (-0.5, 2.5, 7.5, 0.5)  # updates 0 to 2, steps 1 to 7 downwards


def rewritten(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """Changes the lines of ``steps.jsonl``; those that become None are dropped."""
    lines = [change(json.loads(line)) for line in (folder / STEPS).read_text().splitlines()]
    (folder / STEPS).write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))
    return folder


def maps_of(folder: Path, name: str) -> dict[str, AxesImage]:
    return {axis.get_title("left"): axis.images[0] for axis in run_figures(folder)[name].axes if axis.images}


@pytest.mark.parametrize(("name", "panels"), [("steps", ROLLOUT_MAPS), ("updates-by-step", UPDATE_MAPS)])
def test_updates_without_numbers_stay_empty(tmp_path: Path, name: str, panels: dict[str, tuple[str, str, str]]) -> None:
    missing = (2, 3, 5)  # filters kept nothing, say
    folder = rewritten(write_run(tmp_path, 8), lambda line: None if line["update"] in missing else line)
    for title, _, _ in panels.values():
        image = maps_of(folder, name)[title]
        assert image.get_extent()[:2] == [-0.5, 7.5]
        shown = image.get_array()
        assert shown.shape == (7, 8)
        assert [bool(shown.mask[1:, update].all()) for update in range(8)] == [update in missing for update in range(8)]
        assert shown[6, 7] == pytest.approx(0.57)


@pytest.mark.parametrize("size", [0.0, 1e-14, 1e-3])
def test_colours_tell_nothing_from_rounding(tmp_path: Path, size: float) -> None:
    def small(line: dict[str, Any]) -> dict[str, Any]:
        own = {name: [size * step for step in range(1, 4)] for name in UPDATE_MAPS}
        return {"update": line["update"], **own, "ratio": [1 + value for value in own["ratio"]]}

    found = maps_of(rewritten(write_run(tmp_path, 3), small), "updates-by-step")
    for name, (title, _, _) in UPDATE_MAPS.items():
        low, high = found[title].get_clim()
        values = found[title].get_array()
        assert low <= values.min() <= values.max() <= high
        middle = (low + high) / 2 if name == "ratio" else low
        assert middle == (1 if name == "ratio" else 0)
        farthest = float(abs(values - middle).max())
        assert (farthest < 0.02 * (high - middle)) == (farthest < LEAST[name]) or farthest >= LEAST[name] / 10


@pytest.mark.parametrize("value", [0.0, 1.0, 1 + 1e-7, -2.0, 1e-15, 1e6])
def test_lines_that_hardly_change_are_inside_of_their_panels(tmp_path: Path, value: float) -> None:
    folder = write_run(tmp_path, 3)
    logger = MetricsCSV()
    logger.open(folder, 0)
    for update in range(3):
        logger.log(update, {name: value * (1 + 1e-7 * update) for name in NAMES})
    logger.close()
    rewritten(folder, lambda line: {**line, "entropy": [abs(value)] * 3})
    figures = run_figures(folder)
    for axis in [*figures["updates"].axes, *figures["steps"].axes[:1]]:
        low, high = axis.get_ylim()
        drawn = [float(y) for found in axis.lines for y in found.get_ydata()]
        assert low <= 0 < high or value < 0
        assert max(drawn) <= high - 0.05 * (high - low), axis.get_title("left")
        assert min(drawn) >= low


def test_parts_that_never_change_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    logger = MetricsCSV()
    logger.open(folder, 100)  # goes on with the file
    for update in range(40):
        logger.log(update, {"reward/failed": 0.0, "reward/format": 1.0, "reward/cells": 0.25})
    logger.log(40, {"reward/cells": 0.5, "reward/once": 3.0})
    logger.close()
    axes = run_figures(folder)["rewards"].axes
    assert [axis.get_title("left") for axis in axes] == ["Reward", "Part: cells", "Part: once"]
    assert axes[-1].get_xlabel() == "update\nthe same throughout: failed 0, format 1"


def test_each_number_has_its_panel(tmp_path: Path) -> None:
    figures = run_figures(write_run(tmp_path))
    titles = {name: [axis.get_title("left") for axis in figure.axes] for name, figure in figures.items()}
    assert titles["rewards"] == ["Reward", "Part: cells", "Part: format"]
    assert titles["updates"] == [title for title, *_ in UPDATES.values()]
    assert all(axis.get_ylabel() for axis in figures["steps"].axes)
    for axis in (axis for name in ("curve", "rewards", "updates") for axis in figures[name].axes):
        assert axis.get_ylabel()
        low, high = axis.get_ylim()
        assert all(low <= min(drawn.get_ydata()) <= max(drawn.get_ydata()) <= high for drawn in axis.lines)
    heldout = figures["rewards"].axes[0].lines[-1]
    assert heldout.get_ydata().tolist() == [0.25] * 5


@pytest.mark.thorough
def test_a_run_shows_what_it_has(tmp_path: Path) -> None:
    logger = MetricsCSV()
    logger.open(tmp_path, 0)
    logger.log(0, {"loss": 1.0, "reward/$\\frac": float("nan"), "kl": float("inf")})
    logger.close()
    (tmp_path / STEPS).write_text(
        '{"update": 0, "entropy": [null, NaN]}\n{"update": 1, "reward": 3, "selected": ["x"]}\n'
    )
    paths = plot_run(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        f"figures/{name}.{format}" for name in ("curve", "rewards") for format in ("png", "pdf", "svg")
    ]
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
    assert all(path.read_bytes().startswith(starts[path.suffix]) for path in paths)


def test_numbers_of_whole_completions_are_no_figure_of_steps(tmp_path: Path) -> None:
    """They all stand at the first step; those of completions of a single step do, too, but are that step's."""
    whole = write_run(tmp_path, 3)
    for last, drawn in (([None, None], False), ([], True)):
        lines = [{"update": update, **{name: [0.5, *last] for name in UPDATE_MAPS}} for update in range(3)]
        (whole / STEPS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert ("updates-by-step" in run_figures(whole)) == drawn


def test_the_middle_of_the_colours_of_ratios_is_one(tmp_path: Path) -> None:
    (image,) = run_figures(write_run(tmp_path, 3))["updates-by-step"].axes[0].images
    assert image.norm(1.0) == pytest.approx(0.5)
    assert min(image.norm(image.get_array().compressed())) == pytest.approx(0.0)


def test_without_metrics(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"metrics\.csv"):
        plot_run(tmp_path)
