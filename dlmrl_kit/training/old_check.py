"""Checks before the first update that old and new log-probabilities agree, so that their ratio starts at 1."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import GradientEstimator
from dlmrl_kit.algorithm.dataflow import plain_key
from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.errors import TrainingError
from dlmrl_kit.core.finite import distance
from dlmrl_kit.core.keys import SELECTED_STEP, SELECTED_WEIGHT, STEP_LOG_PROB
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.trajectory import gather_steps
from dlmrl_kit.training.gradient import LogProbs
from dlmrl_kit.training.recompute import of_selection

SHARE = 0.01
"""Share of the selected steps that may disagree. Where confidences tie, rounding in another batch can turn a step."""


def tolerance(log_probs: LogProbs) -> float:
    """Returns how far (nats) rounding may move recorded and recomputed log-probabilities apart."""
    full = all(p.dtype in (torch.float32, torch.float64) for p in log_probs.policy.parameters())
    return 1e-3 if full and log_probs.precision == "float32" else 0.1


def too_many(wrong: int, number: int, largest: float) -> bool:
    """Tells whether some actions differ more than rounding explains.

    That is where more than ``SHARE`` of them do (one is allowed among fewer than a hundred, too, unless it is half of
    them), and where a single difference is not finite.

    Args:
        wrong: how many differ by more than is allowed.
        number: how many were compared.
        largest: difference of all, in nats.
    """
    return wrong > max(SHARE * number, 1) or (wrong > 0 and 2 * wrong >= number) or not math.isfinite(largest)


def check_old(
    trajectory: TensorDictBase,
    algorithm: GradientEstimator,
    cache: Cache | None,
    log_probs: LogProbs,
    processes: Processes = ALONE,
) -> float:
    """Compares recorded with recomputed log-probabilities before the first update.

    Args:
        trajectory: a rollout with old log-probabilities; empty in a process that has none.
        algorithm: the components.
        cache: that was sampled with.
        log_probs: computes the log-probabilities again.
        processes: whose rollouts are checked together.

    Returns:
        The largest difference, in nats, among the selected steps of the first micro-batch of each process.

    Raises:
        TrainingError: more steps disagree than rounding explains, so that ratios would not start at 1.
    """
    allowed, found = tolerance(log_probs), dict[str, tuple[float, int, int]]()
    with log_probs.policy.in_step():
        both = _both(trajectory, algorithm, cache, log_probs) if len(trajectory) else ()
        for again, before, used, says in both:
            difference = distance(again, before)[used]
            if difference.numel():
                disagree = int((difference > allowed).sum())
                found[says] = difference.max().item(), disagree, difference.numel()
    everyone = processes.gather(found)
    for says in dict.fromkeys(itertools.chain(*everyone)):
        differences, wrong, number = zip(*(own[says] for own in everyone if says in own), strict=True)
        if too_many(sum(wrong), sum(number), max(differences)):
            share = sum(wrong) / sum(number)
            raise TrainingError(
                f"old and new log-probabilities disagree before the first update: {share:.0%} of the selected "
                f"steps differ by more than {allowed:g} (largest {max(differences):.3g}). {says}"
            )
    return max((one for own in everyone for one, _, _ in own.values()), default=0.0)


def _both(
    trajectory: TensorDictBase, algorithm: GradientEstimator, cache: Cache | None, log_probs: LogProbs
) -> Iterator[tuple[Tensor, Tensor, Tensor, str]]:
    """Yields what to compare: values computed again, those before, where they count, and what is wrong if they differ.

    With a correction, the distribution that was sampled from is compared, too. That runs the cached model, which stores
    keys and values of whole states, so only a few samples are taken.
    """
    sampler, policy, size = algorithm.sampler, log_probs.policy, log_probs.size
    name, likelihood = type(sampler).__name__, type(algorithm.likelihood).__name__
    if algorithm.correction is not None:
        micro = trajectory[: max(size // trajectory[SELECTED_WEIGHT].shape[1], 1)].copy()
        recorded = gather_steps(micro[STEP_LOG_PROB], micro[SELECTED_STEP])
        with log_probs.autocast(), sampler.sampling_from(policy, cache):
            again = of_selection(micro, policy, sampler, [STEP_LOG_PROB])[STEP_LOG_PROB]
        says = f"the distribution it samples from does not compute what {name} recorded as {STEP_LOG_PROB}"
        yield again, recorded, micro[SELECTED_WEIGHT] > 0, says
    known = {key: source for key, source in log_probs.plan.old.items() if source is not None}
    if not known:
        return
    micro = trajectory[:size].copy()
    with torch.no_grad(), log_probs.autocast():
        estimated = log_probs.run(micro)
    used = estimated[SELECTED_WEIGHT] > 0
    for key, source in known.items():
        by = f"{name} recorded" if algorithm.correction is None else f"{name} computes for the correction"
        yield estimated[plain_key(key)], estimated[key], used, f"{likelihood} does not compute what {by} as {source}"
