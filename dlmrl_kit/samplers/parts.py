"""A rollout's speed and memory: the adapter merged, and a step's batch cut to a limit on the logits held at once."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

LOGITS_BYTES = {True: 64 * 2**20, False: 1024 * 2**20}
"""Largest block of float32 logits of a step, on a CPU (True) and elsewhere."""


def merged(policy: Any) -> contextlib.AbstractContextManager[None]:
    """``Policy.merged``, of a policy that has it."""
    found = getattr(policy, "merged", None)
    return contextlib.nullcontext() if found is None else found()


def parts(count: Tensor, vocab: int) -> Iterator[tuple[slice, slice]]:
    """Cuts a batch into rows whose logits stay below ``LOGITS_BYTES``, at least one row at a time.

    Args:
        count: int64 [B], predictions of each row.
        vocab: V.

    Yields:
        The rows, and the places of their predictions among all predictions.
    """
    most = max(1, LOGITS_BYTES[count.device.type == "cpu"] // (4 * vocab))
    ends = count.cumsum(0).tolist()
    row, place = 0, 0
    while row < len(ends):
        stop = max(bisect.bisect_right(ends, place + most), row + 1)
        yield slice(row, stop), slice(place, ends[stop - 1])
        row, place = stop, ends[stop - 1]
