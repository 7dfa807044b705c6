r"""Audits regularisers: how large the expected gradient of each is, and whether it is the gradient of a KL.

It is compared with the gradient of the KL of whole actions in the selected states,

    KL = E[ sum_k w_k sum_a pi(a | s_k) log(pi(a | s_k) / reference(a | s_k)) ],

where only the inner sum is differentiated: the states are held fixed. The reference is a small random step away from
the policy.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import GradientEstimator, Swaps
from dlmrl_kit.algorithm.dataflow import is_twin
from dlmrl_kit.audit.actions import actions, repeated
from dlmrl_kit.audit.bank import select
from dlmrl_kit.audit.exact import exact_estimator
from dlmrl_kit.audit.measure import ZERO, Ground
from dlmrl_kit.audit.on_problem import OnProblem
from dlmrl_kit.audit.scale import TOLERANCE
from dlmrl_kit.audit.variants import swapped
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import GROUP, SELECTED_END, SELECTED_STEP, SELECTED_WEIGHT, STEP_VALID
from dlmrl_kit.core.trajectory import every_step
from dlmrl_kit.likelihoods.steps import replay
from dlmrl_kit.losses.base import Term
from dlmrl_kit.samplers.mask import MaskSampler
from dlmrl_kit.training.gradient import loss_of

REFERENCE_SHIFT = 0.1
"""How far the reference policy is from the policy: the standard deviation of the change of each weight."""

FORWARD = "that of KL(policy || reference)"
REVERSE = "that of KL(reference || policy), the reverse"
NOTHING = "none: it measures the KL, it does not minimise it"
OTHER = "neither that of KL(policy || reference) nor of its reverse"
NO_KL = "not of a KL to the reference: only its size is measured"


@dataclass(frozen=True)
class RegulariserAudit:
    """What was found of one regulariser.

    Attributes:
        size: norm of its expected gradient over ||grad J||.
        relative_bias: distance of its expected gradient from that of KL(policy || reference) times its coefficient,
            over the norm of the latter; None if it is no KL to the reference.
        words: says what its expected gradient is.
    """

    size: float
    relative_bias: float | None
    words: str

    def to_json(self) -> dict[str, float | str | None]:
        """Returns all fields for JSON."""
        return dataclasses.asdict(self)


def audit_regularisers(estimator: GradientEstimator, ground: Ground) -> dict[str, RegulariserAudit]:
    """Audits each regulariser of an estimator.

    Args:
        estimator: scaled to the problem.
        ground: of the problem, prepared.

    Returns:
        The findings by class name, with a number where two have the same; empty if trajectories, actions or selections
        cannot be listed.
    """
    if not estimator.regularisers or ground.trajectories is None:
        return {}
    if ground.unlisted(OnProblem(estimator, ground.problem)):
        return {}
    with ground.problem.denoiser.shifted_reference(REFERENCE_SHIFT, ground.seed):
        try:
            found = [_audit(estimator, ground, term) for term in estimator.regularisers]
        except NotImplementedError:  # a selector or sampler that does not list its outcomes
            return {}
    names: dict[str, RegulariserAudit] = {}
    for term, audit in zip(estimator.regularisers, found, strict=True):
        name, number = type(term).__name__, 1
        while name in names:
            number += 1
            name = f"{type(term).__name__}/{number}"
        names[name] = audit
    return names


def _audit(estimator: GradientEstimator, ground: Ground, term: Term) -> RegulariserAudit:
    own = _Expected(swapped(estimator, Swaps(regulariser=[term])), ground, term)
    truth = float(ground.truth.norm()) if ground.truth is not None else 0.0
    size = float(own.gradient.norm()) / truth if truth > ZERO else 0.0
    if not any(is_twin(key, "ref_") for key in term.in_keys):
        return RegulariserAudit(size, None, NO_KL)
    forward, reverse = own.kl_gradients()
    norm = float(forward.norm())
    if norm < ZERO:
        return RegulariserAudit(size, None, "undefined: the KL has no gradient here")
    bias = float((own.gradient - forward).norm()) / norm
    words = _words(own.gradient, forward, reverse)
    if words == OTHER and (alone := _alone(estimator, ground, term)) not in ("", OTHER):
        words = f"{OTHER}; among exact components {alone}"
    return RegulariserAudit(size, bias, words)


def _alone(estimator: GradientEstimator, ground: Ground, term: Term) -> str:
    """Says what the gradient of a regulariser is among exact components; "" if it does not fit them."""
    try:
        own = _Expected(exact_estimator(estimator.sampler, Swaps(regulariser=[term])), ground, term)
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
    """Computes the expected gradient of a regulariser, [P], over all trajectories and all choices of the selector.

    Args:
        estimator: has this one regulariser.
        ground: of the problem, prepared.
        term: the regulariser.

    Raises:
        NotImplementedError: selections cannot be listed, or the regulariser reads an advantage that compares samples.
    """

    def __init__(self, estimator: GradientEstimator, ground: Ground, term: Term) -> None:
        self.small = small = OnProblem(estimator, ground.problem)
        self.term = term
        listed, services = ground.services(small)
        bank = select(small, services, listed)
        self.rows, self.share = bank.rows, bank.probability / ground.problem.prompts
        batch = self.rows.copy()
        advantage = small.advantage
        if set(term.in_keys) & set(advantage.writes):
            if GROUP in advantage.reads:
                raise NotImplementedError(f"{type(term).__name__} reads what {advantage.name} makes of groups")
            batch = services.call(advantage.component, batch, advantage.keys)
        batch = small.log_probs.live(small.weighed(batch))
        terms = [loss_of(term(batch[i : i + 1])) for i in range(len(batch))]
        self.gradient = small.parameters.gradient((torch.stack(terms) * self.share).sum())

    def kl_gradients(self) -> tuple[Tensor, Tensor]:
        """Computes the gradients of KL(policy || reference) and of its reverse, times the coefficient, [P] each.

        The reverse leaves out actions that only the reference can take, as no sample of the policy shows them.
        """
        new, old, weight = self._action_log_probs()
        scale = self.term.factor * weight
        forward, reverse = new.exp() * (new - old) * scale, old.exp() * (old - new) * scale
        gradient = self.small.parameters.gradient
        return gradient(forward.sum(), retain=True), gradient(reverse.sum())

    def _action_log_probs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lists every action in every selected state.

        Returns:
            Log-probabilities under the policy, with gradient, and under the reference, and weights, [n] each.
        """
        policy, sampler = self.small.policy, self.small.estimator.sampler
        if not isinstance(sampler, MaskSampler):
            raise NotImplementedError(f"the actions of {type(sampler).__name__} are not listed state by state")
        rows = every_step(self.rows).set(SELECTED_WEIGHT, self._step_weights())
        steps = replay(rows, policy.mask_id)
        weight = (rows[SELECTED_WEIGHT] * self.share[:, None])[steps.used]
        source, decision, new = actions(sampler, sampler.view(policy, steps.prompt, steps.ids), policy)
        with torch.no_grad(), policy.reference():
            other = sampler.view(policy, steps.prompt, steps.ids)
            old = sampler.action_log_prob(repeated(other, source), decision)
        return new, old, weight[source]

    def _step_weights(self) -> Tensor:
        """Sums the weights of the segments that each step is in: [N, T]."""
        rows, time = self.rows, torch.arange(self.rows[STEP_VALID].shape[1])
        step, weight = rows[SELECTED_STEP][..., None], rows[SELECTED_WEIGHT][..., None]
        end = rows.get(SELECTED_END, rows[SELECTED_STEP] + 1)[..., None]
        return (weight * ((step <= time) & (time < end))).sum(1) * rows[STEP_VALID]


def combined(audits: list[RegulariserAudit]) -> RegulariserAudit:
    """Averages the findings on several problems; the words are those of one where it is no KL's, if any."""
    words = dict.fromkeys(audit.words for audit in audits)
    inexact = [text for text in words if text.startswith(OTHER)]
    biases = [audit.relative_bias for audit in audits if audit.relative_bias is not None]
    return RegulariserAudit(
        sum(audit.size for audit in audits) / len(audits),
        sum(biases) / len(biases) if biases else None,
        inexact[0] if inexact else next(iter(words)),
    )
