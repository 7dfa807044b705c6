"""Scores a step by the mean log-probability of its tokens."""

from __future__ import annotations

from collections.abc import Collection

from dlmrl_kit import register
from dlmrl_kit.core.keys import PROMPT_IDS, PROMPT_MASK, SELECTED_LOG_PROB, Key
from dlmrl_kit.core.policy import Policy, completion_features, log_probs_of
from dlmrl_kit.likelihoods.steps import Replay, StepLikelihood
from dlmrl_kit.samplers.base import Sampler
from torch import Tensor


@register("likelihood", unbiased=False)
class AcmeLikelihood(StepLikelihood):
    """Averages the log-probabilities of the tokens that each selected step committed, under softmax(logits).

    Reads the trajectory and ``("selected", "step")``, ``("selected", "weight")``; writes ``("selected", "log_prob")``
    [B, K], in nats.
    """

    def estimate(
        self, steps: Replay, policy: Policy, sampler: Sampler, keys: Collection[Key] = ()
    ) -> dict[Key, Tensor]:
        """Computes the R replayed steps: [R]."""
        committed, prompt = steps.decision.committed, steps.prompt
        features = completion_features(policy, prompt[PROMPT_IDS], prompt[PROMPT_MASK], steps.ids, committed)
        picked = log_probs_of(policy, features, steps.decision.tokens[committed], None)
        row = committed.nonzero(as_tuple=True)[0]
        total = picked.new_zeros(len(committed)).index_add(0, row, picked)
        return {SELECTED_LOG_PROB: total / committed.sum(-1)}
