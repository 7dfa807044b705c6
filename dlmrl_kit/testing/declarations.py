"""Checks of components that read and write a trajectory: keys, types, purity, order of the batch."""

from __future__ import annotations

import inspect
import random

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.core.component import DECLARATIONS, Component, malformed, no_service
from dlmrl_kit.core.keys import (
    GROUP,
    KEYS,
    SEED,
    SELECTED_DISTRIBUTION,
    SELECTED_REF_DISTRIBUTION,
    SELECTED_WEIGHT,
    Key,
)
from dlmrl_kit.likelihoods.segments import SegmentLikelihood
from dlmrl_kit.losses.base import Term
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.running import Outputs, demands, detached, different, equal, flat, inputs, run, written
from dlmrl_kit.testing.world import GROUPS, World, world

ORDER = (3, 7, 0, 5, 1, 6, 2, 4)
"""A permutation of the batch."""
KEPT_ORDER = (3, 7, 0, 2, 1, 4, 5, 6)
"""A permutation that keeps the order of each group's samples, which have different parts in it for some samplers."""
DRAW = "list SEED in in_keys and draw by core.seeding.uniforms(tensordict[SEED], ..., purpose=NAME)"
"""What to do in a component that draws otherwise."""


def check_declarations(name: str, component: Component) -> None:
    """Keys and services are declared and well-formed, forward takes the services, no key is both read and written."""
    with attempt(name, "asked for its declarations", "set in_keys and out_keys, in the class or in its constructor"):
        declared = (component.in_keys, component.out_keys, component.optional_keys)
    for attribute, keys in zip(DECLARATIONS, declared, strict=True):
        if problem := malformed(keys):
            fail(name, f"declares {attribute} that are not keys", f"{attribute} {problem}")
    if (wrong := no_service(component.requires)) is not None:
        fail(name, *wrong)
    _check_signature(name, component)
    if isinstance(component, Term):
        return
    for keys in demands(component):
        reads = component.reads(keys)
        if both := [key for key in component.writes(keys) if key in reads]:
            fail(name, f"reads and writes {both[0]!r}", "write its result under another key; nothing is overwritten")


