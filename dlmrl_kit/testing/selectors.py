"""Checks of selectors: which steps they choose, and the weights that make the sum over them unbiased."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_STEP, SELECTED_WEIGHT, STEP_VALID
from dlmrl_kit.selectors.base import is_nested
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.running import inputs, outputs, run
from dlmrl_kit.testing.subject import entry_of
from dlmrl_kit.testing.world import World, world

DRAWS, SEEDS, FEW = 3000, 5, 4
"""Copies of each row in one draw; seeds tried; steps of the short trajectory that expectations are taken on."""


def check_steps_happened(name: str, component: Any) -> None:
    """It selects steps that happened; slots a row does not need have step 0 and weight 0; weights are not negative."""
    for seed in range(SEEDS):
        w = world()
        found = outputs(name, component, w, seed)
        step, weight = found[SELECTED_STEP], found[SELECTED_WEIGHT]
        if not (weight.isfinite() & (weight >= 0)).all():
            fail(name, "gives weights that are negative or not finite", "give importance weights, 0 in slots not used")
        if (step[weight == 0] != 0).any():
            fail(name, "puts a step into a slot of weight 0", "slots that a row does not need have step 0 and weight 0")
        past = (step < 0) | (step >= w.full[STEP_VALID].sum(-1, keepdim=True))
        if past.any():
            row = int(past.any(-1).nonzero()[0])
            steps, length = step[row].tolist(), int(w.full[STEP_VALID][row].sum())
            fix = 'select among the steps where ("step", "valid") is True, and give the slots that are left weight 0'
            fail(name, f"selects steps {steps} of a row that has {length} steps", fix)


def check_steps_distinct(name: str, component: Any) -> None:
    """It selects no step twice, unless it declares draws with replacement (``with_replacement = True``)."""
    if getattr(component, "with_replacement", False):
        return
    for seed in range(SEEDS):
        found = outputs(name, component, world(), seed)
        for steps, weights in zip(found[SELECTED_STEP].tolist(), found[SELECTED_WEIGHT].tolist(), strict=True):
            used = [step for step, weight in zip(steps, weights, strict=True) if weight > 0]
            if len(set(used)) < len(used):
                fix = "select distinct steps; or, if drawing with replacement is meant, set with_replacement = True"
                fail(name, f"selects steps {used} of one row: a step twice", fix)


def check_nested(name: str, component: Any) -> None:
    """If it says that it is ``nested``, it keeps of the beginning of a row all that it keeps of the row there."""
    if not is_nested(component):
        return
    given = inputs(name, component, world())
    for seed in range(SEEDS):
        order = torch.randperm(given[STEP_VALID].shape[1], generator=torch.Generator().manual_seed(seed))
        tried = given.clone()
        for key, value in tried["step"].items():
            if ("step", key) != STEP_VALID:
                tried.set(("step", key), value[:, order])
        kept = component.kept(tried, None)
        for length in range(1, len(order)):
            beginning = tried.clone(recurse=False)
            beginning.set("step", tried["step"].apply(lambda value, n=length: value[:, :n]))
            lost = kept[:, :length] & ~component.kept(beginning, None)
            if lost.any():
                step = int(lost.nonzero()[0, 1])
                problem = f"keeps step {step} of a row, but not of its first {length} steps: it is not nested"
                fail(name, problem, "remove nested = True: what only kept steps need is made for those kept so far")


def check_expected_weights(name: str, component: Any) -> None:
    """If registered as unbiased, the expected total weight of every step that happened is 1."""
    entry = entry_of(type(component))
    if entry is None or entry.claims.unbiased is not True or entry.claims.scale != "1":
        return
    w = _short()
    valid = w.full[STEP_VALID]
    mean, error = _listed(name, component, w) or _drawn(name, component, w)
    off = ((mean - valid.double()).abs() > 5 * error + 1e-6).nonzero().tolist()
    if off:
        row, step = off[0]
        problem = (
            f"is registered as unbiased, but a step that counts {int(valid[row, step])} time gets the expected weight "
            f"{mean[row, step]:.4g}"
        )
        fail(name, problem, "weight a step by 1 / (expected number of times it is drawn), or register unbiased=False")


def _short() -> World:
    """The world with the first steps of its trajectory only."""
    w = world()
    w.full.set("step", w.full["step"].apply(lambda value: value[:, :FEW].clone()))
    for row, length in enumerate((4, 1, 3, 2, 4, 4, 2, 3)):
        w.full[STEP_VALID][row, length:] = False
    return w


def _total(step: Tensor, weight: Tensor) -> Tensor:
    """Total weight of each step: float64 [B, FEW]."""
    return torch.zeros(len(step), FEW, dtype=torch.float64).scatter_add(1, step, weight.double())


def _listed(name: str, component: Any, w: World) -> tuple[Tensor, Tensor] | None:
    """Expected total weights from the list of all outcomes, if the selector has one."""
    if not hasattr(component, "outcomes"):
        return None
    try:
        with attempt(name, "listing its outcomes", "list every selection with its probability (Selector.outcomes)"):
            found = component.outcomes(inputs(name, component, w))
    except AssertionError as error:
        if isinstance(error.__cause__, NotImplementedError):
            return None
        raise
    chance = torch.stack([probability for _, _, probability in found])
    if (chance.sum(0) - 1).abs().max() > 1e-9:
        fail(name, "lists outcomes whose probabilities do not sum to 1", "list every possible selection once")
    totals = torch.stack([_total(step, weight) * p[:, None] for step, weight, p in found])
    return totals.sum(0), torch.zeros(())


def _drawn(name: str, component: Any, w: World) -> tuple[Tensor, Tensor]:
    """Mean total weights over many draws, and their standard error."""
    given: TensorDict = inputs(name, component, w)
    rows = torch.arange(len(given)).repeat_interleave(DRAWS)
    found = run(name, component, given[rows], w)
    totals = _total(found[SELECTED_STEP], found[SELECTED_WEIGHT]).reshape(len(given), DRAWS, FEW)
    return totals.mean(1), totals.std(1) / DRAWS**0.5


CHECKS = (check_steps_happened, check_steps_distinct, check_nested, check_expected_weights)
