"""Forwards of a recipe are counted."""

from __future__ import annotations

import pytest

from dlmrl_kit.experiments.forwards import ForwardsPerSample, count_forwards


@pytest.mark.thorough
def test_forwards_are_counted() -> None:
    assert count_forwards("d1") == ForwardsPerSample(
        rollout=8, update=6
    )  # old and reference once, for each of two passes
