"""Runs of tests draw their curves coarsely; with ``fine_pictures`` they are those that users get.

Drawing is more than half of the time of a tiny run, most of it for the layout and the numbers at the axes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from matplotlib.figure import Figure

from dlmrl_kit.training import figure_style

FINE = figure_style.png


def coarse(figure: Figure, dpi: float) -> bytes:
    """A PNG file with every panel and line, but no axes, in a tenth of the ``dpi`` each way."""
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_axis_off()
    return FINE(figure, dpi / 10)


@pytest.fixture(scope="session", autouse=True)
def _coarse_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(figure_style, "png", coarse)
        yield


@pytest.fixture
def fine_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the pictures themselves."""
    monkeypatch.setattr(figure_style, "png", FINE)
