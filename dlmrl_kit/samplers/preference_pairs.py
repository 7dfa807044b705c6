r"""Preference pairs (VRPO, arXiv 2505.19223; DPO, arXiv 2305.18290): completions from data instead of the policy.

A group is a pair: its first member is a chosen completion of the prompt, its second a rejected one. The trajectory of a
completion has one step, which commits all of its tokens, and no log-probability: the policy did not draw it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import COMMIT_STEP, COMPLETION_IDS, EXAMPLE, GROUP, REWARD, STEP_NUM_COMMITTED, STEP_VALID, Key
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.seeding import seeds_of, uniforms
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.core.trajectory import number_in_group
from dlmrl_kit.core.validate import check
from dlmrl_kit.demonstrators.base import Demonstrator, encode_completions
from dlmrl_kit.demonstrators.chosen import Chosen
from dlmrl_kit.demonstrators.rejected import Rejected
from dlmrl_kit.samplers.base import Decision, Sampler, View
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.mask import MaskSampler
from dlmrl_kit.samplers.settings import check_tokens_per_step
from dlmrl_kit.step_schedules.base import StepSchedule
from dlmrl_kit.tasks.base import Example


@register("sampler", paper="arXiv 2505.19223")
class PreferencePairs(Sampler):
    """Takes completions from two demonstrators: a chosen and a rejected one, in turn, for the members of a group.

    The reward is the preference: 1 for a chosen completion, 0 for a rejected one, 0 for both where they are the same
    text, which is no preference. Recipes need ``Trainer.group_size`` = 2. Evaluation decodes with the policy, by
    low-confidence remasking; ``tokens_per_step``, ``block_length``, ``temperature``, ``top_k``, ``top_p`` and
    ``stop_at_eos`` are for that.

    Args:
        completion_length, tokens_per_step, block_length, temperature, top_k, top_p, stop_at_eos: as ``MaskSampler``.
        chosen: a demonstrator; None means ``Chosen()``, the field "chosen" of a task's examples.
        rejected: a demonstrator; None means ``Rejected()``, the field "rejected".

    Reads ``prompt_ids``, ``prompt_mask``, ``seed``, ``group`` and ``example``. Writes ``completion_ids`` and
    ``commit_step`` [B, L] (the space behind a text holds end-of-text tokens, or padding that is never committed),
    ``("step", "valid")``, ``("step", "num_committed")`` [B, T] and ``reward`` [B]. Service: ``examples``.

    Raises:
        ValueError: a value out of range.
        RecipeError: when run, a completion longer than ``completion_length`` or with unknown characters.
    """

    group_size = 2
    requires = ("policy", "examples")
    optional_keys = ()

    @with_parameters_of(MaskSampler)
    def __init__(
        self,
        completion_length: int,
        tokens_per_step: int | StepSchedule = 1,
        *decoding: Any,
        chosen: Demonstrator | None = None,
        rejected: Demonstrator | None = None,
        **named: Any,
    ) -> None:
        super().__init__(completion_length, *decoding, **named)
        check_tokens_per_step(self, tokens_per_step)
        self.tokens_per_step = tokens_per_step
        for name, value in (("chosen", chosen), ("rejected", rejected)):
            check(value is None or isinstance(value, Demonstrator), self, name, value, "a demonstrator")
        self.chosen = chosen if chosen is not None else Chosen()
        self.rejected = rejected if rejected is not None else Rejected()
        self.in_keys = [*self.in_keys, GROUP, EXAMPLE]
        self.out_keys = [COMPLETION_IDS, COMMIT_STEP, STEP_VALID, STEP_NUM_COMMITTED, REWARD]

    @property
    def decoder(self) -> LowConfidence:
        """The sampler that evaluation decodes with."""
        return LowConfidence(
            self.completion_length,
            self.tokens_per_step,
            self.block_length,
            self.temperature,
            self.top_k,
            self.top_p,
            self.stop_at_eos,
        )

    @property
    def max_steps(self) -> int:
        """T: that of the decoder, though a pair has one step."""
        return self.decoder.max_steps

    @property
    def max_commits(self) -> int:
        """C: the one step commits the whole completion."""
        return self.completion_length

    def forward(  # type: ignore[override]
        self,
        tensordict: TensorDictBase,
        *,
        policy: Policy,
        examples: Callable[[Tensor], list[Example]],
        **recording: Any,
    ) -> TensorDictBase:
        """Takes a completion for every row from its demonstrator."""
        member = number_in_group(tensordict[GROUP])
        preferred = member % 2 == 0
        noise = uniforms(seeds_of(tensordict, self), purpose="demonstration").tolist()
        texts = [
            demonstration(self.chosen if good else self.rejected, example, chance)
            for good, example, chance in zip(preferred.tolist(), examples(tensordict[EXAMPLE]), noise, strict=True)
        ]
        ids, lengths = encode_completions(policy, texts, self.completion_length)
        filled = self.completion_length if policy.eos_ids else lengths[:, None]
        committed = torch.arange(self.completion_length, device=ids.device).expand_as(ids) < filled
        valid = torch.arange(self.max_steps, device=ids.device).expand(len(ids), -1) == 0
        pair = zip(tensordict[GROUP].tolist(), (member // 2).tolist(), strict=True)
        reward = preferred & differs(list(pair), texts).to(ids.device)
        return tensordict.update(
            {
                COMPLETION_IDS: ids,
                COMMIT_STEP: torch.where(committed, 0, self.max_steps).to(torch.int16),
                STEP_VALID: valid.clone(),
                STEP_NUM_COMMITTED: valid * committed.sum(-1, keepdim=True),
                REWARD: reward.to(policy.real_dtype),
            }
        )

    def resume(self, prompt: TensorDictBase, ids: Tensor, *, policy: Policy) -> dict[Key, Tensor]:
        """Completes with the policy, by low-confidence remasking; as ``Sampler.resume``."""
        return self.decoder.resume(prompt, ids, policy=policy)

    def action_log_prob(self, view: View, decision: Decision) -> Tensor:
        """Refuses: the completions are not the policy's, and have no log-probability.

        Raises:
            RecipeError: always.
        """
        raise RecipeError(
            "PreferencePairs has no log-probability of an action: its completions are not the policy's; take a "
            "likelihood of tokens or of the whole completion, such as Elbo"
        )


def demonstration(demonstrator: Demonstrator, example: Example, chance: float) -> str:
    """Returns the demonstration at which the cumulative probability passes ``chance``, a number in [0, 1)."""
    possible = [(text, share) for text, share in demonstrator.demonstrations(example) if share > 0]
    for text, share in possible:
        chance -= share
        if chance < 0:
            return text
    return possible[-1][0]


def differs(pair: list[tuple[int, int]], texts: list[str]) -> Tensor:
    """Returns which rows belong to a pair of two different texts: bool [B]; ``pair`` names the pair of each row."""
    found: dict[tuple[int, int], set[str]] = {}
    for name, text in zip(pair, texts, strict=True):
        found.setdefault(name, set()).add(text)
    return torch.tensor([len(found[name]) > 1 for name in pair])
