"""Checks of components that read and write a trajectory: keys, types, purity, order of the batch."""

from __future__ import annotations

import random
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.core.component import SERVICES
from dlmrl_kit.core.contract import malformed
from dlmrl_kit.core.keys import KEYS, SELECTED_WEIGHT
from dlmrl_kit.likelihoods.segments import SegmentLikelihood
from dlmrl_kit.testing.core import fail
from dlmrl_kit.testing.running import (
    asked,
    different,
    equal,
    inputs,
    is_term,
    leaves,
    outputs,
    run,
    variants,
    written,
)
from dlmrl_kit.testing.subject import kind_of
from dlmrl_kit.testing.world import World, world

ORDER = (3, 7, 0, 5, 1, 6, 2, 4)
"""A permutation of the batch."""


def check_declarations(name: str, component: Any) -> None:
    """Keys and services are declared, well-formed, and no key is both read and written."""
    for attribute in ("in_keys", "out_keys", "optional_keys"):
        if problem := malformed(getattr(component, attribute, ())):
            fail(name, f"declares {attribute} that are not keys", f"{attribute} {problem}")
    unknown = [service for service in getattr(component, "requires", ()) if service not in SERVICES]
    if unknown:
        fail(name, f"requires {unknown[0]!r}, which is no service", f"there are {', '.join(SERVICES)}")
    both = [key for key in written(component) if key in list(component.in_keys)]
    if both and not is_term(component):
        fail(name, f"reads and writes {both[0]!r}", "write its result under another key; nothing is overwritten")


def check_reads_only_in_keys(name: str, component: Any) -> None:
    """It runs on a trajectory that holds its in_keys only, and nothing else in a trajectory changes what it writes."""
    for variant in variants(component):
        alone = outputs(name, variant, world())
        w = world()
        own = [*variant.in_keys, *written(component), *getattr(component, "optional_keys", ())]
        for key, values in leaves(w.full).items():
            if key not in variant.in_keys:
                w.full.set(key, values.roll(1, 0))  # another row's: right in kind, wrong in value
        given = w.full.exclude(*[key for key in own if key not in variant.in_keys])
        found = {key: value.detach() for key, value in run(name, variant, given, w).items()}
        if (key := different(alone, found)) is not None:
            fix = f"put every key that forward looks at into in_keys, now {list(variant.in_keys)}; peeking is reading"
            fail(name, f"writes another {key!r} when the trajectory holds keys that it does not declare", fix)


def check_writes_declared_keys(name: str, component: Any) -> None:
    """It writes its out_keys and the optional keys it was asked for, no more and no less."""
    optional = tuple(getattr(component, "optional_keys", ()))
    for keys in dict.fromkeys([(), optional, *((key,) for key in optional)]):
        variant = asked(component, keys)
        found, declared = set(outputs(name, variant, world())), set(written(variant))
        after = f" when asked for {list(keys)}" if keys else ""
        if undeclared := sorted(found - declared, key=str):
            fix = "add the key to out_keys (or to optional_keys, and write it only when asked for), or do not write it"
            fail(name, f"writes {undeclared[0]!r}, which is not among its out_keys{after}", fix)
        if missing := sorted(declared - found, key=str):
            fail(name, f"does not write {missing[0]!r}{after}", "write every declared key for every batch")


def check_types_and_shapes(name: str, component: Any) -> None:
    """Keys of the trajectory have the dtype and the shape that docs/trajectory.md gives them."""
    for variant in variants(component):
        w = world()
        given = inputs(name, variant, w)
        sizes = _sizes(variant, given, w)
        for key, value in run(name, variant, given, w).items():
            if is_term(component) or key not in KEYS:
                continue
            spec = KEYS[key]
            if str(value.dtype) != f"torch.{spec.dtype}":
                fix = f"convert it: .to(torch.{spec.dtype})"
                fail(name, f"writes {key!r} as {value.dtype}, the trajectory has {spec.dtype}", fix)
            letters = spec.shape.strip("[]").split(", ")
            for letter, size in zip(letters, value.shape, strict=False):
                sizes.setdefault(letter, size)
            expected = tuple(sizes.get(letter, -1) for letter in letters)
            if tuple(value.shape) != expected:
                fix = f"its shape is {spec.shape}, here {list(expected)}"
                fail(name, f"writes {key!r} of shape {list(value.shape)}", fix)


def _sizes(component: Any, given: TensorDict, w: World) -> dict[str, int]:
    """What the letters of ``KEYS`` stand for; K is what a selector makes it."""
    if kind_of(type(component)) == "sampler":
        sizes = {"T": component.max_steps, "L": component.completion_length}
    else:
        sizes = {"T": w.sampler.max_steps, "L": w.sampler.completion_length, "C": w.sampler.max_commits}
        if isinstance(component, SegmentLikelihood):  # a token of a segment may be anywhere in the completion
            sizes["C"] = w.sampler.completion_length
        if SELECTED_WEIGHT not in written(component):
            sizes["K"] = w.full[SELECTED_WEIGHT].shape[1]
    return {"B": len(given), "V": w.policy.vocab_size, **sizes}


