"""A rollout's speed and memory: the adapter merged, and a step's batch cut to a limit on the logits held at once."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LOGITS_BYTES = {True: 32 * 2**20, False: 1024 * 2**20}
"""Largest block of float32 logits of a step, on a CPU (True) and elsewhere."""


def merged(policy: Any) -> contextlib.AbstractContextManager[None]:
    """``Policy.merged``, of a policy that has it."""
    found = getattr(policy, "merged", None)
    return contextlib.nullcontext() if found is None else found()


def most_predictions(vocab: int, device: torch.device) -> int:
    """Predictions whose logits stay below ``LOGITS_BYTES``; at least 1."""
    return max(1, LOGITS_BYTES[device.type == "cpu"] // (4 * vocab))


def parts(count: Tensor, vocab: int, held: Tensor | None = None) -> Iterator[tuple[slice, slice]]:
    """Cuts a batch into rows whose logits stay below ``LOGITS_BYTES``, at least one row at a time.

    Args:
        count: int64 [B], predictions of each row.
        vocab: V.
        held: int64 [B], predictions of each row that are in memory at once, copies included; None: ``count``.

    Yields:
        The rows, and the places of their predictions among all predictions.
    """
    most = most_predictions(vocab, count.device)
    ends = [0, *count.cumsum(0).tolist()]
    held_ends = ends if held is None else [0, *held.cumsum(0).tolist()]
    row = 0
    while row < len(count):
        stop = max(bisect.bisect_right(held_ends, held_ends[row] + most) - 1, row + 1)
        yield slice(row, stop), slice(ends[row], ends[stop])
        row = stop
