"""Runs a component on what it declares, and compares what it wrote."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.core.contract import TERMS
from dlmrl_kit.core.keys import Key
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.subject import kind_of
from dlmrl_kit.testing.world import World

Outputs = dict[Any, Tensor]


def is_term(component: Any) -> bool:
    """Whether the component returns a TensorDict of its own: losses and regularisers."""
    return kind_of(type(component)) in TERMS


def leaves(tensordict: TensorDictBase) -> Outputs:
    """All tensors of a TensorDict by key."""
    return dict(tensordict.items(include_nested=True, leaves_only=True))


def written(component: Any) -> tuple[Key, ...]:
    """What the component writes now."""
    return tuple(component.written_keys()) if hasattr(component, "written_keys") else tuple(component.out_keys)


def asked(component: Any, keys: tuple[Key, ...]) -> Any:
    """A copy of the component that was asked for these optional keys."""
    twin = copy.copy(component)
    if hasattr(twin, "ask_for"):
        twin.ask_for(keys)
    return twin


def variants(component: Any) -> list[Any]:
    """The component as it is when asked for nothing, and for everything."""
    optional = tuple(getattr(component, "optional_keys", ()))
    return [asked(component, ()), *([asked(component, optional)] if optional else [])]


def inputs(name: str, component: Any, world: World) -> TensorDict:
    """A TensorDict that holds the in_keys of a component and nothing else."""
    known = leaves(world.full)
    for key in component.in_keys:
        if key not in known:
            fix = "read keys of docs/trajectory.md; a key of another kind cannot be made up here, test it in a recipe"
            fail(name, f"reads {key!r}, which is no key of the trajectory", fix)
    return world.full.select(*component.in_keys)


def run(name: str, component: Any, given: TensorDictBase, world: World, seed: int = 0) -> Outputs:
    """What the component writes (terms: returns) when given a TensorDict, which it gets itself, not a copy."""
    before = set(leaves(given))
    keys = list(component.in_keys)
    fix = f"read nothing but the in_keys {keys} (or declare what it reads), and handle rows that ended early"
    with attempt(name, "run on a trajectory that holds its in_keys only", fix):
        if hasattr(component, "prepare"):
            component.prepare(given, sampler=world.sampler, policy=world.policy)
        result = component(given, **world.services(component, seed))
    if not isinstance(result, TensorDictBase):
        fail(name, f"returns {type(result).__name__}, not a TensorDict", "end forward with `return tensordict`")
    if is_term(component):
        return leaves(result)
    found = leaves(result)
    lost = [key for key in before if key not in found]
    if lost:
        fail(name, f"removes {lost[0]!r} from the trajectory", "add keys to the TensorDict that came in and return it")
    return {key: value for key, value in found.items() if key not in before}


def outputs(name: str, component: Any, world: World, seed: int = 0) -> Outputs:
    """What the component writes when given its in_keys only; without gradients."""
    found = run(name, component, inputs(name, component, world), world, seed)
    return {key: value.detach() for key, value in found.items()}


def equal(a: Tensor, b: Tensor, tolerance: float = 0.0) -> bool:
    """Whether two tensors have the same dtype, shape and entries (NaN equals NaN), up to a relative tolerance."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.dtype.is_floating_point:
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def different(a: Mapping[Any, Tensor], b: Mapping[Any, Tensor], tolerance: float = 0.0) -> Any:
    """The first key that two outputs do not share with equal values, or None."""
    keys = [*a, *(key for key in b if key not in a)]
    return next((k for k in keys if k not in a or k not in b or not equal(a[k], b[k], tolerance)), None)
