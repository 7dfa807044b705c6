"""Measures bias, scale, cosine and variance of one estimator on one problem, exactly if it can be listed, else sampled.

relative bias = ||E g - grad J|| / ||grad J||          scale s = <E g, grad J> / ||grad J||^2
after scale   = ||E g - s grad J|| / ||E g||           cosine = <E g, grad J> / (||E g|| ||grad J||)

Where grad J is 0 these are not defined, and ||E g|| itself is the bias. g is that of a whole batch; variances and
forwards are given for one group of it, so that batches of any size compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import GradientEstimator
from dlmrl_kit.audit.bank import true_gradient
from dlmrl_kit.audit.enumeration import NOT_LISTED, check_draws, enumerate_trajectories
from dlmrl_kit.audit.estimator import Moments, TooLarge, moments
from dlmrl_kit.audit.on_problem import ExactServices, OnProblem, expected_rewards
from dlmrl_kit.audit.policies import attached
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.audit.sampled import Drawn, drawn_batches, sampled_gradients
from dlmrl_kit.audit.scale import TOLERANCE
from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.keys import COMPLETION_IDS, EXAMPLE, PROBABILITY, REWARD, TRAJECTORY, Key
from dlmrl_kit.samplers.base import Sampler

DRAWS = 2048
"""Samples of each prompt by which the list of trajectories is checked."""
ZERO = 1e-12
"""A norm below this is 0 but for rounding."""


@dataclass(frozen=True)
class Measured:
    """What was measured on one problem.

    Attributes:
        problem: where it was measured.
        relative_bias, scale, relative_bias_after_scale, cosine: see the module docstring; None if grad J is zero.
        variance: trace of the covariance of g, times the groups of a batch.
        relative_variance: variance over ||E g||^2; None if E g is zero.
        step_variance: the same of each step's part of g; None if groups were sampled or run one at a time.
        forwards: expected model forwards of a group; None if groups were sampled.
        groups: how many groups (batches, where a component looks across groups) were listed or sampled.
        interval: 95% confidence interval of ``relative_bias``, or of ``mean_norm`` where grad J is zero, if groups were
            sampled; None if the numbers are exact.
        gradient_norm: ||grad J||.
        mean_norm: ||E g||.
    """

    problem: Problem
    relative_bias: float | None
    scale: float | None
    relative_bias_after_scale: float | None
    cosine: float | None
    variance: float
    relative_variance: float | None
    step_variance: list[float] | None
    forwards: float | None
    groups: int
    interval: tuple[float, float] | None = None
    gradient_norm: float = 0.0
    mean_norm: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether E g is certainly not 0 where grad J is 0: a bias that no relative number shows."""
        return (
            self.relative_bias is None and (self.mean_norm if self.interval is None else self.interval[0]) > TOLERANCE
        )

    @property
    def cost(self) -> float | None:
        """Relative variance times forwards: the relative variance at a budget of one model forward."""
        if self.relative_variance is None or self.forwards is None:
            return None
        return self.relative_variance * self.forwards


