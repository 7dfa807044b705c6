"""The policy: a transformers model that predicts masked tokens, behind one small interface.

The language-model head runs at the asked positions only; the mask id, end of text and forbidden ids come from the
checkpoint. The model stays in eval mode, in the update too: dropout would make the old/new ratio differ from 1.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlmrl_kit.errors import UserError


class Policy(nn.Module):
    """A denoiser.

    Args:
        model: a transformers model with a language-model head, attending both ways.
        tokenizer: its tokenizer; must define the mask token unless ``mask_id`` is given.
        mask_id: id of the mask token, where the tokenizer does not say.
        shift_logits: whether the logits at position i - 1 predict token i; also where the model's config says so.
        forbidden_ids: ids that are never committed, besides the mask, padding, the unknown token and rows beyond the
            tokenizer's vocabulary.

    Raises:
        UserError: no mask id to be found.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        mask_id: int | None = None,
        shift_logits: bool = False,
        forbidden_ids: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.shift_logits: bool = shift_logits or bool(getattr(model.config, "shift_logits", False))
        found = mask_id if mask_id is not None else getattr(model.config, "mask_token_id", None)
        found = found if found is not None else tokenizer.mask_token_id
        if found is None:
            raise UserError(
                "the checkpoint names no mask token: give one with mask_id, or set the tokenizer's mask_token"
            )
        self.mask_id: int = int(found)
        self.eos_id: int | None = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.mask_id
        self.vocab_size: int = int(model.config.vocab_size)
        special = {self.mask_id, *forbidden_ids, *range(len(tokenizer), self.vocab_size)}
        special |= {i for i in (tokenizer.pad_token_id, tokenizer.unk_token_id) if i is not None and i != self.eos_id}
        self.forbidden_ids: tuple[int, ...] = tuple(sorted(special))
        self._reference: nn.Module | None = None
        self._adapter: Any = None
        self.eval()

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Policy:
        """Loads a checkpoint folder (or hub id); its ``config.json`` decides the family, never the path's name.

        Args:
            path: folder written by ``save_pretrained``, or a hub id.
            options: passed to the family's constructor (``mask_id``, ``shift_logits``, ``forbidden_ids``).

        Raises:
            UserError: no such folder, or a family the kit does not know.
        """
        from dlmrl_kit.policies.families import load

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
        hidden = self.hidden(input_ids, attention_mask)
        if self.shift_logits:
            hidden = torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)
        if positions.dtype == torch.bool:
            return self.head(hidden[positions])
        return self.head(hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1])))

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Final hidden states [B, S, D]; rotary positions count from each row's first real token."""
        if len(input_ids) == 0:  # transformers cannot reshape an empty batch
            return self.model.get_input_embeddings()(input_ids)
        position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_(min=0)
        body = self.model.get_decoder()
        return body(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] from hidden states [..., D]."""
        return self.model.get_output_embeddings()(hidden)

    def add_adapter(self, config: Any) -> None:
        """Freezes the model and trains a peft adapter instead; the reference is then the base with the adapter off."""
        from peft import get_peft_model

        self._adapter = get_peft_model(self.model, config)
        self._adapter.eval()

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

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimiser updates."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def save_pretrained(self, path: str | Path) -> None:
        """Writes model (adapter merged into a copy, if there is one) and tokenizer as a transformers folder."""
        model = self.model
        if self._adapter is not None:
            model = copy.deepcopy(self._adapter).merge_and_unload()
        model.config.mask_token_id = self.mask_id
        if self.shift_logits:
            model.config.shift_logits = True
        from dlmrl_kit.policies.families import quiet

        with quiet():
            model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)


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
    return policy(
        torch.cat([prompt_ids, completion_ids], dim=1),
        torch.cat([prompt_mask, torch.ones_like(positions)], dim=1),
        torch.cat([torch.zeros_like(prompt_mask), positions], dim=1),
    )
