"""Runs of tests cost less than those of users: curves are drawn coarsely, and nothing is flushed to the disk.

Drawing is more than half of the time of a tiny run, most of it for the layout and the numbers at the axes. It flushes
two dozen files, for 5 ms each on the disk of a virtual machine; no test makes that machine fail.
"""

from __future__ import annotations

import os
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


def unflushed(descriptor: int) -> None:
    """Refuses what is no open file, as ``os.fsync`` does."""
    os.fstat(descriptor)


def cheaply(patched: pytest.MonkeyPatch) -> None:
    """Makes the runs of this process cheap."""
    patched.setattr(figure_style, "png", coarse)
    patched.setattr(os, "fsync", unflushed)


@pytest.fixture(scope="session", autouse=True)
def _cheaply() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        cheaply(patched)
        yield


@pytest.fixture
def fine_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the pictures themselves."""
    monkeypatch.setattr(figure_style, "png", FINE)
