"""Rollouts of an update do not depend on how they are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.shipped_runs import tiny_run

PIECES = {
    "low confidence": ["selector=RandomSteps"],
    "plackett-luce": ["sampler=PlackettLuceOrder", "selector=EntropyImportance"],
    "random order": ["sampler=RandomOrder"],
    "restarts": ["advantage=MonteCarlo"],
}


@pytest.mark.thorough
@pytest.mark.parametrize("uses", PIECES.values(), ids=PIECES)
def test_the_size_of_the_pieces_changes_no_draw(uses: list[str], tmp_path: Path) -> None:
    found = []
    for size in (None, 3):
        run = tiny_run(tmp_path / str(size), uses=uses, sets=[f"Trainer.rollout_batch_size = {size}"])
        found.append(run.update.roll_out(1).everything)
    for key in ("completion_ids", "commit_step", ("selected", "step"), "seed"):
        assert torch.equal(found[0][key], found[1][key]), key
