"""Checks of likelihood estimators: gradients, independence of samples, agreement with what the sampler recorded."""

from __future__ import annotations

from typing import Any

import torch

from dlmrl_kit.core.keys import SELECTED_STEP, SELECTED_WEIGHT
from dlmrl_kit.core.trajectory import gather_steps
from dlmrl_kit.likelihoods.base import pack_tokens
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.running import different, inputs, outputs, run, variants
from dlmrl_kit.testing.terms import PIECES, is_live
from dlmrl_kit.testing.world import world

NOT_LIVE = frozenset({"token_mask"})


def check_policy_gradient(name: str, component: Any) -> None:
    """Every log-probability, distribution and entropy it writes has a finite gradient in the policy's weights."""
    for variant in variants(component):
        w = world()
        found = run(name, variant, inputs(name, variant, w), w)
        for key, value in found.items():
            if not is_live(key):
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


def check_samples_independent(name: str, component: Any) -> None:
    """What it writes for a sample does not depend on the samples beside it: updates cut batches into micro-batches."""
    for variant in variants(component):
        w = world()
        whole = outputs(name, variant, w)
        for rows in PIECES:
            piece = run(name, variant, inputs(name, variant, w)[list(rows)], w)
            expected = {key: value[list(rows)] for key, value in whole.items()}
            found = {key: value.detach() for key, value in piece.items()}
            if (key := different(expected, found, 1e-4)) is not None:
                fix = "take widths from the sampler (max_commits) or the selection (K), and no mean over the batch"
                fail(name, f"writes another {key!r} for a part of a batch than for all of it", fix)


def check_recorded(name: str, component: Any) -> None:
    """What the sampler recorded under the names in ``recorded`` is what it computes under the same policy."""
    w = world()
    fix = "map each key that has an old_ twin to the sampler's key for the same quantity; {} if it records none"
    with attempt(name, "asked for its recorded keys", fix):
        recorded = dict(component.recorded)
    component.ask_for([key for key in recorded if key in component.optional_keys])
    found = outputs(name, component, w)
    used = w.full[SELECTED_WEIGHT] > 0
    for key, source in recorded.items():
        if key not in found or source not in w.full.keys(True, True):
            fail(name, f"maps {key!r} to {source!r} in recorded", fix)
        if source[0] == "token":
            old = pack_tokens(w.full, w.full[source], w.sampler.max_commits)
        else:
            old = gather_steps(w.full[source], w.full[SELECTED_STEP])
        worst = (found[key] - old).abs()[used].max().item()
        if not worst < 1e-3:
            problem = f"writes {key!r} that differs from what the sampler recorded as {source!r} by {worst:.3g}"
            fail(name, problem, "compute the same quantity: temperature, filters, positions; the ratio must start at 1")


CHECKS = (check_policy_gradient, check_samples_independent, check_recorded)
