"""Monte Carlo advantage (VinePPO, arXiv 2410.01679, for denoising steps): restart from the states around a step.

    A_{i,t} = mean of n rewards restarted from x_{t+1}  -  mean of n_baseline rewards restarted from x_t

The first mean estimates Q(s_t, a_t), the second V(s_t); both are independent of everything else, so the gradient is
unbiased for any n. No group is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.base import Advantage
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    EXAMPLE,
    PROMPT_IDS,
    PROMPT_MASK,
    REWARD,
    SELECTED_ADVANTAGE,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_VALID,
)
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import num_valid
from dlmrl_kit.core.validate import check


@register("advantage", paper="arXiv 2410.01679", unbiased=True, under="restarts sample as the trajectory was sampled")
class MonteCarlo(Advantage):
    """Credits each step with the mean reward of restarts after it, minus that of restarts before it.

    Args:
        n: completions from x_{t+1}, at least 1.
        n_baseline: completions from x_t; 0 means no baseline.

    Reads ``("step", "valid")`` bool [B, T], ``("selected", "step")`` int64 [B, K], ``("selected", "weight")`` [B, K],
    and what a restart needs: ``prompt_ids``, ``prompt_mask`` [B, P], ``example`` [B], ``completion_ids``,
    ``commit_step`` [B, L], ``reward`` [B]. Service: ``restart``.
    Writes ``("selected", "advantage")`` [B, K], 0 where the weight is.

    Raises:
        ValueError: a value out of range.
    """

    not_sizes = ("n", "n_baseline")
    requires = ("restart",)

    def __init__(self, n: int = 4, n_baseline: int = 4) -> None:
        super().__init__()
        check(isinstance(n, int) and n >= 1, self, "n", n, "an integer, at least 1")
        check(isinstance(n_baseline, int) and n_baseline >= 0, self, "n_baseline", n_baseline, "an integer, at least 0")
        self.n = n
        self.n_baseline = n_baseline
        self.in_keys = [
            PROMPT_IDS,
            PROMPT_MASK,
            EXAMPLE,
            COMPLETION_IDS,
            COMMIT_STEP,
            REWARD,
            STEP_VALID,
            SELECTED_STEP,
            SELECTED_WEIGHT,
        ]
        self.out_keys = [SELECTED_ADVANTAGE]

    def forward(
        self, tensordict: TensorDictBase, *, restart: Callable[[TensorDictBase, Tensor, int], Tensor]
    ) -> TensorDictBase:
        """Restarts at step + 1, and at step for the baseline."""
        used = tensordict[SELECTED_WEIGHT] > 0
        # Entries that are not used restart from the final state, which costs nothing.
        step = torch.where(used, tensordict[SELECTED_STEP], num_valid(tensordict)[:, None])
        advantage = restart(tensordict, torch.where(used, step + 1, step), self.n).mean(-1)
        if self.n_baseline > 0:
            advantage = advantage - restart(tensordict, step, self.n_baseline).mean(-1)
        return tensordict.set(SELECTED_ADVANTAGE, torch.where(used, advantage, 0.0))
