r"""Generalised advantage estimation over denoising steps (TraceRL, arXiv 2509.06949; GAE: arXiv 1506.02438).

With n steps (segments) of a row, V_t the mean value of the tokens of step t, r_t = R in the last step and 0 before,

    delta_t = r_t - V_t + gamma V_{t+1},    A_t = delta_t + gamma lam A_{t+1},    G_t = r_t + gamma G_{t+1}

and for each token l of step t, whose value is v_l,

    return_l = r_t + gamma G_{t+1},    A_l = r_t - v_l + gamma V_{t+1} + gamma lam A_{t+1}

so that A_t is the mean of the advantages of its tokens. With gamma = lam = 1 they are R - V_t and R - v_l.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.base import Advantage
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    REWARD,
    SELECTED_ADVANTAGE,
    SELECTED_END,
    SELECTED_OLD_VALUE,
    SELECTED_RETURN,
    SELECTED_STEP,
    SELECTED_TOKEN_ADVANTAGE,
    SELECTED_WEIGHT,
    Key,
)
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.values.base import segment_tokens


@register(
    "advantage",
    paper="arXiv 2509.06949; arXiv 1506.02438",
    unbiased=False,
    under="steps behind the end of text get no advantage; unbiased with after_eos = True, gamma = lam = 1 and samplers "
    "that choose positions from the state alone",
)
class StepGAE(Advantage):
    """Credits every step, and every token of it, with the reward beyond what a value model expected.

    Args:
        gamma: discount per step, in [0, 1].
        lam: lambda of the generalised advantage estimate, in [0, 1].
        after_eos: whether tokens behind the first end of text count; as the value model's.

    The selector must choose segments in order of time that do not overlap; a segment without a token that counts is
    passed over.

    Reads ``reward`` [B], ``completion_ids``, ``commit_step`` [B, L], ``("selected", "step")``, ``("selected", "end")``,
    ``("selected", "weight")`` [B, K] and ``("selected", "old_value")`` [B, K, L]. Service: ``policy``, for its end of
    text. Writes ``("selected", "advantage")`` [B, K], A_t; on demand ``("selected", "token_advantage")`` and
    ``("selected", "return")`` [B, K, L], by position. All are 0 where the weight is 0 and where no token counts.

    Raises:
        ValueError: a value out of range.
    """

    requires = ("policy",)
    optional_keys = (SELECTED_TOKEN_ADVANTAGE, SELECTED_RETURN)

    def __init__(self, gamma: float = 1.0, lam: float = 1.0, after_eos: bool = False) -> None:
        super().__init__()
        check(0 <= gamma <= 1, self, "gamma", gamma, "in [0, 1]")
        check(0 <= lam <= 1, self, "lam", lam, "in [0, 1]")
        self.gamma = gamma
        self.lam = lam
        self.after_eos = after_eos
        selection: list[Key] = [SELECTED_STEP, SELECTED_END, SELECTED_WEIGHT, SELECTED_OLD_VALUE]
        self.in_keys = [REWARD, COMPLETION_IDS, COMMIT_STEP, *selection]
        self.out_keys = [SELECTED_ADVANTAGE]

    def forward(self, tensordict: TensorDictBase, *, policy: Policy, keys: Collection[Key] = ()) -> TensorDictBase:
        """Writes the advantages, and what was asked for."""
        reward = tensordict[REWARD]
        tokens = segment_tokens(tensordict, policy, self.after_eos)
        value = torch.where(tokens, tensordict[SELECTED_OLD_VALUE].double(), 0.0)
        count = tokens.sum(-1)
        there = count > 0
        step_value = value.sum(-1) / count.clamp(min=1)
        number = there.long().cumsum(-1)  # 1 .. n
        ahead = number[:, None, :] - number[:, :, None]  # how many steps a column is after a row
        both = there[:, None, :] & there[:, :, None]
        follows = both & (ahead == 1)
        step_reward = reward.double()[:, None] * (there & (number == number[:, -1:]))

        def after(values: Tensor) -> Tensor:
            """Returns the values of the step after each, 0 after the last."""
            return torch.where(follows, values[:, None, :], 0.0).sum(-1)

        def discounted(values: Tensor, factor: float) -> Tensor:
            """Sums the values of each step and all after it, times ``factor`` to the number of steps between."""
            share = torch.as_tensor(factor, dtype=values.dtype, device=values.device) ** ahead.clamp(min=0)
            return torch.where(both & (ahead >= 0), share * values[:, None, :], 0.0).sum(-1)

        next_value = after(step_value)
        delta = step_reward - step_value + self.gamma * next_value
        advantage = torch.where(there, discounted(delta, self.gamma * self.lam), 0.0)
        tensordict.set(SELECTED_ADVANTAGE, advantage.to(reward.dtype))
        if SELECTED_TOKEN_ADVANTAGE in keys:
            target = step_reward + self.gamma * (next_value + self.lam * after(advantage))
            tensordict.set(
                SELECTED_TOKEN_ADVANTAGE, torch.where(tokens, target[..., None] - value, 0.0).to(reward.dtype)
            )
        if SELECTED_RETURN in keys:
            target = step_reward + self.gamma * after(discounted(step_reward, self.gamma))
            tensordict.set(SELECTED_RETURN, torch.where(tokens, target[..., None], 0.0).to(reward.dtype))
        return tensordict
