"""Checks of losses and regularisers: scalars, gradients, micro-batches and segments, the KL of a policy to itself."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.dataflow import plain_key
from dlmrl_kit.core.keys import (
    SELECTED_DISTRIBUTION,
    SELECTED_ENTROPY,
    SELECTED_LOG_PROB,
    SELECTED_TOKEN_LOG_PROB,
    SELECTED_TOKEN_MASK,
    SELECTED_VALUE,
    SELECTED_WEIGHT,
    Key,
)
from dlmrl_kit.core.trajectory import segment_pieces
from dlmrl_kit.losses.base import Objective, Term
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.running import Outputs, equal, flat, inputs
from dlmrl_kit.testing.world import GROUPS, world
from dlmrl_kit.training.gradient import loss_of

LIVE: frozenset[Key] = frozenset(
    {SELECTED_LOG_PROB, SELECTED_TOKEN_LOG_PROB, SELECTED_DISTRIBUTION, SELECTED_ENTROPY, SELECTED_VALUE}
)
"""Keys that a likelihood or a value model writes with gradient."""
PIECES = ((0, 1, 2), (7,), (3, 4, 5, 6))
"""Micro-batches; sample 7 selected no step at all."""
WHOLE_GROUPS = tuple(tuple(row for row, group in enumerate(GROUPS) if group == own) for own in dict.fromkeys(GROUPS))
"""Micro-batches that cut no group."""


def _is_loss(key: Key) -> bool:
    return isinstance(key, str) and key.startswith("loss_")


def gradients(component: Term, given: TensorDictBase) -> Outputs:
    """Returns the gradient of the loss with respect to every real key; None is 0."""
    tracked = {k: v.clone().requires_grad_() for k, v in flat(given).items() if v.dtype.is_floating_point}
    loss = loss_of(component(given.clone().update(TensorDict(tracked, given.batch_size))))
    if not loss.requires_grad:
        return {key: torch.zeros_like(value) for key, value in tracked.items()}
    found = torch.autograd.grad(loss, list(tracked.values()), allow_unused=True)
    pairs = zip(tracked.items(), found, strict=True)
    return {key: torch.zeros_like(value) if grad is None else grad for (key, value), grad in pairs}


def check_scalars(name: str, component: Term) -> None:
    """It returns finite scalars under its out_keys, the first of which is the loss."""
    with attempt(name, "run", "read nothing but in_keys"):
        found = flat(component(inputs(name, component, world())))
    for key, value in found.items():
        if value.shape != ():
            problem = f"returns {key!r} of shape {list(value.shape)}"
            fail(name, problem, "return scalars: sum over samples, divide by count")
        if not value.isfinite():
            fail(name, f"returns {key!r} = {value.item()}", "mask entries of weight 0 before any arithmetic")
        if value.requires_grad and not _is_loss(key):
            fail(name, f"returns {key!r} with a gradient", "detach diagnostics; only loss_... is minimised")
    if not _is_loss(component.out_keys[0]):
        fail(name, f"lists {component.out_keys[0]!r} first", "name what is minimised loss_... and list it first")


def check_gradient(name: str, component: Term) -> None:
    """The gradient reaches log-probabilities, distributions or entropies, and nothing else that is read."""
    w = world()
    given = inputs(name, component, w)
    with attempt(name, "differentiated", "keep the loss differentiable"):
        found = gradients(component, given)
    live = [key for key in found if key in LIVE]
    for key, gradient in found.items():
        if not gradient.isfinite().all():
            fail(name, f"has a gradient in {key!r} that is not finite", "mask before any arithmetic (torch.where)")
        if key not in live and gradient.abs().max() > 0:
            fix = f"detach it: tensordict[{key!r}].detach(); it is a number here, not a function of the policy"
            fail(name, f"leaks its gradient into {key!r}", fix)
    if not any(found[key].abs().max() > 0 for key in live):
        fix = "compute the loss from the keys that a likelihood writes with gradient, and do not detach those"
        fail(name, f"has no gradient in {live or 'any log-probability'}", fix)


def pieces_of(component: Term) -> tuple[tuple[int, ...], ...]:
    """Returns the rows of the micro-batches that an update may cut a batch into."""
    return WHOLE_GROUPS if component.needs_groups else PIECES


def check_micro_batches(name: str, component: Term) -> None:
    """Micro-batches add up: loss(batch) = sum of loss(micro) * count(micro) / count(batch), gradient too."""
    given = inputs(name, component, world())
    parts = [(torch.tensor(rows), given[list(rows)]) for rows in pieces_of(component)]
    fix = (
        "divide a plain sum over samples by count(tensordict), and let count add up over samples; a loss that compares "
        "the samples of a group sets needs_groups = True"
    )
    with attempt(name, "counted", "implement count(tensordict): the denominator of the loss, a scalar"):
        total, counts = float(component.count(given)), [float(component.count(piece)) for _, piece in parts]
    if abs(total - sum(counts)) > 1e-6 * max(1.0, abs(total)):
        fail(name, f"counts {total:g} in a batch and {counts} in its pieces", fix)
    _check_sum(name, component, given, parts, fix)


def check_segmentwise(name: str, component: Term) -> None:
    """If it says ``segmentwise``, samples may be cut between segments: the pieces add up, value and gradient."""
    given = inputs(name, component, world())
    if not component.segmentwise or SELECTED_WEIGHT not in flat(given):
        return
    fix = (
        "set segmentwise = False, unless total is a plain sum over segments: no function of a sum over the segments of "
        "a sample"
    )
    for most in (1, 3):
        _check_sum(name, component, given, segment_pieces(given, most), fix)


def _check_sum(
    name: str, component: Term, given: TensorDict, parts: list[tuple[Tensor, TensorDictBase]], fix: str
) -> None:
    """The loss of a batch and its gradient are those of its pieces (rows, TensorDict), weighted by their counts."""
    total = float(component.count(given))
    shares = [float(component.count(piece)) / total if total else 0.0 for _, piece in parts]
    with attempt(name, "run on a part of a batch in which no step is selected", "return 0 where there is nothing"):
        whole, losses = loss_of(component(given)), [loss_of(component(piece)) for _, piece in parts]
    added = torch.stack([loss * share for loss, share in zip(losses, shares, strict=True)]).sum()
    if not equal(whole, added, 1e-5):
        fail(name, f"gives {whole.item():.6g} for a batch and {added.item():.6g} for its pieces together", fix)
    expected = gradients(component, given)
    joined = {key: torch.zeros_like(gradient) for key, gradient in expected.items()}
    for (rows, piece), share in zip(parts, shares, strict=True):
        for key, gradient in gradients(component, piece).items():
            joined[key].index_add_(0, rows, gradient * share)
    for key, gradient in expected.items():
        if not equal(gradient, joined[key], 1e-5):
            fail(name, f"has another gradient in {key!r} for a batch than for its pieces together", fix)


def check_diagnostics(name: str, component: Objective) -> None:
    """Diagnostics are means over ``units`` (names that end in ``_max``: maxima), so those of micro-batches combine."""
    given = inputs(name, component, world())
    if SELECTED_TOKEN_MASK in flat(given):  # steps of one token beside those of two
        mask = given[SELECTED_TOKEN_MASK]
        given.set(
            SELECTED_TOKEN_MASK, mask & ((mask.cumsum(-1) != 1) | (torch.arange(len(GROUPS)) % 3 > 0)[:, None, None])
        )
    pieces = [given[list(rows)] for rows in pieces_of(component)]
    whole, parts = flat(component(given)), [flat(component(piece)) for piece in pieces]
    units = [float(component.units(piece)) for piece in pieces]
    fix = "override units(tensordict) with the number of segments, tokens or samples that diagnostics are means over"
    if abs(sum(units) - float(component.units(given))) > 1e-6:
        fail(name, f"has {float(component.units(given)):g} units in a batch and {units} in its pieces", fix)
    for key, value in whole.items():
        if _is_loss(key) or value.shape != () or not sum(units):  # check_scalars reports the others
            continue
        values = [float(part[key]) for part in parts]
        if str(key).endswith("_max"):
            expected = max(v for v, n in zip(values, units, strict=True) if n)
        else:
            expected = sum(v * n for v, n in zip(values, units, strict=True)) / sum(units)
        if abs(expected - float(value)) > 1e-5 * max(1.0, abs(expected)):
            fail(name, f"returns {key!r} = {float(value):.6g}, its pieces together {expected:.6g}", fix)


def check_weights_matter(name: str, component: Term) -> None:
    """The selector's weights matter: other weights give another loss or gradient."""
    given = inputs(name, component, world())
    if SELECTED_WEIGHT not in flat(given):
        fix = 'read ("selected", "weight"): multiply each segment by its weight, which is 0 for padding'
        fail(name, 'does not read ("selected", "weight")', fix)
    other = given.clone().set(
        SELECTED_WEIGHT, given[SELECTED_WEIGHT] * (1 + torch.arange(given[SELECTED_WEIGHT].shape[1]))
    )
    before, after = ([loss_of(component(td)), *gradients(component, td).values()] for td in (given, other))
    if all(equal(a, b, 1e-6) for a, b in zip(before, after, strict=True)):
        fix = 'multiply each segment by ("selected", "weight"): an unbiased selector relies on it'
        fail(name, "gives the same loss and gradient whatever the weights are", fix)


def check_zero_at_reference(name: str, component: Term) -> None:
    """A KL is 0 where the policy is what it is compared with (regularisers that read a ref_ or old_ key)."""
    given = inputs(name, component, world())
    twins: list[Key] = [key for key in component.in_keys if plain_key(key) != key and plain_key(key) in LIVE]
    twins = [key for key in twins if plain_key(key) != SELECTED_VALUE]  # a value is compared with a return
    for key in twins:
        if plain_key(key) in component.in_keys:
            given.set(key, given[plain_key(key)].clone())
    if not twins:
        return
    found = float(loss_of(component(given)))
    if abs(found) > 1e-6:
        fix = f"measure the difference between {plain_key(twins[0])!r} and {twins[0]!r}; it is 0 where they are equal"
        fail(name, f"is {found:.3g} where the policy equals the reference", fix)


CHECKS = (check_scalars, check_gradient, check_micro_batches, check_segmentwise, check_weights_matter)
LOSS_CHECKS = (*CHECKS, check_diagnostics)
REGULARISER_CHECKS = (*CHECKS, check_zero_at_reference)
