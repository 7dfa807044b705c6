"""Checks of caches: their windows are a function of the state, and hold the positions that are being decoded."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import Tensor

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.window import Span, Window
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.world import world

PROMPT, LENGTH, BLOCK, TEXT = 2, 8, 3, 4
"""Prompt and completion positions, positions of a block, the first token that is text."""


def _states(mask_id: int) -> Tensor:
    """Completions in the middle of each of their blocks, behind a prompt: int64 [B, S]."""
    rows = []
    for begin in range(0, LENGTH, BLOCK):
        row = TEXT + torch.arange(LENGTH) % 5
        row[begin + 1 :] = mask_id
        rows += [row.clone(), row.masked_fill(torch.arange(LENGTH) == begin, mask_id)]
    completion = torch.stack(rows)
    return torch.cat([torch.full((len(rows), PROMPT), TEXT), completion], dim=1)


def _window(name: str, component: Cache, policy: Policy) -> Window:
    fix = "set to_end, or return a Window from window(policy, completion_length, block_length)"
    with attempt(name, "asked for its windows", fix):
        return component.window(policy, LENGTH, BLOCK)


def _span(name: str, component: Cache, policy: Policy, ids: Tensor) -> Span:
    window = _window(name, component, policy)
    with attempt(name, "asked for the windows of states", "handle states in any block, also a shorter last one"):
        return window.of(ids)


def check_windows(name: str, component: Cache) -> None:
    """The window of a state holds every masked position of the block that is being decoded."""
    policy = world().policy
    ids = _states(policy.mask_id)
    span = _span(name, component, policy, ids)
    masked = ids[:, PROMPT:] == policy.mask_id
    first = masked.long().argmax(-1, keepdim=True)
    block = torch.arange(LENGTH) // BLOCK == first // BLOCK
    row, column = (masked & block).nonzero(as_tuple=True)
    if not bool(span.inside(row, column + PROMPT).all()):
        fix = "let the window cover the block of the first masked position"
        fail(name, "leaves positions that are being decoded outside of the window", fix)
    if bool((span.start < 0).any() | (span.end > ids.shape[1]).any()):
        fail(name, "has windows that reach beyond the sequence", "keep 0 <= start and end <= S")


def check_anchors(name: str, component: Cache) -> None:
    """Outside of the window a state equals its anchor; the anchor of an anchor is itself, with the same window."""
    policy = world().policy
    ids = _states(policy.mask_id)
    span = _span(name, component, policy, ids)
    again = _span(name, component, policy, span.anchor)
    if not all(torch.equal(a, b) for a, b in zip(span, again, strict=True)):
        fix = "make anchor and window the same for all states of a block, so that one full forward serves them all"
        fail(name, "gives an anchor another anchor or window than its state", fix)
    column = torch.arange(ids.shape[1])
    inside = (column >= span.start[:, None]) & (column < span.end[:, None])
    if not torch.equal(ids.masked_fill(inside, 0), span.anchor.masked_fill(inside, 0)):
        fail(name, "has anchors that differ from the state outside of the window", "change what is computed again only")


def check_cache_copies(name: str, component: Cache) -> None:
    """Pickle and deepcopy give caches with the same windows."""
    policy = world().policy
    for how, twin in (("deepcopy", copy.deepcopy(component)), ("pickle", pickle.loads(pickle.dumps(component)))):
        if _window(name, twin, policy) != _window(name, component, policy):
            fail(name, f"has other windows after {how}", "keep all settings in attributes that pickle can write")


CHECKS = (check_windows, check_anchors, check_cache_copies)
