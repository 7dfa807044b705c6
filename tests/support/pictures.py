"""Pictures of runs: matplotlib draws all of them, but coarsely and without a layout, which takes less than half.

The fixture ``fine_pictures`` is for tests of what is to be seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from matplotlib.figure import Figure

from dlmrl_kit.training import figure_style

FINE = figure_style.png


def coarse(figure: Figure, dpi: float) -> bytes:
    """A PNG file with every panel, line and letter, in a tenth of the ``dpi`` each way."""
    figure.set_layout_engine("none")
    return FINE(figure, dpi / 10)


@pytest.fixture(scope="session", autouse=True)
def _coarse_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(figure_style, "png", coarse)
        yield


@pytest.fixture
def fine_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_style, "png", FINE)
