"""Checks of value models: parameters of their own, gradients, independence of samples."""

from __future__ import annotations

import torch

from dlmrl_kit.core.keys import SELECTED_VALUE
from dlmrl_kit.testing.core import fail
from dlmrl_kit.testing.likelihoods import check_samples_independent
from dlmrl_kit.testing.running import inputs, run
from dlmrl_kit.testing.world import world
from dlmrl_kit.values.base import Value


def check_own_parameters(name: str, component: Value) -> None:
    """Attached to a policy, it has parameters of its own, none of them the policy's."""
    policy = world().policy
    component.attach(policy)
    own = [p for p in component.parameters() if p.requires_grad]
    if not own:
        fix = "create the module in attach(policy) and keep it as an attribute: self.head = torch.nn.Linear(...)"
        fail(name, "has no trainable parameters after attach(policy)", fix)
    theirs = {id(p) for p in policy.parameters()}
    if any(id(p) in theirs for p in own):
        fix = "keep modules of its own only; the policy comes with each call"
        fail(name, "holds parameters of the policy, which would be trained twice", fix)


def check_value_gradient(name: str, component: Value) -> None:
    """The values are finite, with a finite gradient that reaches its own parameters."""
    w = world()
    found = run(name, component, inputs(name, component, w), w)[SELECTED_VALUE]
    own = [p for p in component.parameters() if p.requires_grad]
    fix = "compute the values with the modules that attach made, and detach none of them"
    if not found.isfinite().all():
        fail(name, "writes values that are not finite", "replace padding before any arithmetic (torch.where)")
    if not found.requires_grad:
        fail(name, f"writes {SELECTED_VALUE!r} without gradient", fix)
    gradient = [g for g in torch.autograd.grad(found.sum(), own, allow_unused=True) if g is not None] if own else []
    if not all(g.isfinite().all() for g in gradient):
        fail(name, f"has a gradient of {SELECTED_VALUE!r} that is not finite", "mask before exp and log")
    if not any(g.abs().max() > 0 for g in gradient):
        fail(name, f"writes {SELECTED_VALUE!r} whose gradient does not reach its own parameters", fix)


CHECKS = (check_own_parameters, check_value_gradient, check_samples_independent)
