"""Exact step log-probability: the sampler's own action log-probability, order term included (theory 2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dlmrl_kit.behaviour import entropy
from dlmrl_kit.component import Key
from dlmrl_kit.likelihoods.base import Likelihood, Replay
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.registry import register
from dlmrl_kit.samplers.base import Sampler


@register("likelihood", unbiased=True, under="any sampler of the kit")
class StepLogProb(Likelihood):
    """log pi(x_{t+1} | x_t) of the sampler that generated the trajectory, one forward per selected step.

    Reads the trajectory and ``("selected", "step")``, ``("selected", "weight")``; writes ``("selected", "log_prob")``
    [B, K], on demand ``("selected", "entropy")`` [B, K].
    """

    optional_keys = (("selected", "entropy"),)

    @property
    def recorded(self) -> dict[Key, Key]:
        """The sampler records exactly this log-probability."""
        return {("selected", "log_prob"): ("step", "log_prob")}

    def estimate(self, steps: Replay, policy: Policy, sampler: Sampler) -> dict[Any, Tensor]:
        """Predictions at every position the sampler could have committed, then its own ``action_log_prob``."""
        view = sampler.view(policy, steps.prompt, steps.ids)
        out: dict[Any, Tensor] = {("selected", "log_prob"): sampler.action_log_prob(view, steps.decision)}
        if ("selected", "entropy") in self.asked:
            chosen = steps.decision.committed[view.allowed]
            total = view.row_sum(entropy(view.log_probs[chosen]), view.index[0][chosen])
            out["selected", "entropy"] = total / steps.decision.committed.sum(-1)
        return out
