"""Exact step log-probability: the sampler's own action log-probability, order term included (theory 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlmrl_kit.core.behaviour import entropy
from dlmrl_kit.core.keys import PROMPT_IDS, PROMPT_MASK, SELECTED_ENTROPY, SELECTED_LOG_PROB, STEP_LOG_PROB, Key
from dlmrl_kit.core.registry import register
from dlmrl_kit.likelihoods.base import Likelihood, Replay
from dlmrl_kit.likelihoods.head import recomputed
from dlmrl_kit.policies.base import Policy, completion_features
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.blocks import block_offset
from dlmrl_kit.samplers.parts import parts
from dlmrl_kit.samplers.view import Decision, View


@register("likelihood", unbiased=True, under="any sampler of the kit")
class StepLogProb(Likelihood):
    """log pi(x_{t+1} | x_t) of the sampler that generated the trajectory, one forward per selected step.

    Reads the trajectory and ``("selected", "step")``, ``("selected", "weight")``; writes ``("selected", "log_prob")``
    [B, K], on demand ``("selected", "entropy")`` [B, K].
    """

    optional_keys = (SELECTED_ENTROPY,)

    @property
    def recorded(self) -> dict[Key, Key]:
        """The sampler records exactly this log-probability."""
        return {SELECTED_LOG_PROB: STEP_LOG_PROB}

    def estimate(self, steps: Replay, policy: Policy, sampler: Sampler) -> dict[Any, Tensor]:
        """Predictions at every position the sampler could have committed, then its own ``action_log_prob``."""
        keys: list[Any] = [SELECTED_LOG_PROB, *self.asked]
        found = self._in_pieces(steps, policy, sampler) if type(sampler).view is Sampler.view else []
        if len(found) <= 1:  # one piece holds all; a sampler with a view of its own is not cut
            found = [self._score(sampler.view(policy, steps.prompt, steps.ids), steps.decision, sampler)]
        return {key: torch.cat(values) for key, values in zip(keys, zip(*found, strict=True), strict=True)}

    def _in_pieces(self, steps: Replay, policy: Policy, sampler: Sampler) -> list[tuple[Tensor, ...]]:
        """What ``_score`` gives for each piece of the states whose logits fit in memory; nothing for a single piece."""
        prompt_ids, prompt_mask = steps.prompt[PROMPT_IDS], steps.prompt[PROMPT_MASK]
        allowed = sampler.allowed(steps.ids == policy.mask_id, block_offset(policy, prompt_mask))
        pieces = list(parts(allowed.sum(-1), policy.vocab_size))
        if len(pieces) <= 1:
            return []
        features = completion_features(policy, prompt_ids, prompt_mask, steps.ids, allowed)

        def score(rows: slice) -> Any:
            decision = steps.decision.at(rows)
            return lambda own, positions: self._score(sampler.seen(policy, own, positions), decision, sampler)

        return [recomputed(score(rows), features[place], allowed[rows]) for rows, place in pieces]

    def _score(self, view: View, decision: Decision, sampler: Sampler) -> tuple[Tensor, ...]:
        """Log-probability of the actions and, where it is asked for, entropy at the positions committed: [R] each."""
        log_prob = sampler.action_log_prob(view, decision)
        if SELECTED_ENTROPY not in self.asked:
            return (log_prob,)
        chosen = decision.committed[view.allowed]
        total = view.row_sum(entropy(view.log_probs[chosen]), view.index[0][chosen])
        return log_prob, total / decision.committed.sum(-1)
