"""Figures that a notebook shows without pyplot, whose global state they do not need."""

from __future__ import annotations

from matplotlib.figure import Figure

from dlmrl_kit.training.figure_style import image


class ShownFigure(Figure):
    """A figure of matplotlib that is an image where it is the value of a notebook's cell."""

    def _repr_png_(self) -> bytes:
        return image(self)