@dataclass
class Ground:
    """The ground truth of a problem, with which all estimators of one sampler are compared; call ``prepare`` first.

    Attributes:
        problem, sampler: what it is the truth of.
        group_size: G.
        batches: how many batches to sample where groups cannot be listed.
        seed: of that sampling.
        trajectories: all of the sampler's, with probability and reward; None if it does not list its choices.
        truth: grad J, [P]; None likewise.
        values: the expected reward from each of their states, as ``ExactServices`` takes it; None likewise.
        reasons: why groups were sampled.
        cached: trajectories and values with a cache, by cache.
        drawn: batches that were sampled because groups cannot be listed, by cache.
        groups: of a batch.
    """

    problem: Problem
    sampler: Sampler
    group_size: int
    batches: int
    seed: int
    trajectories: TensorDict | None = None
    truth: Tensor | None = None
    values: Tensor | None = None
    reasons: list[str] = field(default_factory=list)
    cached: dict[Cache, tuple[TensorDict, Tensor]] = field(default_factory=dict)
    drawn: dict[Cache | None, list[Drawn]] = field(default_factory=dict)
    groups: int = 1

    def prepare(self) -> Ground:
        """Lists the trajectories and differentiates J; returns itself.

        Raises:
            AuditError: the sampler contradicts its own log-probability.
        """
        attached(self.sampler, self.problem.denoiser)
        try:
            self.trajectories, self.values = self._list()
        except NotImplementedError as error:
            self.reasons.append(str(error))
            return self
        self.truth = true_gradient(self.trajectories, self.problem, self.sampler)
        return self

    def _list(self, cache: Cache | None = None) -> tuple[TensorDict, Tensor]:
        """Lists all trajectories of the sampler; also computes the expected reward from each of their states."""
        policy, prompts = self.problem.denoiser, self.problem.batch()
        keys = [key for key in self.sampler.optional_keys if key not in NOT_LISTED]
        listed = enumerate_trajectories(self.sampler, policy, prompts, keys=keys, cache=cache)
        check_draws(self.sampler, policy, prompts, listed, DRAWS, cache)
        listed.set(REWARD, self.problem.score(listed[COMPLETION_IDS], listed[EXAMPLE]))
        listed.set(TRAJECTORY, torch.arange(len(listed)))
        return listed, expected_rewards(listed, policy.mask_id)

    def listed(self, cache: Cache | None) -> tuple[TensorDict, Tensor]:
        """Returns all trajectories as they are sampled with a cache, and the expected reward from each of their states.

        Raises:
            AuditError: the sampler contradicts its own log-probability.
        """
        assert self.trajectories is not None
        assert self.values is not None
        if cache is None:
            return self.trajectories, self.values
        if cache not in self.cached:
            self.cached[cache] = self._list(cache)
        return self.cached[cache]

    def services(self, small: OnProblem) -> tuple[TensorDict, ExactServices]:
        """Returns what the sampler records for an estimator on every trajectory, and services for its components."""
        trajectories, values = self.listed(small.estimator.cache)
        written = (*small.plan.sampler.writes, *self.problem.batch().keys())
        listed = trajectories.select(*written, PROBABILITY, REWARD, TRAJECTORY)
        return listed, ExactServices(self.problem, small.estimator.sampler, values)

    def measure(self, estimator: GradientEstimator) -> Measured:
        """Measures an estimator against grad J.

        Args:
            estimator: its sampler must be the one of this ground.

        Raises:
            RecipeError: its components do not fit together.
        """
        small = OnProblem(estimator, self.problem)
        unlisted = self.unlisted(small)
        if unlisted:
            self._because(f"what {small.plan.sampler.name} writes as {unlisted[0]!r} cannot be listed sample by sample")
        if unlisted or self.trajectories is None:
            return self._sampled(small)
        listed, services = self.services(small)
        try:
            return self._exact(moments(small, services, listed, self.group_size, self.groups))
        except (NotImplementedError, TooLarge) as error:
            self._because(str(error))
            return self._sampled(small)

    def unlisted(self, small: OnProblem) -> list[Key]:
        """Returns the keys that the estimator's sampler records but that cannot be listed sample by sample."""
        written = {*small.plan.sampler.writes}
        of_actions = written if self.trajectories is None else {*self.trajectories.keys(True, True)}
        return sorted(written - (of_actions - NOT_LISTED), key=str)

    def _because(self, reason: str) -> None:
        """Notes why groups are sampled."""
        if reason not in self.reasons:
            self.reasons.append(reason)

    def _exact(self, found: Moments) -> Measured:
        assert self.truth is not None
        variance = self.groups * max(found.second - float(found.mean @ found.mean), 0.0)
        steps = None
        if found.step_mean is not None and found.step_second is not None:
            per_step = found.step_second - found.step_mean.square().sum(-1)
            steps = (self.groups * per_step.clamp(min=0)).tolist()
        numbers = _compare(found.mean, self.truth)
        norm = float(found.mean @ found.mean)
        relative = variance / norm if norm > ZERO**2 else None
        return Measured(
            self.problem,
            *numbers,
            variance,
            relative,
            steps,
            found.forwards,
            found.tuples,
            None,
            float(self.truth.norm()),
            math.sqrt(norm),
        )

    def _sampled(self, small: OnProblem) -> Measured:
        sizes, estimator = (self.group_size, self.batches, self.seed, self.groups), small.estimator
        if estimator.cache not in self.drawn:
            self.drawn[estimator.cache] = drawn_batches(estimator, self.problem, *sizes)
        found = sampled_gradients(small, *sizes, self.drawn[estimator.cache])
        bias, noise = found.bias(self.truth)
        truth = found.exact.mean(0) if self.truth is None else self.truth
        mean = truth + bias
        norm = float(truth.norm())
        zero = norm < ZERO
        unit = 1.0 if zero else norm
        low, middle, high = (end / unit for end in interval(bias, noise))
        _, scale, after, cosine = _compare(mean, truth)
        signal = float(mean @ mean)
        return Measured(
            self.problem,
            None if zero else middle,
            scale,
            after,
            cosine,
            found.variance,
            found.variance / signal if signal > ZERO**2 else None,
            None,
            None,
            len(found.own) * self.groups,
            (low, high),
            norm,
            middle if zero else math.sqrt(signal),
        )


def interval(mean: Tensor, noise: Tensor) -> tuple[float, float, float]:
    """Estimates the norm of an expectation.

    Args:
        mean: an unbiased estimate of it, [P].
        noise: the covariance of its error, [P, P].

    Returns:
        The lower end of the 95% confidence interval, the estimate and the upper end.
    """
    squared = float(mean @ mean - noise.trace())
    spread = math.sqrt(float(4 * mean @ noise @ mean + 2 * noise.square().sum()))
    low, middle, high = (math.sqrt(max(squared + c * spread, 0.0)) for c in (-1.96, 0, 1.96))
    return low, middle, high


def _compare(mean: Tensor, truth: Tensor) -> tuple[float | None, float | None, float | None, float | None]:
    """Computes relative bias, scale, relative bias after scale and cosine; all None if the truth is zero."""
    norm, own = float(truth.norm()), float(mean.norm())
    if norm < ZERO:
        return None, None, None, None
    scale = float(mean @ truth) / norm**2
    bias = float((mean - truth).norm()) / norm
    if own < ZERO * norm:
        return bias, 0.0, 1.0, 0.0
    return bias, scale, float((mean - scale * truth).norm()) / own, float(mean @ truth) / (own * norm)
