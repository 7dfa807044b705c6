"""Rollouts in pieces are rollouts."""

from __future__ import annotations

from pathlib import Path

import torch
from support.runs import new_run


def test_rollouts_in_pieces_are_rollouts(tmp_path: Path) -> None:
    whole = new_run(tmp_path).update.roll_out(0).kept
    pieces = new_run(tmp_path, sets=["Trainer.rollout_batch_size = 4"]).update.roll_out(0).kept
    keys = set(whole.keys(include_nested=True, leaves_only=True))
    assert set(pieces.keys(include_nested=True, leaves_only=True)) == keys
    for key in keys:
        assert (pieces[key].shape, pieces[key].dtype) == (whole[key].shape, whole[key].dtype), key
    for key in ("prompt_ids", "prompt_mask", "group", "example"):
        assert torch.equal(pieces[key], whole[key])

    assert len({tuple(row) for row in pieces["completion_ids"].tolist()}) > 1
