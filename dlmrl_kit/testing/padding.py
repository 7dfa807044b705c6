"""The check that padding is ignored: steps past the end of a row, entries of weight 0, left-padding of prompts."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    PROMPT_IDS,
    PROMPT_MASK,
    SELECTED_DISTRIBUTION,
    SELECTED_OLD_TOKEN_LOG_PROB,
    SELECTED_REF_DISTRIBUTION,
    SELECTED_REF_TOKEN_LOG_PROB,
    SELECTED_STEP,
    SELECTED_TOKEN_LOG_PROB,
    SELECTED_TOKEN_MASK,
    SELECTED_WEIGHT,
    STEP_VALID,
    Key,
)
from dlmrl_kit.losses.base import Term
from dlmrl_kit.testing.core import fail
from dlmrl_kit.testing.running import Outputs, demands, detached, different, flat, inputs, run
from dlmrl_kit.testing.terms import gradients
from dlmrl_kit.testing.world import World, world

PER_TOKEN: frozenset[Key] = frozenset(
    {
        SELECTED_TOKEN_LOG_PROB,
        SELECTED_OLD_TOKEN_LOG_PROB,
        SELECTED_REF_TOKEN_LOG_PROB,
        SELECTED_DISTRIBUTION,
        SELECTED_REF_DISTRIBUTION,
    }
)
"""Keys of the selection that are padded token by token too, where its token mask is False."""


def check_padding(name: str, component: Component) -> None:
    """Garbage (NaN) in steps past the end, entries of weight 0 and padded prompts changes nothing that counts."""
    fix = (
        'look at nothing past ("step", "valid"), at entries of weight 0 or at tokens outside the masks: '
        "replace them first (torch.where(mask, x, 0)), multiplying NaN by 0 is not enough"
    )
    for keys in demands(component):
        clean, dirty = world(), world()
        given, spoilt = inputs(name, component, clean, keys), inputs(name, component, dirty, keys)
        for key, value in flat(spoilt).items():
            spoilt.set(key, spoil(key, value, dirty.full))
        found = detached(run(name, component, given.clone(), clean, keys))
        after = detached(run(name, component, spoilt.clone(), dirty, keys))
        if not isinstance(component, Term):
            found, after = _counting(found, given, clean), _counting(after, spoilt, dirty)
        if (different_key := different(found, after, 1e-4)) is not None:
            fail(name, f"writes other values of {different_key!r} when padding holds garbage", fix)
        if isinstance(component, Term):
            _check_gradients(name, component, given, spoilt, fix)


def _check_gradients(name: str, component: Term, given: TensorDict, spoilt: TensorDict, fix: str) -> None:
    clean, after = gradients(component, given), gradients(component, spoilt)
    if (key := different(clean, after, 1e-4)) is not None:
        fail(name, f"has another gradient in {key!r} when padding holds garbage", fix)


def spoil(key: Key, value: Tensor, full: TensorDictBase) -> Tensor:
    """Returns the value with garbage wherever it is padding."""
    part = key[0] if isinstance(key, tuple) else key
    if part == PROMPT_IDS:
        return torch.where(full[PROMPT_MASK], value, 5)
    if part == "step" and key != STEP_VALID:
        return _garbage(value, ~full[STEP_VALID])
    if part == "token":
        return _garbage(value, full[COMMIT_STEP] >= full[STEP_VALID].shape[1])
    if key == SELECTED_STEP:
        return torch.where(full[SELECTED_WEIGHT] > 0, value, full[STEP_VALID].shape[1] - 1)
    if part == "selected" and key != SELECTED_WEIGHT:
        value = _garbage(value, full[SELECTED_WEIGHT] == 0)
        return _garbage(value, ~full[SELECTED_TOKEN_MASK]) if key in PER_TOKEN else value
    return value


def _garbage(value: Tensor, where: Tensor) -> Tensor:
    where = where.reshape(*where.shape, *([1] * (value.dim() - where.dim())))
    if value.dtype == torch.bool:
        return value | where
    return value.masked_fill(where, torch.nan if value.dtype.is_floating_point else 99)


def _counting(found: Outputs, given: TensorDictBase, w: World) -> Outputs:
    """Returns the outputs with 0 wherever they are padding themselves."""
    weight = found.get(SELECTED_WEIGHT, given.get(SELECTED_WEIGHT, w.full[SELECTED_WEIGHT]))
    used = {"selected": weight > 0, "step": found.get(STEP_VALID, w.full[STEP_VALID])}
    return {key: _kept(value, used.get(key[0])) if isinstance(key, tuple) else value for key, value in found.items()}


def _kept(value: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return value
    mask = mask.reshape(*mask.shape, *([1] * (value.dim() - mask.dim())))
    return torch.where(mask, value, torch.zeros_like(value))


CHECKS = (check_padding,)