def check_leaves_inputs_unchanged(name: str, component: Any) -> None:
    """Everything that came in is there afterwards, bit by bit; the policy's weights too."""
    for variant in variants(component):
        w = world()
        given = inputs(name, variant, w)
        before = {key: value.clone() for key, value in leaves(given).items()}
        weights = {key: value.clone() for key, value in w.policy.state_dict().items()}
        run(name, variant, given, w)
        for key, value in before.items():
            if not equal(value, given.get(key, value.new_zeros(0))):
                fix = "compute into new tensors: no operation that ends in _, no assignment to a slice of what came in"
                fail(name, f"changes {key!r}, which it reads", fix)
        if (changed := different(weights, dict(w.policy.state_dict()))) is not None:
            fail(name, f"changes the policy's {changed}", "leave the weights to the optimiser")


def check_same_result_for_same_seed(name: str, component: Any) -> None:
    """The same trajectory and the same seed give the same result, bit by bit, also the second time."""
    for variant in variants(component):
        first, second = (outputs(name, variant, world(), seed=3) for _ in range(2))
        if (key := different(first, second)) is not None:
            fix = 'draw from the generator only (requires = ("generator",)), and keep no state from call to call'
            fail(name, f"writes other values of {key!r} when run again with the same seed", fix)


def check_global_random_state(name: str, component: Any) -> None:
    """It does not draw from the global random state of torch, numpy or Python."""
    import numpy as np

    w = world()
    given = inputs(name, component, w)
    before = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    run(name, component, given, w)
    after = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    changed = [not torch.equal(before[0], after[0]), before[1] != after[1], before[2] != after[2]]
    for moved, whose in zip(changed, ("torch", "Python", "numpy"), strict=True):
        if moved:
            fix = 'set requires = ("generator",), take generator in forward and pass generator=generator to what draws'
            fail(name, f"draws from the global random state of {whose}", fix)


def check_order_of_batch(name: str, component: Any) -> None:
    """Permuting the batch permutes what is written, and leaves what is returned as it is (deterministic components)."""
    if "generator" in getattr(component, "requires", ()):
        return
    order = torch.tensor(ORDER)
    for variant in variants(component):
        w = world()
        given = inputs(name, variant, w)
        straight = {key: value.detach() for key, value in run(name, variant, given.clone(), w).items()}
        permuted = {key: value.detach() for key, value in run(name, variant, given[order], w).items()}
        if not is_term(component):
            straight = {key: value[order] for key, value in straight.items()}
        if (key := different(straight, permuted, 1e-4)) is not None:
            fix = "treat rows by what is in them (an advantage: by group), never by their place in the batch"
            fail(name, f"writes other values of {key!r} when the batch is in another order", fix)


def check_float64(name: str, component: Any) -> None:
    """From float64 it makes float64: the audit computes in it."""
    w = world(torch.float64)
    if any(True for _ in component.parameters()):
        component.double()
    for variant in variants(component):
        given = inputs(name, variant, w)
        real = any(value.dtype.is_floating_point for value in leaves(given).values())
        if not real and not {"policy", "restart", "score"} & set(variant.requires):
            continue
        for key, value in run(name, variant, given, w).items():
            if value.dtype.is_floating_point and value.dtype != torch.float64:
                fix = "take the dtype from what comes in (zeros_like, new_zeros, .to(x.dtype)), not torch.float32"
                fail(name, f"writes {key!r} as {value.dtype} from float64", fix)


def check_one_sample(name: str, component: Any) -> None:
    """It runs on a batch of one sample, and what it writes for a full one is finite where it counts."""
    for variant in variants(component):
        w = world()
        given = inputs(name, variant, w)
        found = run(name, variant, given[:1].clone(), w)
        for key, value in found.items():
            if value.dtype.is_floating_point and not _finite(key, value):
                fix = "look for divisions by the size of a batch, a group or a row minus 1"
                fail(name, f"writes {key!r} that is not finite for a batch of one sample", fix)


def _finite(key: Any, value: Tensor) -> bool:
    allowed = isinstance(key, tuple) and key[-1] == "distribution"  # -inf where a token is filtered
    return bool(value.isfinite().all()) or (allowed and not bool(value.isnan().any()))


CHECKS = (
    check_declarations,
    check_reads_only_in_keys,
    check_writes_declared_keys,
    check_types_and_shapes,
    check_leaves_inputs_unchanged,
    check_same_result_for_same_seed,
    check_global_random_state,
    check_order_of_batch,
    check_float64,
    check_one_sample,
)
