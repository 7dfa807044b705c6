"""The reward stage: scores final completions and, where it is read, what the steps before them predicted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import (
    COMPLETION_IDS,
    EXAMPLE,
    REWARD,
    SELECTED_REWARD,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_DRAFT_IDS,
    STEP_GREEDY_IDS,
    STEP_REWARD,
    STEP_VALID,
)
from dlmrl_kit.core.trajectory import gather_steps
from dlmrl_kit.samplers.one_step import NOT_COMPUTED

Score = Callable[[Tensor, Tensor], Tensor]
Submit = Callable[[Tensor, Tensor], None]
"""Begins to score what ``Score`` will be asked for."""


class Reward(Component):
    """Base class of reward stages; subclasses say what is scored, ``forward`` writes the rewards."""

    requires = ("score",)

    def completions(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """What is scored: completions int64 [N, L] and their example indices int64 [N]."""
        raise NotImplementedError


class FinalReward(Reward):
    """Reads ``completion_ids``, ``example``; writes ``reward`` [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [COMPLETION_IDS, EXAMPLE]
        self.out_keys = [REWARD]

    def forward(self, tensordict: TensorDictBase, *, score: Score) -> TensorDictBase:
        """Adds the reward of each completion."""
        return tensordict.set(REWARD, score(*self.completions(tensordict)))

    def completions(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The final ones."""
        return tensordict[COMPLETION_IDS], tensordict[EXAMPLE]


class SelectedReward(Reward):
    """Reads ``("step", "greedy_ids")``, the selection and ``example``; writes ``("selected", "reward")`` [B, K].

    The reward of x_t with every masked position filled greedily in one go (EGSPO-SA's one-step denoising value), at the
    selected steps only; 0 in slots of weight 0.

    Raises:
        RuntimeError: a step was chosen that the selector had left out before: it is not ``nested`` as it says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [STEP_GREEDY_IDS, SELECTED_STEP, SELECTED_WEIGHT, EXAMPLE]
        self.out_keys = [SELECTED_REWARD]

    def forward(self, tensordict: TensorDictBase, *, score: Score) -> TensorDictBase:
        """Adds the reward of the one-step completion at each selected step."""
        used = tensordict[SELECTED_WEIGHT] > 0
        reward = score(*self.completions(tensordict))
        out = torch.zeros(used.shape, dtype=reward.dtype, device=used.device)
        return tensordict.set(SELECTED_REWARD, out.masked_scatter(used, reward))

    def completions(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The one-step completions at the selected steps, row by row."""
        used = tensordict[SELECTED_WEIGHT] > 0
        greedy = gather_steps(tensordict[STEP_GREEDY_IDS], tensordict[SELECTED_STEP])[used].long()
        if bool((greedy == NOT_COMPUTED).any()):
            raise RuntimeError(
                "a step was chosen that the selector had left out during the rollout: it says that it is nested, but "
                "is not"
            )
        return greedy, tensordict[EXAMPLE][:, None].expand_as(used)[used]


class StepReward(Reward):
    """Reads ``("step", "draft_ids")``, ``("step", "valid")`` and ``example``; writes ``("step", "reward")`` [B, T].

    The reward of each step's draft, x_t with every masked position filled with the step's draws (MDPO, arXiv
    2508.13148); 0 past the end of a row.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [STEP_DRAFT_IDS, STEP_VALID, EXAMPLE]
        self.out_keys = [STEP_REWARD]

    def forward(self, tensordict: TensorDictBase, *, score: Score) -> TensorDictBase:
        """Adds the reward of every draft."""
        valid = tensordict[STEP_VALID]
        reward = score(*self.completions(tensordict))
        out = torch.zeros(valid.shape, dtype=reward.dtype, device=valid.device)
        return tensordict.set(STEP_REWARD, out.masked_scatter(valid, reward))

    def completions(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The drafts of the steps that happened, row by row."""
        valid = tensordict[STEP_VALID]
        drafts = tensordict[STEP_DRAFT_IDS][valid].long()
        return drafts, tensordict[EXAMPLE][:, None].expand_as(valid)[valid]
