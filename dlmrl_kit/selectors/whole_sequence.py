"""The whole completion as one segment (d1, arXiv 2504.12216; ESPO, arXiv 2512.03759), drawn once or several times.

    sum_{t < n} g_t   ->   1/K sum_{k < K} g^(k),    g^(k) scored with the k-th draw of the likelihood's masks

It goes with estimators of log pi(completion | prompt).
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import num_valid
from dlmrl_kit.core.validate import check
from dlmrl_kit.selectors.base import Selector


@register(
    "selector",
    paper="arXiv 2504.12216; arXiv 2512.03759",
    unbiased=False,
    under="segments of several steps: a step likelihood scores the first only, segment likelihoods are approximate",
)
class WholeSequence(Selector):
    """Makes one segment of all steps, ``draws`` times with weight 1 / draws.

    A likelihood with random masks draws new ones for each entry: the draws are its Monte Carlo samples. Nothing is left
    out: the gradient is as good as the likelihood's estimate of the whole completion.

    Args:
        draws: K, at least 1.

    Reads ``("step", "valid")``. Writes as ``Selector``; every entry starts at step 0 and ends behind the last step.

    Raises:
        ValueError: a value out of range.
    """

    not_sizes = ("draws",)
    with_replacement = True
    segments = True

    def __init__(self, draws: int = 1) -> None:
        super().__init__()
        check(draws >= 1, self, "draws", draws, "at least 1")
        self.draws = draws

    def most_selected(self, steps: int) -> int:
        """Returns the draws, however many steps there are."""
        return self.draws

    def choose(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Chooses step 0 in every entry of a row that has steps."""
        some = tensordict[STEP_VALID].any(-1, keepdim=True).double()
        weight = some.expand(-1, self.draws) / self.draws
        return torch.zeros_like(weight, dtype=torch.int64), weight

    def ends(self, tensordict: TensorDictBase, step: Tensor) -> Tensor:
        """Returns the number of steps of each row."""
        return num_valid(tensordict)[:, None].repeat(1, step.shape[1])
