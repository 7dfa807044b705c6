"""The policy: a transformers model that predicts masked tokens, behind one small interface.

The language-model head runs at the asked positions only; the mask id, end of text and forbidden ids come from the
checkpoint. The model stays in eval mode, in the update too: dropout would make the old/new ratio differ from 1.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.fused_lora import fused
from dlmrl_kit.policies.key_cache import KeyCache
from dlmrl_kit.policies.merging import merged
from dlmrl_kit.policies.pruning import DECODERS, last_layer_at, prunable
from dlmrl_kit.policies.pruning import positions as rotary_positions

if TYPE_CHECKING:
    from dlmrl_kit.policies.layout import Layout


class Policy(nn.Module):
    """A denoiser.

    Args:
        model: a transformers model with a language-model head, attending both ways.
        tokenizer: its tokenizer; must define the mask token unless ``mask_id`` is given.
        mask_id: id of the mask token, where neither the model's config nor the tokenizer says.
        shift_logits: whether the logits at position i - 1 predict token i; None: as the model's config says.
        forbidden_ids: ids that are never committed, besides the mask, padding, the unknown token and rows beyond the
            tokenizer's vocabulary.
        chat_template: format plain prompts with the tokenizer's chat template, as one message of the user;
            conversations always are. None: no.
        layout: how the family of the checkpoint writes its files; None: as transformers does.

    Raises:
        UserError: no mask id to be found, or ``chat_template`` for a tokenizer that has none.
    """

    chat_template: bool = False
    prefix_ids: tuple[int, ...] = ()
    """Tokens in front of every plain prompt: what the family starts a text with."""

    layout: Layout | None = None
    name: str = ""
    """The path or hub id it was loaded from."""

    block_size: int | None = None
    """Positions of a block, for models that denoise block by block."""

    noise: Literal["mask", "uniform"] = "mask"
    """What an open position holds: the mask token, or a random token of the vocabulary."""

    compiled = False
    """Whether its transformer blocks are compiled (``compiling.compile_blocks``)."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        mask_id: int | None = None,
        shift_logits: bool | None = None,
        forbidden_ids: tuple[int, ...] = (),
        chat_template: bool | None = None,
        layout: Layout | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.layout = layout
        given = (mask_id, shift_logits, tuple(forbidden_ids), chat_template)
        self.told = dict(zip(("mask_id", "shift_logits", "forbidden_ids", "chat_template"), given, strict=True))
        config = text_config(model)
        self.shift_logits = bool(getattr(config, "shift_logits", False)) if shift_logits is None else shift_logits
        self.mask_id: int = _mask_id(config, tokenizer, mask_id)
        self.eos_id: int | None = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.mask_id
        self.vocab_size: int = int(config.vocab_size)
        special = {self.mask_id, *forbidden_ids, *range(len(tokenizer), self.vocab_size)}
        special |= {i for i in (tokenizer.pad_token_id, tokenizer.unk_token_id) if i is not None and i != self.eos_id}
        self.forbidden_ids: tuple[int, ...] = tuple(sorted(special))
        self.chat_template = bool(chat_template)
        if self.chat_template and not getattr(tokenizer, "chat_template", None):
            raise UserError("chat_template = True, but the tokenizer has no chat template")
        self._reference: nn.Module | None = None
        self._adapter: Any = None
        self._keys: KeyCache | None = None
        self.eval()

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Policy:
        """Loads a checkpoint folder (or hub id); its ``config.json`` decides the family, never the path's name.

        Args:
            path: a checkpoint in transformers' layout or in its family's own, a peft adapter's folder (the adapter is
                merged into its base), or a hub id.
            options: see ``dlmrl_kit.policies.options.LoadOptions``: ``mask_id``, ``shift_logits``, ``forbidden_ids``,
                ``chat_template``, ``dtype``, ``attention``, ``quantisation``.

        Raises:
            UserError: no such folder, or a family the kit does not know.
        """
        from dlmrl_kit.policies.load import load

        return load(path, **options)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Logits at the asked positions.

        Args:
            input_ids: int64 [B, S].
            attention_mask: bool [B, S], False at padding.
            positions: bool [B, S], the positions to predict; or int64 [B, M], their indices.

        Returns:
            [N, V] for a bool mask (N = positions.sum(), in row-major order), [B, M, V] for indices.
        """
        return self.head(self.features(input_ids, attention_mask, positions))

    @property
    def feature_size(self) -> int:
        """D, the size of ``features``."""
        return int(text_config(self.model).hidden_size)

    def features(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """What the head turns into logits at the asked positions: as ``forward``, with the hidden size D for V."""
        if positions.dtype == torch.bool:
            row, column = positions.nonzero(as_tuple=True)
        else:
            row, column = torch.arange(len(positions), device=positions.device)[:, None], positions
        if self.shift_logits:  # a row's first token has no predecessor and is predicted from its own position
            before = (column - 1).clamp(min=0)
            column = torch.where(attention_mask[row, before], before, column)
        return self.hidden_at(input_ids, attention_mask, row, column)

    def hidden_at(self, input_ids: Tensor, attention_mask: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Final hidden states [..., D] at the places (row, column), int64 [...] each (they broadcast)."""
        if len(input_ids) and self._keys is not None and not torch.is_grad_enabled():
            return self._keys.hidden_at(self.model.get_decoder(), input_ids, attention_mask, row, column)
        if len(input_ids) and prunable(self.model):
            return last_layer_at(self.model.get_decoder(), input_ids, attention_mask, row, column)
        return self.hidden(input_ids, attention_mask)[row, column]

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Final hidden states [B, S, D]; rotary positions count from each row's first real token."""
        if len(input_ids) == 0:  # transformers cannot reshape an empty batch
            return self.model.get_input_embeddings()(input_ids)
        position_ids = rotary_positions(attention_mask)
        body = self.model.get_decoder()
        return body(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state

    def prefix_cache(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, a model whose finished blocks never change may reuse what it computed of them."""
        return contextlib.nullcontext()

    def check_cache(self) -> None:
        """Refuses approximate caches (``dlmrl_kit.caches``) where they cannot be used.

        Raises:
            UserError: the model is none of those whose layers are known, attending both ways.
        """
        if self.block_size is not None:
            raise UserError("the model denoises block by block and reuses finished blocks exactly: it needs no cache")
        if not prunable(self.model):
            raise UserError(
                f"a cache needs a model of one of the classes {', '.join(DECODERS)}, attending both ways with "
                f"attention = 'sdpa'; this one is {type(self.model).__name__}"
            )

    @contextlib.contextmanager
    def cached(self, cache: Cache, completion_length: int, block_length: int) -> Iterator[None]:
        """Within the context and without gradients, this policy is the cached one: see ``dlmrl_kit.caches``.

        Inputs must end with completions of this length.

        Args:
            cache: which positions a step computes again.
            completion_length, block_length: of the sampler.
        """
        window = cache.window(self.mask_id, completion_length, block_length, self.shift_logits)
        outer, self._keys = self._keys, KeyCache(window)
        try:
            yield
        finally:
            self._keys = outer

    def block_offset(self, prompt_mask: Tensor) -> Tensor | None:
        """Prompt tokens in the block in which the completion begins: int64 [B]; None: it begins with a block."""
        return None

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] from hidden states [..., D]."""
        return self.model.get_output_embeddings()(hidden)

    def add_adapter(self, config: Any) -> None:
        """Freezes the model and trains a peft adapter instead; the reference is then the base with the adapter off."""
        from peft import get_peft_model

        from dlmrl_kit.policies.checkpoint_files import quiet

        with quiet():
            self._adapter = get_peft_model(self.model, config)
        self._adapter.eval()

    @property
    def adapter(self) -> Any:
        """The ``PeftModel`` around the model, or None."""
        return self._adapter

    def freeze_reference(self) -> None:
        """Fixes the present weights as the reference policy. With an adapter nothing is copied."""
        if self._adapter is None:
            self._reference = copy.deepcopy(self.model).requires_grad_(False)

    @contextlib.contextmanager
    def reference(self) -> Iterator[Policy]:
        """Within the context, this policy computes with the frozen reference weights.

        Raises:
            RuntimeError: ``freeze_reference`` was not called and there is no adapter.
        """
        if self._adapter is not None:
            with self._adapter.disable_adapter():
                yield self
            return
        if self._reference is None:
            raise RuntimeError("call freeze_reference() before using the reference policy")
        current = self.model
        self.model = self._reference
        try:
            yield self
        finally:
            self.model = current

    def merged(self) -> contextlib.AbstractContextManager[None]:
        """Within the context and without gradients, the adapter is in the weights: faster, equal up to rounding."""
        return contextlib.nullcontext() if self._adapter is None else merged(self._adapter)

    def fused(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, in which the weights must not change, an adapter takes fewer matrix products."""
        return contextlib.nullcontext() if self._adapter is None else fused(self._adapter)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimiser updates."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def save_pretrained(self, path: str | Path) -> None:
        """Writes model (adapter merged, if there is one) and tokenizer as a transformers folder."""
        from dlmrl_kit.policies.saving import save_transformers

        save_transformers(self, Path(path))

    def save_own_layout(self, path: str | Path) -> None:
        """Writes model (adapter merged) and tokenizer as the family publishes its checkpoints.

        Tensor names are the family's; ``config.json``, tokenizer and other small files are those that the checkpoint
        came with. Where the family has no layout of its own, this is ``save_pretrained``.
        """
        from dlmrl_kit.policies.saving import save_own_layout

        save_own_layout(self, Path(path))

    def save_adapter(self, path: str | Path) -> None:
        """Writes the adapter as a peft folder for the checkpoint it was trained on, in its family's module names.

        Raises:
            UserError: there is no adapter.
        """
        from dlmrl_kit.policies.saving import save_adapter

        save_adapter(self, Path(path))


def text_config(model: Any) -> Any:
    """The part of a model's configuration that is about text: all of it, but for models that also see images."""
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config


def _mask_id(config: Any, tokenizer: Any, given: int | None) -> int:
    for found in (given, getattr(config, "mask_token_id", None), tokenizer.mask_token_id):
        if found is not None:
            break
    else:
        raise UserError("the checkpoint names no mask token: give one with mask_id, or set the tokenizer's mask_token")
    if not 0 <= int(found) < int(config.vocab_size):
        raise UserError(f"mask_id {found} is no token of the model, which has {config.vocab_size}")
    return int(found)


def completion_features(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, positions: Tensor
) -> Tensor:
    """As ``completion_logits``, without the head: ``head_logits`` makes logits of it."""
    run = policy.features if in_two_parts(policy) else policy
    return run(*_sequences(prompt_ids, prompt_mask, completion_ids, positions))


def head_logits(policy: Policy, features: Tensor) -> Tensor:
    """Raw logits [N, V] from what ``completion_features`` gave, of which they share no memory."""
    return policy.head(features) if in_two_parts(policy) else features.clone()


def in_two_parts(policy: Any) -> bool:
    """Whether a policy's ``forward`` is its ``head`` on its ``features``: not if its class replaces ``forward`` alone.

    A policy needs nothing but ``forward``; its logits then stand for the features.
    """
    for cls in type(policy).__mro__:
        if "features" in vars(cls) or "forward" in vars(cls):
            return "features" in vars(cls)
    return False


def completion_logits(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, positions: Tensor
) -> Tensor:
    """Raw logits [N, V] at the completion positions marked in bool [B, L], each completion behind its prompt.

    Args:
        policy: the denoiser.
        prompt_ids, prompt_mask: int64 and bool [B, P], left-padded.
        completion_ids: int64 [B, L], masked where open; all of it is attended to.
        positions: bool [B, L], N of them.
    """
    return policy(*_sequences(prompt_ids, prompt_mask, completion_ids, positions))


def _sequences(
    prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and asked positions of completions behind their prompts: [B, S] each."""
    prompt_ids, prompt_mask = unpadded(prompt_ids, prompt_mask)
    return (
        torch.cat([prompt_ids, completion_ids], dim=1),
        torch.cat([prompt_mask, torch.ones_like(positions)], dim=1),
        torch.cat([torch.zeros_like(prompt_mask), positions], dim=1),
    )


def unpadded(prompt_ids: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Left-padded prompts, int64 and bool [B, P], without the columns at the left that are padding in every row."""
    if prompt_mask.numel() == 0 or bool(prompt_mask[:, 0].any()):
        return prompt_ids, prompt_mask
    empty = int((~prompt_mask.any(0)).long().cumprod(0).sum())
    return prompt_ids[:, empty:], prompt_mask[:, empty:]
