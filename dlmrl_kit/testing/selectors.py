"""Checks of selectors: which steps they choose, and whether they draw what they list."""

from __future__ import annotations

import torch
from torch import Tensor

from dlmrl_kit.core.component import Sizes
from dlmrl_kit.core.keys import SEED, SELECTED_STEP, SELECTED_WEIGHT, STEP_VALID
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.running import flat, inputs, run, written
from dlmrl_kit.testing.world import World, world

SEEDS = 5
"""Seeds tried."""
DRAWS = 3000
"""Copies of each row in one draw."""
FEW = 4
"""Steps of the short trajectory whose selections are listed."""


def check_steps_happened(name: str, component: Selector) -> None:
    """It selects steps that happened; entries a row does not need have step 0 and weight 0; no weight is negative."""
    # In short rows a small number of steps is already more than there are.
    for w in (*(world(seed=seed) for seed in range(SEEDS)), _short()):
        found = written(name, component, w)
        step, weight = found[SELECTED_STEP], found[SELECTED_WEIGHT]
        if not (weight.isfinite() & (weight >= 0)).all():
            fail(name, "gives weights that are negative or not finite", "give importance weights, 0 in spare entries")
        if (step[weight == 0] != 0).any():
            fix = "entries that a row does not need have step 0 and weight 0"
            fail(name, "puts a step into an entry of weight 0", fix)
        past = (step < 0) | (step >= w.full[STEP_VALID].sum(-1, keepdim=True))
        if past.any():
            row = int(past.any(-1).nonzero()[0])
            steps, length = step[row].tolist(), int(w.full[STEP_VALID][row].sum())
            fix = 'select among the steps where ("step", "valid") is True, and give the entries that are left weight 0'
            fail(name, f"selects steps {steps} of a row that has {length} steps", fix)


def check_steps_distinct(name: str, component: Selector) -> None:
    """It selects no step twice, unless it declares draws with replacement (``with_replacement = True``)."""
    if component.with_replacement:
        return
    for seed in range(SEEDS):
        found = written(name, component, world(seed=seed))
        for steps, weights in zip(found[SELECTED_STEP].tolist(), found[SELECTED_WEIGHT].tolist(), strict=True):
            used = [step for step, weight in zip(steps, weights, strict=True) if weight > 0]
            if len(set(used)) < len(used):
                fix = "select distinct steps; or, if drawing with replacement is meant, set with_replacement = True"
                fail(name, f"selects steps {used} of one row: a step twice", fix)


def check_nested(name: str, component: Selector) -> None:
    """If it says that it is ``nested``, it keeps of the beginning of a row all that it keeps of the row there."""
    if not component.nested:
        return
    given = inputs(name, component, world())
    for seed in range(SEEDS):
        order = torch.randperm(given[STEP_VALID].shape[1], generator=torch.Generator().manual_seed(seed))
        tried = given.clone()
        for key, value in flat(given).items():
            if key[0] == "step" and key != STEP_VALID:
                tried.set(key, value[:, order])
        kept = component.kept(tried)
        for length in range(1, len(order)):
            beginning = tried.clone(recurse=False)
            beginning.set("step", tried["step"].apply(lambda value, n=length: value[:, :n]))
            lost = kept[:, :length] & ~component.kept(beginning)
            if lost.any():
                step = int(lost.nonzero()[0, 1])
                problem = f"keeps step {step} of a row, but not of its first {length} steps: it is not nested"
                fix = "remove nested = True: samplers make one-step completions only of steps that are kept so far"
                fail(name, problem, fix)


def check_outcomes(name: str, component: Selector) -> None:
    """What a random selector lists in ``outcomes`` is what it draws: each step has the same mean weight.

    The audit takes expectations over the list. Where it is wrong the audit samples, which proves less, and says so.
    """
    if not component.random:
        return
    w = _short()
    given = inputs(name, component, w)
    with attempt(name, "listing its outcomes", "list every selection with its probability (Selector.outcomes)"):
        small = component.resized(Sizes(16, 16, 16, 1), Sizes(FEW, FEW, FEW, 1))
        try:
            found = small.outcomes(given)
        except NotImplementedError:  # a selector need not list them
            return
    chance = torch.stack([probability for _, _, probability in found])
    if (chance.sum(0) - 1).abs().max() > 1e-9:
        fail(name, "lists outcomes whose probabilities do not sum to 1", "list every possible selection once")
    listed = torch.stack([_total(step, weight) * p[:, None] for step, weight, p in found]).sum(0)
    rows = torch.arange(len(given)).repeat_interleave(DRAWS)
    drawn = run(name, small, given[rows].set(SEED, sample_seeds(len(rows), "cpu", 0)), w)
    totals = _total(drawn[SELECTED_STEP], drawn[SELECTED_WEIGHT]).reshape(len(given), DRAWS, FEW)
    mean, error = totals.mean(1), totals.std(1) / DRAWS**0.5
    off = ((mean - listed).abs() > 5 * error + 1e-6).nonzero().tolist()
    if off:
        row, step = off[0]
        problem = (
            f"draws a step with the mean weight {mean[row, step]:.4g}, and lists outcomes in which its expected weight "
            f"is {listed[row, step]:.4g}"
        )
        fail(name, problem, "list in outcomes exactly what choose draws, with the same weights")


def _short() -> World:
    """Returns the world with the first steps of its trajectory only."""
    w = world()
    w.full.set("step", w.full["step"].apply(lambda value: value[:, :FEW].clone()))
    for row, length in enumerate((4, 1, 3, 2, 4, 4, 2, 3)):
        w.full[STEP_VALID][row, length:] = False
    w.add_declared()
    return w


def _total(step: Tensor, weight: Tensor) -> Tensor:
    """Returns the total weight of each step: float64 [B, FEW]."""
    return torch.zeros(len(step), FEW, dtype=torch.float64).scatter_add(1, step, weight.double())


CHECKS = (check_steps_happened, check_steps_distinct, check_nested, check_outcomes)
