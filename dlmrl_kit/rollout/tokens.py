"""The tokens of a policy without its model, which are cheap to copy or to send to another process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dlmrl_kit.core.policy import Policy, Vocabulary


@dataclass
class Tokens(Vocabulary):
    """Stores the attributes of a policy's ``Vocabulary`` as plain values."""

    tokenizer: Any
    vocab_size: int
    mask_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    forbidden_ids: tuple[int, ...]
    device: torch.device
    chat_template: bool = False
    prefix_ids: tuple[int, ...] = ()
    unknown_ids: tuple[int, ...] = ()
    max_length: int | None = None
    noise: Literal["mask", "uniform"] = "mask"
    """What an open position holds, as ``Policy.noise``."""
    aligned_size: int | None = None
    """Block size of a policy that counts blocks from the first token of the prompt; None for any other policy."""

    @classmethod
    def of(cls, policy: Policy) -> Tokens:
        """Copies the tokens of a policy."""
        aligned = policy.block_offset(torch.ones(1, 1, dtype=torch.bool)) is not None
        return cls(
            tokenizer=policy.tokenizer,
            vocab_size=policy.vocab_size,
            mask_id=policy.mask_id,
            eos_ids=policy.eos_ids,
            pad_id=policy.pad_id,
            forbidden_ids=tuple(sorted({policy.mask_id, *policy.forbidden_ids})),
            device=policy.device,
            chat_template=policy.chat_template,
            prefix_ids=policy.prefix_ids,
            unknown_ids=policy.unknown_ids,
            max_length=policy.max_length,
            noise=policy.noise,
            aligned_size=policy.block_size if aligned else None,
        )

    def block_offset(self, prompt_mask: Tensor) -> Tensor | None:
        """Counts the prompt tokens in the block in which the completion begins, as ``Policy.block_offset``."""
        return None if self.aligned_size is None else prompt_mask.sum(-1) % self.aligned_size
