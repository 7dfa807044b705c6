"""Checks of caches: their windows are a function of the state, and hold the positions that are being decoded."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor

from dlmrl_kit.caches.base import Span, Window
from dlmrl_kit.testing.core import attempt, fail

MASK, PROMPT, LENGTH, BLOCK = 9, 2, 8, 3


def _states() -> Tensor:
    """Completions in the middle of each of their blocks, behind a prompt: int64 [B, S]."""
    rows = []
    for begin in range(0, LENGTH, BLOCK):
        row = torch.arange(LENGTH) % 5
        row[begin + 1 :] = MASK
        rows += [row.clone(), row.masked_fill(torch.arange(LENGTH) == begin, MASK)]
    completion = torch.stack(rows)
    return torch.cat([torch.ones(len(rows), PROMPT, dtype=torch.int64), completion], dim=1)


def _window(name: str, component: Any) -> Window:
    fix = "set to_end, or return a Window from window(mask_id, completion_length, block_length, shift)"
    with attempt(name, "asked for its windows", fix):
        return component.window(MASK, LENGTH, BLOCK, False)  # type: ignore[no-any-return]


def _span(name: str, component: Any, ids: Tensor) -> Span:
    with attempt(name, "asked for the windows of states", "handle states in any block, also a shorter last one"):
        return _window(name, component).of(ids)


def check_windows(name: str, component: Any) -> None:
    """The window of a state holds every masked position of the block that is being decoded."""
    ids = _states()
    span = _span(name, component, ids)
    masked = ids[:, PROMPT:] == MASK
    first = masked.long().argmax(-1, keepdim=True)
    block = torch.arange(LENGTH) // BLOCK == first // BLOCK
    row, column = (masked & block).nonzero(as_tuple=True)
    if not bool(span.inside(row, column + PROMPT).all()):
        fix = "let the window cover the block of the first masked position"
        fail(name, "leaves positions that are being decoded outside of the window", fix)
    if bool((span.start < 0).any() | (span.end > ids.shape[1]).any()):
        fail(name, "has windows that reach beyond the sequence", "keep 0 <= start and end <= S")


def check_anchors(name: str, component: Any) -> None:
    """A state and its anchor agree outside of the window and have one anchor and one window."""
    ids = _states()
    span = _span(name, component, ids)
    again = _span(name, component, span.anchor)
    if not all(torch.equal(a, b) for a, b in zip(span, again, strict=True)):
        fix = "make anchor and window the same for all states of a block, so that one full forward serves them all"
        fail(name, "gives an anchor another anchor or window than its state", fix)
    column = torch.arange(ids.shape[1])
    inside = (column >= span.start[:, None]) & (column < span.end[:, None])
    if not torch.equal(ids.masked_fill(inside, 0), span.anchor.masked_fill(inside, 0)):
        fail(name, "has anchors that differ from the state outside of the window", "change what is computed again only")


def check_cache_copies(name: str, component: Any) -> None:
    """Pickle and deepcopy give caches with the same windows."""
    for how, twin in (("deepcopy", copy.deepcopy(component)), ("pickle", pickle.loads(pickle.dumps(component)))):
        if _window(name, twin) != _window(name, component):
            fail(name, f"has other windows after {how}", "keep all settings in attributes that pickle can write")


CHECKS = (check_windows, check_anchors, check_cache_copies)
