"""The check that padding is ignored: steps past the end of a row, slots of weight 0, left-padding of prompts."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import COMMIT_STEP, PROMPT_IDS, PROMPT_MASK, SELECTED_TOKEN_MASK, SELECTED_WEIGHT, STEP_VALID
from dlmrl_kit.testing.core import fail
from dlmrl_kit.testing.running import Outputs, different, inputs, is_term, leaves, run, variants
from dlmrl_kit.testing.terms import gradients
from dlmrl_kit.testing.world import World, world

PER_TOKEN = ("token_log_prob", "old_token_log_prob", "ref_token_log_prob", "distribution", "ref_distribution")
"""Selected keys that are padded token by token too, where ``token_mask`` is False."""


def check_padding(name: str, component: Any) -> None:
    """Garbage (NaN) in steps past the end, slots of weight 0 and padded prompts changes nothing that counts."""
    fix = (
        'look at nothing past ("step", "valid"), at slots of weight 0 or at tokens outside the masks: '
        "replace them first (torch.where(mask, x, 0)), multiplying NaN by 0 is not enough"
    )
    for variant in variants(component):
        clean, dirty = world(), world()
        given, spoilt = inputs(name, variant, clean), inputs(name, variant, dirty)
        for key, value in leaves(spoilt).items():
            spoilt.set(key, spoil(key, value, dirty.full))
        found, after = (
            _counting(run(name, variant, td.clone(), w), td, w, is_term(variant))
            for td, w in ((given, clean), (spoilt, dirty))
        )
        if (key := different(found, after, 1e-4)) is not None:
            fail(name, f"writes other values of {key!r} when padding holds garbage", fix)
        if is_term(variant):
            _check_gradients(name, variant, given, spoilt, fix)


def _check_gradients(name: str, component: Any, given: TensorDict, spoilt: TensorDict, fix: str) -> None:
    clean, after = gradients(component, given), gradients(component, spoilt)
    if (key := different(clean, after, 1e-4)) is not None:
        fail(name, f"has another gradient in {key!r} when padding holds garbage", fix)


def spoil(key: Any, value: Tensor, full: TensorDictBase) -> Tensor:
    """The value with garbage wherever it is padding."""
    part, leaf = key if isinstance(key, tuple) and len(key) == 2 else (key, "")
    if part == PROMPT_IDS:
        return torch.where(full[PROMPT_MASK], value, 5)
    if part == "step" and leaf != "valid":
        return _garbage(value, ~full[STEP_VALID])
    if part == "token":
        return _garbage(value, full[COMMIT_STEP] >= full[STEP_VALID].shape[1])
    if part == "selected" and leaf == "step":
        return torch.where(full[SELECTED_WEIGHT] > 0, value, full[STEP_VALID].shape[1] - 1)
    if part == "selected" and leaf != "weight":
        value = _garbage(value, full[SELECTED_WEIGHT] == 0)
        return _garbage(value, ~full[SELECTED_TOKEN_MASK]) if leaf in PER_TOKEN else value
    return value


def _garbage(value: Tensor, where: Tensor) -> Tensor:
    where = where.reshape(*where.shape, *([1] * (value.dim() - where.dim())))
    if value.dtype == torch.bool:
        return value | where
    return value.masked_fill(where, torch.nan if value.dtype.is_floating_point else 99)


def _counting(found: Outputs, given: TensorDictBase, w: World, term: bool) -> Outputs:
    """The outputs with 0 wherever they are padding themselves."""
    found = {key: value.detach() for key, value in found.items()}
    if term:
        return found
    weight = found.get(SELECTED_WEIGHT, given.get(SELECTED_WEIGHT, w.full[SELECTED_WEIGHT]))
    used = {"selected": weight > 0, "step": found.get(STEP_VALID, w.full[STEP_VALID])}
    return {key: _kept(value, used.get(key[0])) if isinstance(key, tuple) else value for key, value in found.items()}


def _kept(value: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return value
    mask = mask.reshape(*mask.shape, *([1] * (value.dim() - mask.dim())))
    return torch.where(mask, value, torch.zeros_like(value))


CHECKS = (check_padding,)
