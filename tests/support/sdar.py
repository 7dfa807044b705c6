"""Prompts and rollouts for SDAR's blocks, and a count of the tokens that go through its body."""

from __future__ import annotations

from typing import Any

from support.block_checkpoints import padded_batch
from support.seeds import seeded
from tensordict import TensorDict
from torch import Tensor

LENGTHS = (9, 4, 1, 6, 3)
LENGTH = 10


def batch(lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    return padded_batch(256, lengths, LENGTH)


def prompts(lengths: tuple[int, ...] = LENGTHS) -> TensorDict:
    ids, mask = batch(lengths)
    width = max(lengths)
    return TensorDict({"prompt_ids": ids[:, :width], "prompt_mask": mask[:, :width]}, [len(lengths)])


class Counted:
    """Tokens that go through a policy's body, for each of its forwards."""

    def __init__(self, policy: Any) -> None:
        self.tokens: list[int] = []
        self.handle = policy.model.get_decoder().register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        self.tokens.append(kwargs["input_ids"].shape[1])

    def __enter__(self) -> list[int]:
        return self.tokens

    def __exit__(self, *error: object) -> None:
        self.handle.remove()


def rollout(policy: Any, sampler: Any, seed: int = 3, **given: Any) -> TensorDict:
    """A trajectory; ``given``: to the sampler."""
    return sampler(seeded(prompts(), seed), policy=policy, **given)
