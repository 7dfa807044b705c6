"""``coarse_pictures``, for tests of many runs: matplotlib draws each, but coarsely, which takes half the time."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from dlmrl_kit.training import figure_style

FINE = figure_style.png


def coarse(figure: Figure, dpi: float) -> bytes:
    """A PNG file with every panel, line and letter, in a tenth of the ``dpi`` each way."""
    figure.set_layout_engine("none")
    return FINE(figure, dpi / 10)


@pytest.fixture
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_style, "png", coarse)
