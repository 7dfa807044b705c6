"""The settings that every sampler has, and the sizes that follow from them."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from dlmrl_kit.core.behaviour import Behaviour
from dlmrl_kit.core.component import Component, Sizes
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    PROMPT_IDS,
    PROMPT_MASK,
    SEED,
    STEP_ENTROPY,
    STEP_LOG_PROB,
    STEP_NUM_COMMITTED,
    STEP_VALID,
    Key,
)
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.validate import check
from dlmrl_kit.step_schedules.base import StepSchedule

if TYPE_CHECKING:
    from typing_extensions import Self

    from dlmrl_kit.caches.base import Cache


class DecodingSettings(Component):
    """The base class of ``samplers.base.Sampler``, which says what the settings mean."""

    records_tokens: ClassVar[bool] = True
    """Whether a position is committed once, so that its log-probability can be kept per position."""
    not_sizes: ClassVar[tuple[str, ...]] = ("top_k",)  # ``resized`` limits it to the vocabulary

    def __init__(
        self,
        completion_length: int,
        block_length: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop_at_eos: bool = True,
    ) -> None:
        super().__init__()
        check(completion_length >= 1, self, "completion_length", completion_length, "at least 1")
        check(block_length is None or block_length >= 1, self, "block_length", block_length, "at least 1, or None")
        check(0 <= temperature < math.inf, self, "temperature", temperature, "at least 0 and finite")
        check(top_k >= 0, self, "top_k", top_k, "at least 0 (0 keeps every token)")
        check(0 < top_p <= 1, self, "top_p", top_p, "in (0, 1]")
        self.completion_length = completion_length
        self.block_length = min(block_length or completion_length, completion_length)
        self.stop_at_eos = stop_at_eos
        self.behaviour = Behaviour(temperature, top_k, top_p)
        self.in_keys: list[Key] = [PROMPT_IDS, PROMPT_MASK, SEED]
        self.out_keys: list[Key] = [
            COMPLETION_IDS,
            COMMIT_STEP,
            STEP_VALID,
            STEP_LOG_PROB,
            STEP_ENTROPY,
            STEP_NUM_COMMITTED,
        ]

    @property
    def temperature(self) -> float:
        """Temperature of the behaviour distribution."""
        return self.behaviour.temperature

    @property
    def top_k(self) -> int:
        """How many of the most probable tokens the behaviour distribution keeps; 0: all."""
        return self.behaviour.top_k

    @property
    def top_p(self) -> float:
        """How much mass of the most probable tokens the behaviour distribution keeps."""
        return self.behaviour.top_p

    @property
    @abstractmethod
    def max_steps(self) -> int:
        """T: an upper bound on the denoising steps of a completion that begins with a block."""

    def num_steps(self, policy: Policy) -> int:
        """Returns T for this policy, in whose blocks a completion may begin anywhere (``Policy.block_offset``)."""
        return self.max_steps

    def block_steps(self, positions: int) -> int:
        """Returns an upper bound on the denoising steps of a block of so many positions."""
        return positions

    def states_at_once(self, rows: int) -> int:
        """Returns an upper bound on the states of a forward, where so many completions are sampled together."""
        return rows

    @property
    @abstractmethod
    def max_commits(self) -> int:
        """C: an upper bound on the positions that a step commits."""

    @property
    def sizes(self) -> Sizes:
        """How large its trajectories are."""
        return Sizes(self.completion_length, self.max_steps, self.block_length, self.max_commits)

    def fitted(self, before: Sizes, after: Sizes) -> dict[str, int]:
        """Returns new values, by parameter, for the settings that every sampler has and that depend on sizes."""
        return {
            "completion_length": after.length,
            "block_length": min(after.block_length, after.length),
            "top_k": before.limit_tokens(self.top_k, after),
        }

    def at_temperature(self, temperature: float) -> Self:
        """Returns a copy that decodes at another temperature, at 0 without filters; trained modules are shared."""
        twin = copy.copy(self)
        twin.behaviour = replace(self.behaviour, temperature=temperature) if temperature else Behaviour(0.0)
        return twin


def check_tokens_per_step(sampler: object, value: int | StepSchedule) -> None:
    """Refuses a number of positions per step below 1.

    Raises:
        ValueError: it is refused.
    """
    check(
        isinstance(value, StepSchedule) or value >= 1,
        sampler,
        "tokens_per_step",
        value,
        "at least 1, or a step schedule",
    )


def check_cache(sampler: DecodingSettings, policy: Policy, cache: Cache | None) -> None:
    """Refuses a cache that cannot be used with a sampler and a policy.

    Raises:
        UserError: it is refused.
    """
    if cache is None:
        return
    if not sampler.records_tokens:
        raise UserError(
            f"{type(cache).__name__} is for samplers that commit a position once; {type(sampler).__name__} draws "
            "positions again"
        )
    policy.check_cache()
