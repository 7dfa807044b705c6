"""Step log-probability of the committed tokens alone, as published (EGSPO, arXiv 2603.12554; CJ-GRPO; TraceRL).

Leaves out which positions were committed: exact for samplers that choose positions from the state alone, biased for
``LowConfidence`` (theory 2). Without the sampling temperature it is what the released codes compute.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.behaviour import LOG_ZERO, entropy
from dlmrl_kit.core.keys import (
    COMPLETION_IDS,
    PROMPT_IDS,
    PROMPT_MASK,
    SELECTED_DISTRIBUTION,
    SELECTED_ENTROPY,
    SELECTED_LOG_PROB,
    SELECTED_TOKEN_LOG_PROB,
    SELECTED_TOKEN_MASK,
    Key,
)
from dlmrl_kit.core.policy import Policy, completion_features
from dlmrl_kit.core.registry import register
from dlmrl_kit.likelihoods.base import Replay, StepLikelihood, pack, pack_tokens, token_log_probs
from dlmrl_kit.samplers.base import Sampler


@register(
    "likelihood",
    paper="arXiv 2603.12554",
    unbiased=True,
    under="samplers that choose positions from the state alone, with sampling_temperature=True",
)
class StepTokenLogProb(StepLikelihood):
    """Sum over the committed positions of the log-probability of their tokens, one forward per selected step.

    Args:
        sampling_temperature: True scores with the sampler's behaviour distribution (temperature and filters); False
            with softmax(logits), as the released codes do whatever temperature they sampled at.

    Reads the trajectory and ``("selected", "step")``, ``("selected", "weight")``; writes ``("selected", "log_prob")``
    [B, K]. On demand, with C the most positions a step can commit: ``token_mask``, ``token_log_prob`` [B, K, C],
    ``distribution`` [B, K, C, V], ``entropy`` [B, K].
    """

    optional_keys = (
        SELECTED_TOKEN_MASK,
        SELECTED_TOKEN_LOG_PROB,
        SELECTED_DISTRIBUTION,
        SELECTED_ENTROPY,
    )

    def __init__(self, sampling_temperature: bool = True) -> None:
        super().__init__()
        self.sampling_temperature = sampling_temperature

    @property
    def recorded(self) -> dict[Key, Key]:
        """Step sums and single tokens, under the behaviour distribution or under softmax(logits)."""
        step, token = ("token_log_prob", "log_prob") if self.sampling_temperature else ("model_log_prob",) * 2
        return {SELECTED_LOG_PROB: ("step", step), SELECTED_TOKEN_LOG_PROB: ("token", token)}

    def prepare(
        self, tensordict: TensorDictBase, *, sampler: Sampler, policy: Policy, keys: Collection[Key] = ()
    ) -> TensorDictBase:
        """Adds ``("selected", "token_mask")`` if asked: which of the C entries of a step hold a committed position."""
        if SELECTED_TOKEN_MASK in keys:
            ones = torch.ones_like(tensordict[COMPLETION_IDS], dtype=torch.bool)
            tensordict.set(SELECTED_TOKEN_MASK, pack_tokens(tensordict, ones, sampler.max_commits))
        return tensordict

    def estimate(
        self, steps: Replay, policy: Policy, sampler: Sampler, keys: Collection[Key] = ()
    ) -> dict[Key, Tensor]:
        """Predictions at the committed positions only; no logits are kept where no distribution is asked for."""
        if {SELECTED_DISTRIBUTION, SELECTED_ENTROPY} & {*keys}:
            return self._with_distributions(steps, policy, sampler, keys)
        committed, prompt = steps.decision.committed, steps.prompt
        features = completion_features(policy, prompt[PROMPT_IDS], prompt[PROMPT_MASK], steps.ids, committed)
        behaviour = sampler.behaviour if self.sampling_temperature else None
        process = sampler.processing(prompt, committed)
        picked = token_log_probs(policy, features, steps.decision.tokens[committed], behaviour, process)
        row = committed.nonzero(as_tuple=True)[0]
        out: dict[Key, Tensor] = {SELECTED_LOG_PROB: picked.new_zeros(len(committed)).index_add(0, row, picked)}
        if SELECTED_TOKEN_LOG_PROB in keys:
            out[SELECTED_TOKEN_LOG_PROB] = pack(picked, committed, sampler.max_commits)
        return out

    def _with_distributions(
        self, steps: Replay, policy: Policy, sampler: Sampler, keys: Collection[Key]
    ) -> dict[Key, Tensor]:
        """The same with whole distributions in memory."""
        committed = steps.decision.committed
        view = sampler.view(policy, steps.prompt, steps.ids, committed)
        log_probs = view.log_probs if self.sampling_temperature else view.logits.log_softmax(-1)
        tokens = steps.decision.tokens[committed]
        picked = log_probs.gather(-1, tokens[:, None]).squeeze(-1).clamp(min=LOG_ZERO)
        row, width = view.index[0], sampler.max_commits
        out: dict[Key, Tensor] = {SELECTED_LOG_PROB: view.row_sum(picked, row)}
        if SELECTED_TOKEN_LOG_PROB in keys:
            out[SELECTED_TOKEN_LOG_PROB] = pack(picked, committed, width)
        if SELECTED_DISTRIBUTION in keys:
            out[SELECTED_DISTRIBUTION] = pack(log_probs, committed, width)
        if SELECTED_ENTROPY in keys:
            out[SELECTED_ENTROPY] = view.row_sum(entropy(view.log_probs), row) / committed.sum(-1)
        return out
