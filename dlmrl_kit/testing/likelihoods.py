"""Checks of likelihood estimators: gradients, independence of samples, agreement with what the sampler recorded."""

from __future__ import annotations

import torch

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import SELECTED_STEP, SELECTED_WEIGHT
from dlmrl_kit.core.trajectory import gather_steps
from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.likelihoods.steps import pack_tokens
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.running import demands, detached, different, flat, inputs, run, written
from dlmrl_kit.testing.terms import LIVE, PIECES
from dlmrl_kit.testing.world import world


def check_policy_gradient(name: str, component: Likelihood) -> None:
    """Every log-probability, distribution and entropy it writes has a finite gradient in the policy's weights."""
    for keys in demands(component):
        w = world()
        found = run(name, component, inputs(name, component, w, keys), w, keys)
        for key, value in found.items():
            if key not in LIVE:
                continue
            if not value.requires_grad:
                fail(name, f"writes {key!r} without gradient", "do not detach it, and use no torch.no_grad in it")
            total = value.masked_fill(~value.isfinite(), 0).square().sum()
            parameters = list(w.policy.parameters())
            gradient = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
            reached = [g for g in gradient if g is not None]
            if not all(g.isfinite().all() for g in reached):
                fix = "mask before exp and log; torch.where(mask, x, 0) before, not after"
                fail(name, f"has a gradient of {key!r} that is not finite", fix)
            if not any(g.abs().max() > 0 for g in reached):
                fail(name, f"writes {key!r} whose gradient does not reach the policy", "compute it from policy(...)")


def check_samples_independent(name: str, component: Component) -> None:
    """What it writes for a sample does not depend on the samples beside it: updates cut batches into micro-batches."""
    for keys in demands(component):
        w = world()
        whole = written(name, component, w, keys)
        for rows in PIECES:
            piece = run(name, component, inputs(name, component, w, keys)[list(rows)], w, keys)
            expected = {key: value[list(rows)] for key, value in whole.items()}
            if (key := different(expected, detached(piece), 1e-4)) is not None:
                fix = "take widths from the sampler (max_commits) or the selection (K), and no mean over the batch"
                fail(name, f"writes another {key!r} for a part of a batch than for all of it", fix)


def check_recorded(name: str, component: Likelihood) -> None:
    """What the sampler recorded under the names in ``recorded`` is what it computes under the same policy."""
    w = world()
    fix = "map each key that has an old_ twin to the sampler's key for the same quantity; {} if it records none"
    with attempt(name, "asked for its recorded keys", fix):
        recorded = dict(component.recorded)
    found = written(name, component, w, tuple(key for key in recorded if key in component.optional_keys))
    used = w.full[SELECTED_WEIGHT] > 0
    known = flat(w.full)
    for key, source in recorded.items():
        if key not in found or source not in known:
            fail(name, f"maps {key!r} to {source!r} in recorded", fix)
        if source[0] == "token":
            old = pack_tokens(w.full, known[source], w.sampler.max_commits)
        else:
            old = gather_steps(known[source], w.full[SELECTED_STEP])
        worst = (found[key] - old).abs()[used].max().item()
        if not worst < 1e-3:
            problem = f"writes {key!r} that differs from what the sampler recorded as {source!r} by {worst:.3g}"
            fail(name, problem, "compute the same quantity: temperature, filters, positions; the ratio must start at 1")


CHECKS = (check_policy_gradient, check_samples_independent, check_recorded)
