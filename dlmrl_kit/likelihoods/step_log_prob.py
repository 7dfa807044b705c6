"""Exact step log-probability: the sampler's own action log-probability, order term included (theory 2)."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor

from dlmrl_kit.core.behaviour import entropy
from dlmrl_kit.core.keys import PROMPT_IDS, PROMPT_MASK, SELECTED_ENTROPY, SELECTED_LOG_PROB, STEP_LOG_PROB, Key
from dlmrl_kit.core.policy import Policy, completion_features
from dlmrl_kit.core.registry import register
from dlmrl_kit.likelihoods.base import Replay, StepLikelihood, recomputed
from dlmrl_kit.samplers.base import Decision, Sampler, View
from dlmrl_kit.samplers.mask import logit_pieces


@register("likelihood", unbiased=True, under="any sampler of the kit")
class StepLogProb(StepLikelihood):
    """log pi(x_{t+1} | x_t) of the sampler that generated the trajectory, one forward per selected step.

    Reads the trajectory and ``("selected", "step")``, ``("selected", "weight")``; writes ``("selected", "log_prob")``
    [B, K], on demand ``("selected", "entropy")`` [B, K].
    """

    optional_keys = (SELECTED_ENTROPY,)

    @property
    def recorded(self) -> dict[Key, Key]:
        """The sampler records exactly this log-probability."""
        return {SELECTED_LOG_PROB: STEP_LOG_PROB}

    def estimate(
        self, steps: Replay, policy: Policy, sampler: Sampler, keys: Collection[Key] = ()
    ) -> dict[Key, Tensor]:
        """Predictions at every position the sampler could have committed, then its own ``action_log_prob``."""
        asked = sampler.asked_positions(policy, steps.prompt, steps.ids)
        features = completion_features(policy, steps.prompt[PROMPT_IDS], steps.prompt[PROMPT_MASK], steps.ids, asked)

        def score(rows: slice, features: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
            view = sampler.seen(policy, features, positions, steps.prompt[rows])
            return self._score(view, steps.decision.at(rows), sampler, SELECTED_ENTROPY in keys)

        # Pieces of rows whose logits fit in memory: they are computed once more in the backward pass.
        pieces = list(logit_pieces(asked.sum(-1), policy.vocab_size))
        if len(pieces) <= 1:
            found = [score(slice(None), features, asked)]
        else:
            found = [recomputed(partial(score, rows), features[place], asked[rows]) for rows, place in pieces]
        written = (SELECTED_LOG_PROB, SELECTED_ENTROPY)  # without entropy, zip ends before it
        return {key: torch.cat(values) for key, values in zip(written, zip(*found, strict=True), strict=False)}

    def _score(self, view: View, decision: Decision, sampler: Sampler, with_entropy: bool) -> tuple[Tensor, ...]:
        """Log-probability of the actions and, where it is asked for, entropy at the positions committed: [R] each."""
        log_prob = sampler.action_log_prob(view, decision)
        if not with_entropy:
            return (log_prob,)
        chosen = decision.committed[view.allowed]
        total = view.row_sum(entropy(view.log_probs[chosen]), view.index[0][chosen])
        return log_prob, total / decision.committed.sum(-1)
