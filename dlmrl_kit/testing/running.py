"""Runs a component on what it declares, and compares what it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import Key
from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.losses.base import Term
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.world import World

Outputs: TypeAlias = dict[Key, Tensor]
"""What a component wrote, or a term returned, by key."""


def flat(tensordict: TensorDictBase) -> Outputs:
    """Returns all tensors of a TensorDict by key, nested ones too."""
    return dict(tensordict.items(include_nested=True, leaves_only=True))


def demands(component: Component) -> list[tuple[Key, ...]]:
    """Returns the on-demand keys that the component is run with: none of them, and all if it has any."""
    optional = tuple(component.optional_keys)
    return [(), optional] if optional else [()]


def inputs(name: str, component: Component, w: World, keys: tuple[Key, ...] = ()) -> TensorDict:
    """Returns a TensorDict that holds what the component reads, when it is asked for ``keys``, and nothing else."""
    with attempt(name, "asked what it reads", "set in_keys and out_keys, in the class or in its constructor"):
        reads = component.reads(keys)
    known = flat(w.full)
    for key in reads:
        if key not in known:
            fix = "read keys of docs/trajectory.md, or declare a key of your own by dlmrl_kit.declare_key"
            fail(name, f"reads {key!r}, which is no key of the trajectory", fix)
    return w.full.select(*reads)


def run(name: str, component: Component, given: TensorDictBase, w: World, keys: tuple[Key, ...] = ()) -> Outputs:
    """Returns what the component writes, or a term returns, for a TensorDict, which it gets itself and not a copy.

    Args:
        name: of the component, for messages.
        component: to be run as an update runs it.
        given: what it reads.
        w: the services.
        keys: on-demand keys that it is asked for.
    """
    before = set(flat(given))
    fix = (
        f"read nothing but the in_keys {list(component.in_keys)} (or declare what it reads), take the services in "
        "requires, and keys if there are optional_keys, by name, and handle rows that ended early"
    )
    with attempt(name, "run on a trajectory that holds its in_keys only", fix):
        if isinstance(component, Likelihood):
            component.prepare(given, sampler=w.sampler, policy=w.policy, keys=keys)
        result: object = w.call(component, given, keys)
    if not isinstance(result, TensorDictBase):
        fail(name, f"returns {type(result).__name__}, not a TensorDict", "end forward with `return tensordict`")
    found = flat(result)
    if isinstance(component, Term):
        return found
    lost = [key for key in before if key not in found]
    if lost:
        fail(name, f"removes {lost[0]!r} from the trajectory", "add keys to the TensorDict that came in and return it")
    return {key: value for key, value in found.items() if key not in before}


def written(name: str, component: Component, w: World, keys: tuple[Key, ...] = ()) -> Outputs:
    """Returns what the component writes when given only what it reads; without gradients."""
    return detached(run(name, component, inputs(name, component, w, keys), w, keys))


def detached(found: Outputs) -> Outputs:
    """Returns the same values without gradients."""
    return {key: value.detach() for key, value in found.items()}


def equal(a: Tensor, b: Tensor, tolerance: float = 0.0) -> bool:
    """Tells whether two tensors have the same dtype, shape and entries (NaN equals NaN), up to a relative tolerance."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.dtype.is_floating_point:
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def different(a: Mapping[Key, Tensor], b: Mapping[Key, Tensor], tolerance: float = 0.0) -> Key | None:
    """Returns the first key that two outputs do not share with equal values, or None."""
    keys = [*a, *(key for key in b if key not in a)]
    return next((k for k in keys if k not in a or k not in b or not equal(a[k], b[k], tolerance)), None)
