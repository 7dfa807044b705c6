r"""Regularisers in the audit: how large the expected gradient of each is, and whether it is that of the KL it names.

A KL is compared with the one of whole actions, the states held fixed and summed over the selected steps,

    KL = E[ sum_k w_k sum_a pi(a | s_k) log(pi(a | s_k) / reference(a | s_k)) ],

differentiated in the inner sum alone. The reference is a small random step away from the policy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.audit.bank import select
from dlmrl_kit.audit.enumeration import NOT_LISTED, actions, repeated
from dlmrl_kit.audit.measure import ZERO, Ground
from dlmrl_kit.audit.pipeline import ExactServices, descended, under_policy
from dlmrl_kit.audit.policies import SmallPolicy
from dlmrl_kit.audit.scale import TOLERANCE
from dlmrl_kit.audit.variants import exact_algorithm, swapped
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import GROUP, SELECTED_END, SELECTED_STEP, SELECTED_WEIGHT, STEP_VALID
from dlmrl_kit.core.trajectory import every_step
from dlmrl_kit.corrections.apply import corrected
from dlmrl_kit.likelihoods.base import replay

REFERENCE_SHIFT = 0.1
"""How far the reference policy is from the policy: standard deviation of a change of its weights."""

FORWARD = "that of KL(policy || reference)"
REVERSE = "that of KL(reference || policy), the reverse"
NOTHING = "none: it measures the KL, it does not descend it"
OTHER = "neither that of KL(policy || reference) nor of its reverse"
NO_KL = "not of a KL to the reference: only its size is measured"


@dataclass(frozen=True)
class RegulariserAudit:
    """``size``: norm of the expected gradient over ||grad J||. ``relative_bias``: its distance from the gradient of
    KL(policy || reference), times the coefficient, over the norm of that; None for what is no KL to the reference.
    ``words``: what its expected gradient is.
    """

    size: float
    relative_bias: float | None
    words: str

    def to_json(self) -> dict[str, Any]:
        """As a dictionary."""
        return dict(vars(self))


def audit_regularisers(algorithm: Algorithm, ground: Ground) -> dict[str, RegulariserAudit]:
    """Each regulariser of an algorithm, by name, with a number where two have the same.

    Args:
        algorithm: of the problem's size.
        ground: prepared; nothing is measured where trajectories could not be listed.
    """
    unlisted = NOT_LISTED.intersection(algorithm.sampler.written_keys())
    if not algorithm.regularisers or ground.trajectories is None or unlisted:
        return {}
    with reference_nearby(ground.problem.denoiser, ground.seed):
        try:
            found = [_audit(algorithm, ground, term) for term in algorithm.regularisers]
        except NotImplementedError:  # a selector that does not list its outcomes
            return {}
    names: dict[str, RegulariserAudit] = {}
    for term, audit in zip(algorithm.regularisers, found, strict=True):
        name, number = type(term).__name__, 1
        while name in names:
            number += 1
            name = f"{type(term).__name__}/{number}"
        names[name] = audit
    return names


@contextlib.contextmanager
def reference_nearby(policy: SmallPolicy, seed: int) -> Iterator[None]:
    """Within the context, the reference policy is a random step of ``REFERENCE_SHIFT`` away from the policy."""
    generator = torch.Generator().manual_seed(seed)
    assert policy._reference is not None
    with torch.no_grad():
        for p in policy._reference.parameters():
            p.add_(REFERENCE_SHIFT * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    try:
        yield
    finally:
        policy.freeze_reference()


def _audit(algorithm: Algorithm, ground: Ground, term: Any) -> RegulariserAudit:
    own = _Expected(algorithm, ground, term)
    truth = float(ground.truth.norm()) if ground.truth is not None else 0.0
    size = float(own.gradient.norm()) / truth if truth > ZERO else 0.0
    if not any(isinstance(key, tuple) and key[-1].startswith("ref_") for key in term.in_keys):
        return RegulariserAudit(size, None, NO_KL)
    forward, reverse = own.kl_gradients()
    norm = float(forward.norm())
    if norm < ZERO:
        return RegulariserAudit(size, None, "undefined: the KL has no gradient here")
    bias = float((own.gradient - forward).norm()) / norm
    words = _words(own.gradient, forward, reverse)
    if words == OTHER and (alone := _alone(algorithm, ground, term)) not in ("", OTHER):
        words = f"{OTHER}; among exact components {alone}"
    return RegulariserAudit(size, bias, words)


def _alone(algorithm: Algorithm, ground: Ground, term: Any) -> str:
    """What its gradient is among exact components; empty where it does not fit them."""
    try:
        own = _Expected(exact_algorithm(algorithm.sampler, [term]), ground, term)
    except RecipeError:
        return ""
    return _words(own.gradient, *own.kl_gradients())


def _words(gradient: Tensor, forward: Tensor, reverse: Tensor) -> str:
    if float(gradient.norm()) < TOLERANCE * float(forward.norm()):
        return NOTHING
    for kl, words in ((forward, FORWARD), (reverse, REVERSE)):
        if float((gradient - kl).norm()) < TOLERANCE * float(kl.norm()):
            return words
    return OTHER


class _Expected:
    """The expected gradient of a term, [P], over all trajectories and all choices of the selector."""

    def __init__(self, algorithm: Algorithm, ground: Ground, term: Any) -> None:
        problem, self.policy, self.term = ground.problem, ground.problem.denoiser, term
        whole = swapped(algorithm, regulariser=[term])
        self.sampler = whole.sampler
        trajectories, values = ground.listed(whole)
        services = ExactServices(problem, self.sampler, values)
        wanted = {*self.sampler.written_keys(), *problem.batch().keys(), "probability", "reward", "trajectory"}
        bank = select(whole, services, trajectories.select(*wanted))
        self.rows, self.share = bank.rows, bank.probability / problem.prompts
        batch = self.rows.copy()
        if set(term.in_keys) & set(whole.advantage.written_keys()):
            if GROUP in whole.advantage.in_keys:
                raise NotImplementedError(
                    f"{type(term).__name__} reads what {type(whole.advantage).__name__} makes of groups"
                )
            batch = services.call(whole.advantage, batch)
        batch = under_policy(whole, services, corrected(batch))
        terms = [descended(term(batch[i : i + 1])) for i in range(len(batch))]
        self.gradient = self.policy.flat_gradient((torch.stack(terms) * self.share).sum())

    def kl_gradients(self) -> tuple[Tensor, Tensor]:
        """Gradients of KL(policy || reference) and KL(reference || policy), times the coefficient, [P] each.

        Where the reference can do what the policy cannot, the second one leaves that out: no sample shows it.
        """
        new, old, weight = self._action_log_probs()
        scale = float(getattr(self.term, "coefficient", 1.0)) * weight
        forward, reverse = new.exp() * (new - old) * scale, old.exp() * (old - new) * scale
        return self.policy.flat_gradient(forward.sum(), retain=True), self.policy.flat_gradient(reverse.sum())

    def _action_log_probs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability of every action in every selected state: policy (with gradient), reference; weight; [n]."""
        rows = every_step(self.rows).set(SELECTED_WEIGHT, self._step_weights())
        steps = replay(rows, self.policy.mask_id)
        weight = (rows[SELECTED_WEIGHT] * self.share[:, None])[steps.slots]
        source, decision, new = actions(
            self.sampler, self.sampler.view(self.policy, steps.prompt, steps.ids), self.policy
        )
        with torch.no_grad(), self.policy.reference():
            other = self.sampler.view(self.policy, steps.prompt, steps.ids)
            old = self.sampler.action_log_prob(repeated(other, source), decision)
        return new, old, weight[source]

    def _step_weights(self) -> Tensor:
        """Weight of each step: the sum over the slots that stand for it, [N, T]."""
        rows, time = self.rows, torch.arange(self.rows[STEP_VALID].shape[1])
        step, weight = rows[SELECTED_STEP][..., None], rows[SELECTED_WEIGHT][..., None]
        end = rows.get(SELECTED_END, rows[SELECTED_STEP] + 1)[..., None]
        return (weight * ((step <= time) & (time < end))).sum(1) * rows[STEP_VALID]


def combined(audits: list[RegulariserAudit]) -> RegulariserAudit:
    """Means over several problems; in words, what holds on all of them."""
    words = dict.fromkeys(audit.words for audit in audits)
    inexact = [text for text in words if text.startswith(OTHER)]
    biases = [audit.relative_bias for audit in audits if audit.relative_bias is not None]
    return RegulariserAudit(
        sum(audit.size for audit in audits) / len(audits),
        sum(biases) / len(biases) if biases else None,
        inexact[0] if inexact else next(iter(words)),
    )
