"""The policy component: a checkpoint folder or hub id, with or without LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dlmrl_kit.core.dependencies import anchored_path
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.policies.adapter import lora_config
from dlmrl_kit.policies.adapter_files import holds_adapter
from dlmrl_kit.policies.adapter_settings import base_of
from dlmrl_kit.policies.base import PolicySource, check_checkpointing
from dlmrl_kit.policies.checkpoint_files import DOWNLOADED, checkpoint_folder
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.options import Attention, Checkpointing, Dtype, Quantisation
from dlmrl_kit.policies.recompute import recompute_blocks
from dlmrl_kit.policies.transformers_policy import TransformersPolicy


@register("policy")
class Pretrained(PolicySource):
    """A checkpoint as the starting point: all of its weights are trained, or a LoRA adapter on top of them.

    LoRA (arXiv 2106.09685) adapts every linear projection of attention and MLP, never the head or embeddings. There is
    no dropout, neither the checkpoint's nor LoRA's: with it the policy that is updated would not be the one that was
    rolled out, and the old/new ratio would not start at 1.

    Args:
        path: a checkpoint in transformers' layout or its family's, a peft adapter's folder (merged into its base), a
            hub id, or ``shipped:NAME`` for a denoiser inside the package.
        lora_rank: rank of the LoRA adapter (peft); 0 trains every weight.
        lora_alpha: LoRA scaling numerator.
        mask_id: id of the mask token, where the checkpoint does not say.
        forbidden_ids: ids that are never committed, besides those that the checkpoint rules out.
        eos_ids: ids that end a text, besides those that its tokenizer, chat template and configuration say.
        chat_template: format plain prompts with the tokenizer's chat template; None: as saved with the checkpoint, else
            no. Conversations always are.
        block_size: positions of a block of a block-causal model, where the checkpoint does not say.
        dtype: of the weights: ``auto`` (the checkpoint's), ``float32`` or ``bfloat16``. Weights that are trained are
            kept in float32.
        attention: implementation: ``auto`` (transformers chooses), ``sdpa``, ``eager``, ``flash_attention_2`` or
            ``flex_attention``.
        quantisation: ``nf4`` holds the frozen weights in 4 bits through bitsandbytes (arXiv 2305.14314); needs a GPU
            and ``lora_rank``.
        gradient_checkpointing: recompute blocks in the backward pass instead of storing their activations: all
            (``True``), none, or ``auto``: as many as memory asks for, chosen by the dry run's estimate when training
            starts (see ``training.activation_memory``). Results do not change.
        activation_gib: with ``auto``, GiB that the activations of a micro-batch may take; None: what is free beside
            weights, gradients and optimiser.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        path: str,
        lora_rank: int = 0,
        lora_alpha: int = 64,
        mask_id: int | None = None,
        forbidden_ids: tuple[int, ...] = (),
        eos_ids: tuple[int, ...] = (),
        chat_template: bool | None = None,
        block_size: int | None = None,
        dtype: Dtype = "auto",
        attention: Attention = "auto",
        quantisation: Quantisation = "none",
        gradient_checkpointing: Checkpointing = False,
        activation_gib: float | None = None,
    ) -> None:
        check(lora_rank >= 0, self, "lora_rank", lora_rank, "at least 0")
        check(lora_alpha > 0, self, "lora_alpha", lora_alpha, "positive")
        for name, ids in (("forbidden_ids", forbidden_ids), ("eos_ids", eos_ids)):
            whole = isinstance(ids, list | tuple) and all(type(index) is int and index >= 0 for index in ids)
            check(whole, self, name, ids, "a list of ids of tokens")
        check(block_size is None or block_size >= 1, self, "block_size", block_size, "at least 1, or None")
        check(
            quantisation == "none" or lora_rank > 0,
            self,
            "quantisation",
            quantisation,
            "'none' without LoRA: weights in 4 bits cannot be trained (set lora_rank)",
        )
        check_checkpointing(self, gradient_checkpointing)
        check(activation_gib is None or activation_gib > 0, self, "activation_gib", activation_gib, "positive, or None")
        only = "None without gradient_checkpointing = 'auto', which alone chooses by it"
        check(activation_gib is None or gradient_checkpointing == "auto", self, "activation_gib", activation_gib, only)
        self.path = path
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.mask_id = mask_id
        self.forbidden_ids = tuple(forbidden_ids)
        self.eos_ids = tuple(eos_ids)
        self.chat_template = chat_template
        self.block_size = block_size
        self.dtype = dtype
        self.attention = attention
        self.quantisation = quantisation
        self.gradient_checkpointing = gradient_checkpointing
        self.activation_gib = activation_gib

    @classmethod
    def anchored(cls, settings: Mapping[str, object]) -> dict[str, object]:
        """Makes the path of a local folder absolute."""
        path = anchored_path(settings.get("path"))
        return {} if path is None or not Path(path).is_dir() else {"path": path}

    def files(self) -> tuple[Path, ...]:
        """Returns the files of the checkpoint, and, where it is an adapter, those of its base."""
        folder = checkpoint_folder(self.path)
        folders = [folder, *([checkpoint_folder(base_of(folder))] if holds_adapter(folder) else [])]
        patterns = (*DOWNLOADED, "*.bin")
        return tuple(sorted({file for place in folders for pattern in patterns for file in Path(place).glob(pattern)}))

    def load(self) -> TransformersPolicy:
        """Reads the checkpoint, and adds an adapter and gradient checkpointing where these are asked for.

        Raises:
            UserError: the checkpoint cannot be read, or an option cannot be had on this machine.
        """
        try:
            policy = load_policy(
                self.path,
                mask_id=self.mask_id,
                forbidden_ids=self.forbidden_ids,
                eos_ids=self.eos_ids,
                chat_template=self.chat_template,
                block_size=self.block_size,
                dtype=self.dtype,
                attention=self.attention,
                quantisation=self.quantisation,
            )
        except UserError as error:
            setting = "Pretrained.path" if self.path in str(error) else "Pretrained"
            raise UserError(f"{setting}: {error}") from error
        self.prepare(policy, self.lora_rank)
        return policy

    def prepare(self, policy: TransformersPolicy, lora_rank: int) -> None:
        """Gives a policy that was just made an adapter of this rank, none for 0; all blocks recompute if asked to."""
        if lora_rank:
            policy.add_adapter(lora_config(policy.model, lora_rank, self.lora_alpha))
        if self.gradient_checkpointing is True:
            recompute_blocks(policy.model)
