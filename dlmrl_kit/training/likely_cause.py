"""Guesses why recorded and recomputed log-probabilities differ: changes one thing at a time until they agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.behaviour import Behaviour
from dlmrl_kit.core.finite import distance
from dlmrl_kit.core.keys import COMMIT_STEP, COMPLETION_IDS, PROMPT_MASK, STEP_LOG_PROB, STEP_VALID
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.likelihoods.steps import replay
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.training.recompute import Actions, recomputed, views

LOOKED_AT = 8
"""The most actions that are computed again."""
LEFT = 0.25
"""The share of the difference that a change may leave if it is to be the cause."""
TEMPERATURES = [step / 20 for step in range(2, 41)]
TOP_P = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1.0]
TOP_K = [0, 1, 2, 5, 10, 20, 40, 50, 64, 100]
WEIGHTS = "other weights: stale, not loaded, of another model or in another precision"
BATCH = "rounding: without the other actions they agree; experts are chosen otherwise in bfloat16, or confidences tie"


def likely_cause(trajectory: TensorDictBase, actions: Actions, policy: Policy, sampler: Sampler, allowed: float) -> str:
    """Says in a few words why the log-probabilities of actions are not those recorded.

    Args:
        trajectory: [B], what was recorded.
        actions: that differ.
        policy, sampler: what they are recomputed with.
        allowed: how far (nats) two values may be apart.

    Returns:
        The one change, among rounded numbers, another temperature or filter, tokens or steps shifted by a position and
        padding that is attended to, with which the actions agree; that it is rounding, if they agree without a change
        once they are computed without the rest; if there is none, that the weights are others.
    """
    recorded = trajectory[STEP_LOG_PROB]
    rounded = _rounded(recorded[trajectory[STEP_VALID]])
    if rounded is not None:
        return rounded
    actions = actions.at(slice(LOOKED_AT))
    wanted = recorded[actions.sample, actions.step]
    batch = actions.of(trajectory)
    with torch.no_grad():
        before = _apart(recomputed(batch, policy, sampler, [STEP_LOG_PROB])[STEP_LOG_PROB], wanted)
        if before <= allowed:
            return BATCH
        changes = {**dict(_shifted(batch, policy, sampler)), **_distributions(batch, policy, sampler)}
    left, name = min(((_apart(values, wanted), name) for name, values in changes.items()), default=(before, ""))
    return name if left <= max(allowed, LEFT * before) else WEIGHTS


def _apart(values: Tensor, wanted: Tensor) -> float:
    return float(distance(values, wanted).mean())


def _rounded(recorded: Tensor) -> str | None:
    """Says which dtype of less precision the numbers have been in; None: none."""
    for dtype in (torch.bfloat16, torch.float16):
        if bool((recorded != 0).any()) and torch.equal(recorded.to(dtype).to(recorded), recorded):
            return f"log-probabilities were rounded to {dtype}: compute and send them in float32"
    return None


def _shifted(batch: TensorDictBase, policy: Policy, sampler: Sampler) -> Iterator[tuple[str, Tensor]]:
    """Yields what else the actions may have been, by name, with their log-probabilities."""
    for by, way in ((1, "left"), (-1, "right")):
        tokens = batch.copy().set(COMPLETION_IDS, batch[COMPLETION_IDS].roll(by, 1))
        yield f"tokens are shifted by one position to the {way}", _log_probs(tokens, policy, sampler)
        steps = batch.copy().set(COMMIT_STEP, batch[COMMIT_STEP].roll(by, 1))
        yield f"commit steps are shifted by one position to the {way}", _log_probs(steps, policy, sampler)
    if not bool(batch[PROMPT_MASK].all()):
        unmasked = batch.copy().set(PROMPT_MASK, torch.ones_like(batch[PROMPT_MASK]))
        yield "left padding of prompts was not masked", _log_probs(unmasked, policy, sampler)


def _log_probs(batch: TensorDictBase, policy: Policy, sampler: Sampler) -> Tensor:
    steps = replay(batch, policy.mask_id)
    committed = steps.decision.committed
    if bool((committed & ~sampler.asked_positions(policy, steps.prompt, steps.ids)).any()) or not bool(committed.any()):
        return torch.full((len(batch),), torch.inf, device=committed.device)  # the sampler takes no such action
    return recomputed(batch, policy, sampler, [STEP_LOG_PROB])[STEP_LOG_PROB]


def _distributions(batch: TensorDictBase, policy: Policy, sampler: Sampler) -> dict[str, Tensor]:
    """Returns the log-probabilities of the actions under other behaviour distributions, by name."""
    own = sampler.behaviour
    temperatures = [t for t in TEMPERATURES if t != own.temperature]
    others = {f"temperature {t:g} instead of {own.temperature:g}": replace(own, temperature=t) for t in temperatures}
    others |= {f"top_p {p:g} instead of {own.top_p:g}": replace(own, top_p=p) for p in TOP_P if p != own.top_p}
    others |= {f"top_k {k} instead of {own.top_k}": replace(own, top_k=k) for k in TOP_K if k != own.top_k}
    others["log-probabilities at temperature 1 without filters"] = Behaviour()
    found: dict[str, list[Tensor]] = {name: [] for name in others}
    for _, view, decision in views(replay(batch, policy.mask_id), policy, sampler):
        for name, behaviour in others.items():
            found[name].append(sampler.action_log_prob(replace(view, behaviour=behaviour), decision))
    return {f"sampled with {name}": torch.cat(values) for name, values in found.items()}