def _check_signature(name: str, component: Component) -> None:
    """``forward`` takes the services in ``requires`` and, where there are on-demand keys, ``keys``."""
    parameters = inspect.signature(component.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    asked = [*component.requires, *(["keys"] if component.optional_keys else [])]
    if missing := [argument for argument in asked if argument not in parameters]:
        given = ", ".join([*component.requires, *(["keys=()"] if component.optional_keys else [])])
        fail(name, f"has a forward that does not take {missing[0]}", f"def forward(self, tensordict, *, {given})")


def check_reads_only_in_keys(name: str, component: Component) -> None:
    """It runs on a trajectory that holds its in_keys only, and nothing else in a trajectory changes what it writes."""
    for keys in demands(component):
        alone = written(name, component, world(), keys)
        w = world()
        reads = component.reads(keys)
        own = [*component.out_keys, *component.optional_keys]
        for key, values in flat(w.full).items():
            if key not in reads:
                w.full.set(key, values.roll(1, 0))  # another row's: right in kind, wrong in value
        given = w.full.exclude(*[key for key in own if key not in reads])
        found = detached(run(name, component, given, w, keys))
        if (changed := different(alone, found)) is not None:
            fix = f"put every key that forward looks at into in_keys, now {list(reads)}; peeking is reading"
            fail(name, f"writes another {changed!r} when the trajectory holds keys that it does not declare", fix)


def check_writes_declared_keys(name: str, component: Component) -> None:
    """It writes its out_keys and the optional keys it was asked for, no more and no less."""
    for keys in dict.fromkeys([*demands(component), *((key,) for key in component.optional_keys)]):
        found, declared = set(written(name, component, world(), keys)), set(component.writes(keys))
        after = f" when asked for {list(keys)}" if keys else ""
        if undeclared := sorted(found - declared, key=str):
            fix = "add the key to out_keys, or to optional_keys and write it only if `keys` has it, or do not write it"
            fail(name, f"writes {undeclared[0]!r}, which is not among its out_keys{after}", fix)
        if missing := sorted(declared - found, key=str):
            fail(name, f"does not write {missing[0]!r}{after}", "write every declared key for every batch")


def check_types_and_shapes(name: str, component: Component) -> None:
    """Keys of the trajectory have the dtype and the shape that docs/trajectory.md gives them."""
    if isinstance(component, Term):
        return
    for keys in demands(component):
        w = world()
        given = inputs(name, component, w, keys)
        sizes = _sizes(component, given, w)
        for key, value in run(name, component, given, w, keys).items():
            if key not in KEYS:
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


def _sizes(component: Component, given: TensorDict, w: World) -> dict[str, int]:
    """Returns what the letters of ``KEYS`` stand for; K is what a selector makes it."""
    if isinstance(component, Sampler):
        sizes = {"T": component.max_steps, "L": component.completion_length}
    else:
        sizes = {"T": w.sampler.max_steps, "L": w.sampler.completion_length, "C": w.sampler.max_commits}
        if isinstance(component, SegmentLikelihood):  # a token of a segment may be anywhere in the completion
            sizes["C"] = w.sampler.completion_length
        if SELECTED_WEIGHT not in component.out_keys:
            sizes["K"] = w.full[SELECTED_WEIGHT].shape[1]
    return {"B": len(given), "V": w.policy.vocab_size, **sizes}


def check_leaves_inputs_unchanged(name: str, component: Component) -> None:
    """Everything that came in is there afterwards, bit by bit; the policy's weights too."""
    for keys in demands(component):
        w = world()
        given = inputs(name, component, w, keys)
        before = {key: value.clone() for key, value in flat(given).items()}
        weights = {key: value.clone() for key, value in w.policy.state_dict().items()}
        run(name, component, given, w, keys)
        for key, value in before.items():
            if not equal(value, given.get(key, value.new_zeros(0))):
                fix = "compute into new tensors: no operation that ends in _, no assignment to a slice of what came in"
                fail(name, f"changes {key!r}, which it reads", fix)
        for weight, value in w.policy.state_dict().items():
            if not equal(weights[weight], value):
                fail(name, f"changes the policy's {weight}", "leave the weights to the optimiser")


def check_same_result_for_same_seed(name: str, component: Component) -> None:
    """The same trajectory and the same seeds give the same result, bit by bit, also the second time."""
    for keys in demands(component):
        first, second = (written(name, component, world(seed=3), keys) for _ in range(2))
        if (key := different(first, second)) is not None:
            fail(name, f"writes other values of {key!r} when run again with the same seeds", f"{DRAW}; keep no state")


def check_global_random_state(name: str, component: Component) -> None:
    """It does not draw from the global random state of torch, numpy or Python."""
    w = world()
    given = inputs(name, component, w)
    before = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    run(name, component, given, w)
    after = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    changed = [not torch.equal(before[0], after[0]), before[1] != after[1], before[2] != after[2]]
    for moved, whose in zip(changed, ("torch", "Python", "numpy"), strict=True):
        if moved:
            fail(name, f"draws from the global random state of {whose}", DRAW)


def check_order_of_batch(name: str, component: Component) -> None:
    """Permuting the batch permutes what is written, what is drawn too, and leaves what a term returns as it is."""
    together = isinstance(component, Sampler) and component.group_size is not None
    order = torch.tensor(KEPT_ORDER if together else ORDER)
    for keys in demands(component):
        w = world()
        given = inputs(name, component, w, keys)
        straight = detached(run(name, component, given.clone(), w, keys))
        permuted = detached(run(name, component, given[order], w, keys))
        if not isinstance(component, Term):
            straight = {key: value[order] for key, value in straight.items()}
        if (key := different(straight, permuted, 1e-4)) is not None:
            fix = "treat rows by what is in them (an advantage: by group), never by their place in the batch"
            fix += f"; in a component that draws, {DRAW}" if SEED in component.in_keys else ""
            fail(name, f"writes other values of {key!r} when the batch is in another order", fix)


def check_rows_alone(name: str, component: Component) -> None:
    """A sampler or selector that draws gives a row, or a group, the same whatever other rows there are."""
    if not isinstance(component, (Sampler, Selector)) or SEED not in component.in_keys:
        return
    together = isinstance(component, Sampler) and component.group_size is not None
    group = world().full[GROUP]
    parts = [(group == some).nonzero().squeeze(-1) for some in sorted(set(GROUPS))]
    if not together:
        parts = [torch.tensor([row]) for row in range(len(group))]
    for keys in demands(component):
        w = world()
        given = inputs(name, component, w, keys)
        whole = detached(run(name, component, given.clone(), w, keys))
        for rows in parts:
            alone = detached(run(name, component, given[rows].clone(), w, keys))
            if (key := different(_as_wide(whole, alone, rows), alone, 1e-4)) is not None:
                problem = f"writes other values of {key!r} for rows {rows.tolist()} alone than among others"
                fail(name, problem, f"{DRAW}: one row's numbers at a time, [B, ...], whatever else is in the batch")


def _as_wide(whole: Outputs, alone: Outputs, rows: Tensor) -> Outputs:
    """Returns the rows, without entries of a selection that none of them needs."""
    some = {key: value[rows] for key, value in whole.items()}
    selected = [key for key in some if key in alone and key[0] == "selected"]
    return some | {key: some[key][:, : alone[key].shape[1]] for key in selected}


def check_float64(name: str, component: Component) -> None:
    """From float64 it makes float64: the audit computes in it."""
    w = world(torch.float64)
    if any(True for _ in component.parameters()):
        component.double()
    for keys in demands(component):
        given = inputs(name, component, w, keys)
        real = any(value.dtype.is_floating_point for value in flat(given).values())
        if not real and not {"policy", "restart", "score"} & set(component.requires):
            continue
        for key, value in run(name, component, given, w, keys).items():
            if value.dtype.is_floating_point and value.dtype != torch.float64:
                fix = "take the dtype from what comes in (zeros_like, new_zeros, .to(x.dtype)), not torch.float32"
                fail(name, f"writes {key!r} as {value.dtype} from float64", fix)


def check_one_sample(name: str, component: Component) -> None:
    """It runs on a batch of one sample, and what it writes is finite."""
    for keys in demands(component):
        w = world()
        given = inputs(name, component, w, keys)
        found = run(name, component, given[:1].clone(), w, keys)
        for key, value in found.items():
            if value.dtype.is_floating_point and not _finite(key, value):
                fix = "look for divisions by the size of a batch, a group or a row minus 1"
                fail(name, f"writes {key!r} that is not finite for a batch of one sample", fix)


def _finite(key: Key, value: Tensor) -> bool:
    filtered = key in (SELECTED_DISTRIBUTION, SELECTED_REF_DISTRIBUTION)  # -inf where a token is
    return bool(value.isfinite().all()) or (filtered and not bool(value.isnan().any()))


CHECKS = (
    check_declarations,
    check_reads_only_in_keys,
    check_writes_declared_keys,
    check_types_and_shapes,
    check_leaves_inputs_unchanged,
    check_same_result_for_same_seed,
    check_global_random_state,
    check_order_of_batch,
    check_rows_alone,
    check_float64,
    check_one_sample,
)
