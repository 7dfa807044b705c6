"""The policy component: a checkpoint folder or hub id, with or without LoRA."""

from __future__ import annotations

from dlmrl_kit.policies.base import Policy
from dlmrl_kit.registry import register
from dlmrl_kit.validate import check


@register("policy")
class Pretrained:
    """A checkpoint as the starting point: all of its weights are trained, or a LoRA adapter on top of them.

    Args:
        path: folder written by ``save_pretrained``, hub id, or ``shipped:NAME`` for a denoiser inside the package.
        lora_rank: rank of the LoRA adapter (peft); 0 trains every weight.
        lora_alpha: LoRA scaling numerator.
        mask_id: id of the mask token, where the checkpoint does not say.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, path: str, lora_rank: int = 0, lora_alpha: int = 64, mask_id: int | None = None) -> None:
        check(lora_rank >= 0, self, "lora_rank", lora_rank, "at least 0")
        check(lora_alpha > 0, self, "lora_alpha", lora_alpha, "positive")
        self.path = path
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.mask_id = mask_id

    def load(self) -> Policy:
        """Reads the checkpoint and adds the adapter.

        Raises:
            UserError: the checkpoint cannot be read.
        """
        policy = Policy.from_pretrained(self.path, mask_id=self.mask_id)
        if self.lora_rank:
            from peft import LoraConfig

            policy.add_adapter(
                LoraConfig(r=self.lora_rank, lora_alpha=self.lora_alpha, lora_dropout=0.0, target_modules="all-linear")
            )
        return policy
