"""The curves of an ablation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_runs import design, fake

from dlmrl_kit.experiments import ablate

pytestmark = pytest.mark.usefixtures("fine_pictures")


@fake
def test_more_variants_than_colours_are_drawn(tmp_path: Path) -> None:
    from dlmrl_kit.experiments.learning_curves import COLOURS, look, plot_curves

    looks = [look(number) for number in range(1 + 3 * len(COLOURS))]
    assert len(set(looks)) == len(looks)
    summary = ablate(design(seeds=1), tmp_path)
    failed = [replace(job, status="failed") for job in summary.jobs]
    assert plot_curves(replace(summary, jobs=failed), tmp_path).is_file()  # nothing to draw, and no error
