"""Whether an algorithm's rollouts can be sampled by its collector: what the sampler needs there, and what is stale."""

from __future__ import annotations

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import Plan
from dlmrl_kit.caches.adaptive_refresh import AdaptiveRefresh
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import SELECTED_END, STEP_LOG_PROB


def check_collector(algorithm: Algorithm, plan: Plan) -> None:
    """Refuses a collector that the other components do not go with.

    Args:
        algorithm: the components.
        plan: of them.

    Raises:
        RecipeError: the sampler needs more than the policy; weights are sharded; prompts are shared out by length; the
            cache changes from update to update; or rollouts are of earlier weights, and nothing in the algorithm would
            notice.
    """
    collector, sampler = algorithm.collector, type(algorithm.sampler).__name__
    if collector is None:
        return
    name = type(collector).__name__
    more = [service for service in algorithm.sampler.requires if service != "policy"]
    if more:
        raise RecipeError(
            f"{name} samples where the policy is all that a sampler is given, but {sampler} needs {', '.join(more)}: "
            "leave the slot collector empty"
        )
    if algorithm.trainer.sharding != "none":
        raise RecipeError(
            f"{name} is given whole weights, of which each process holds a part with Trainer.sharding = "
            f"{algorithm.trainer.sharding!r}: set it to 'none', or leave the slot collector empty"
        )
    if algorithm.trainer.assignment != "in_turn":
        raise RecipeError(
            f"{name} may begin a rollout before it is known how long completions are, by which Trainer.assignment = "
            f"{algorithm.trainer.assignment!r} shares prompts out: set it to 'in_turn', or leave the slot collector "
            "empty"
        )
    if isinstance(algorithm.cache, AdaptiveRefresh):
        raise RecipeError(
            f"{name} is told once what to sample with, but AdaptiveRefresh changes it from update to update: set "
            "Algorithm.cache = @DualCache() or @PrefixCache(), or leave the slot collector empty"
        )
    if collector.updates_behind and algorithm.correction is None:
        _check_staleness(algorithm, plan, name)


def _check_staleness(algorithm: Algorithm, plan: Plan, name: str) -> None:
    """Refuses rollouts of earlier weights where no log-probability that the sampler recorded reaches the loss."""
    if plan.old and not plan.computed_old:
        return
    sampler, likelihood = type(algorithm.sampler).__name__, type(algorithm.likelihood).__name__
    behind = f"{name} samples with weights of earlier updates, but"
    if STEP_LOG_PROB not in algorithm.sampler.writes():
        raise RecipeError(f"{behind} {sampler} records no log-probability by which that could be corrected")
    computed = f"{likelihood} computes the old log-probability again, under the present weights"
    reason = computed if plan.old else f"{type(algorithm.loss).__name__} reads no old log-probability"
    whole_only = SELECTED_END in algorithm.likelihood.in_keys
    fitting = "TrajectoryImportance" if whole_only else "TruncatedImportance, TrajectoryImportance"
    raise RecipeError(f"{behind} {reason}: fill the slot correction with {fitting} or Uncorrected (biased)")
