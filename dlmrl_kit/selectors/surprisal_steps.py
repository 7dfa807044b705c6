"""Surprising steps (RLDF, arXiv 2605.25638): k draws in proportion to the perplexity of a step's tokens.

    q_t = softmax over the steps of  -(mean over the tokens of step t of log p) / temperature

Each draw stands for the whole completion, scored from the state x_t that it starts from: an entry ends behind the last
step, so that a segment likelihood such as ``StepMerge`` scores every token that is still masked in x_t, the final one.
Draws have weight 1 / k and are not weighed back to the steps they were drawn from.
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SEED, STEP_MODEL_LOG_PROB, STEP_NUM_COMMITTED, STEP_TOKEN_LOG_PROB, STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import num_valid
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import Distribution
from dlmrl_kit.selectors.drawn_steps import DrawnSteps


@register(
    "selector",
    paper="arXiv 2605.25638",
    unbiased=False,
    under="draws surprising steps more often, and weighs no draw back",
)
class SurprisalSteps(DrawnSteps):
    """Draws k steps with replacement, surprising ones more often; each starts a segment that ends with the completion.

    Args:
        k: draws per row, whatever its number of steps.
        temperature: of the softmax over steps, positive: a small one draws the most surprising step alone.
        distribution: whose log-probability: ``"behaviour"``, the distribution that tokens are drawn from, or
            ``"model"``, softmax(logits) at temperature 1 and without filters.

    Reads ``("step", "valid")`` bool [B, T], ``("step", "num_committed")`` int64 [B, T], ``("step", "token_log_prob")``
    or ``("step", "model_log_prob")``, [B, T], and ``seed`` int64 [B].
    Writes ``("selected", "step")`` int64 [B, k], steps may repeat; ``("selected", "weight")`` [B, k], 1 / k;
    ``("selected", "end")`` int64 [B, k], the number of steps of each row.

    Raises:
        ValueError: a value out of range.
    """

    segments = True
    purpose = "surprisal steps"

    def __init__(self, k: int = 4, temperature: float = 1.0, distribution: Distribution = "behaviour") -> None:
        super().__init__(k)
        check(0 < temperature < math.inf, self, "temperature", temperature, "positive and finite")
        check(distribution in ("behaviour", "model"), self, "distribution", distribution, "'behaviour' or 'model'")
        self.temperature = temperature
        self.distribution = distribution
        self.log_prob = STEP_TOKEN_LOG_PROB if distribution == "behaviour" else STEP_MODEL_LOG_PROB
        self.in_keys = [STEP_VALID, STEP_NUM_COMMITTED, self.log_prob, SEED]

    def probabilities(self, tensordict: TensorDictBase) -> Tensor:
        """Returns q_t, float64 [B, T]; 0 past the end of a row."""
        surprisal = -tensordict[self.log_prob].double() / tensordict[STEP_NUM_COMMITTED].clamp(min=1)
        return (surprisal / self.temperature).masked_fill(~tensordict[STEP_VALID], -torch.inf).softmax(-1)

    def ends(self, tensordict: TensorDictBase, step: Tensor) -> Tensor:
        """Returns the number of steps of each row."""
        return num_valid(tensordict)[:, None].repeat(1, step.shape[1])
