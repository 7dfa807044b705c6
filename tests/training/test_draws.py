"""A draw at a time gives the same update as all draws at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.runs import collect, new_run, prepared, sgd, weights
from torch import Tensor


@pytest.mark.parametrize(
    "uses",
    [
        ["loss=SequencePPO", "regulariser=SequenceKLK2"],
        ["loss=LengthWeightedReinforce", "regulariser=SequenceKLK1"],
        ["loss=DPO", "regulariser=none"],
    ],
    ids=["two passes", "segment by segment", "whole groups in two passes"],
)
def test_a_draw_at_a_time_gives_the_same_update(uses: list[str], tmp_path: Path) -> None:
    """The smallest token budget, one state per pass, changes neither the weights nor the metrics of an update."""
    sets = ["Trainer.minibatches = 1", "Trainer.max_grad_norm = 1e9", "WholeSequence.draws = 3"]
    sets += ["MeanField.prompt_mask_share = 0.5"]
    uses = ["selector=WholeSequence", "likelihood=MeanField", "advantage=GroupMean", *uses]

    def updated(budget: int | None) -> tuple[Tensor, Tensor, dict[str, float]]:
        run = new_run(tmp_path, "egspo", uses=uses, sets=[*sets, f"Trainer.micro_batch_tokens = {budget}"])
        start, update = weights(run.policy), sgd(run, 0.1)
        metrics = update.learn(prepared(update, collect(run).kept), 0)
        return start, weights(run.policy), metrics

    start, expected, metrics = updated(None)
    _, found, same = updated(1)
    assert (expected - start).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert same == pytest.approx(metrics, rel=1e-4, abs=1e-6)
