"""Block-causal denoisers (block diffusion, arXiv 2503.09573; SDAR, arXiv 2510.06303).

A position attends to its own block and to all earlier ones. As in SDAR's released ``block_diffusion_generate``, blocks
are counted from the first real token of prompt and completion, however much padding is on its left: position p belongs
to block p // block_size. So the first block of a completion also holds the last ``prompt length mod block_size`` tokens
of the prompt, and samplers decode the rest of it before they go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.phases import phase
from dlmrl_kit.core.trajectory import unpadded
from dlmrl_kit.policies.compiling import uncompiled
from dlmrl_kit.policies.finished_blocks import PADDING, FinishedBlocks
from dlmrl_kit.policies.foreign import attention_of, given_cache, setting, using_attention
from dlmrl_kit.policies.options import PolicyArguments
from dlmrl_kit.policies.shared_blocks import packing
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

ATTENTION = ("sdpa", "eager", "flex_attention")
"""Attention implementations of transformers that take a mask of any shape."""


class BlockCausalPolicy(TransformersPolicy):
    """A denoiser whose attention is block-causal.

    Args:
        model: a transformers decoder with a language-model head; its config has ``block_size``.
        tokenizer, arguments: as ``TransformersPolicy``.

    Raises:
        UserError: as ``TransformersPolicy``, no block size, or an attention implementation that takes no mask.
    """

    block_size: int

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **arguments: Unpack[PolicyArguments]
    ) -> None:
        super().__init__(model, tokenizer, **arguments)
        size = setting(model.config, "block_size")
        if not isinstance(size, int) or size < 1:
            raise UserError(
                f"block_size must be a positive integer, got {size!r}: the config names none, give one with block_size"
            )
        self.block_size = size
        self.told["block_size"] = size
        if self.attention not in ATTENTION:
            raise UserError(
                f"attention = {self.attention!r} takes no block-causal mask; take one of {', '.join(ATTENTION)}"
            )
        self._cache: FinishedBlocks | None = None

    @property
    def attention(self) -> str:
        """Attention implementation of the model."""
        return attention_of(self.model.config)

    def block_offset(self, prompt_mask: Tensor) -> Tensor:
        """Counts the prompt tokens in the block in which the completion begins: int64 [B] from bool [B, P]."""
        return prompt_mask.sum(-1) % self.block_size

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Computes final hidden states [B, S, D] of whole sequences."""
        position = attention_mask.long().cumsum(-1) - 1
        block = (position // self.block_size).masked_fill(~attention_mask, PADDING)
        return self.attend(input_ids, position, block[:, :, None] >= block[:, None, :], block)

    def attend(
        self,
        input_ids: Tensor,
        position: Tensor,
        earlier: Tensor,
        key_block: Tensor,
        cache: Cache | None = None,
    ) -> Tensor:
        """Computes final hidden states [B, Q, D] of some tokens that see some keys.

        Args:
            input_ids, position: int64 [B, Q], the tokens and their rotary positions.
            earlier: bool [B, Q, K], which keys a query may see if they are real.
            key_block: int64 [B, K], ``PADDING`` where a key is none.
            cache: a transformers cache with the K - Q keys before these, to which these are added.
        """
        if len(input_ids) == 0:
            return self.no_states(input_ids)
        allowed = earlier & (key_block != PADDING)[:, None, :]
        queries, keys = (torch.arange(size, device=allowed.device) for size in allowed.shape[1:])
        allowed |= queries[:, None] + len(keys) - len(queries) == keys  # padding sees itself: no empty softmax
        flexible = self.attention == "flex_attention"  # compiled for each shape: not for the short steps of a rollout
        cached, decoder = cache is not None, self.model.get_decoder()
        with (
            using_attention(self.model.config, "sdpa" if flexible and cached else self.attention),
            uncompiled(self.compiled and cached),  # each block would be compiled for itself: it has its own keys
        ):
            states: Tensor = decoder(
                input_ids=input_ids,
                attention_mask=attention_mask_for(self.attention, allowed, self.model.dtype),
                position_ids=position.clamp(min=0),
                use_cache=cached,
                **given_cache(decoder, cache),
            ).last_hidden_state
        return states

    @contextlib.contextmanager
    def prefix_cache(self) -> Iterator[None]:
        """Within the context and without gradients, keys and values of blocks seen before are not computed again."""
        outer, self._cache = self._cache, FinishedBlocks(self.block_size)
        try:
            yield
        finally:
            self._cache = outer

    def hidden_at(self, input_ids: Tensor, attention_mask: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """As ``TransformersPolicy.hidden_at``, with blocks that states share computed once (``shared_blocks``).

        Within ``prefix_cache`` and without gradients, those that were seen before are not computed again.
        """
        if column.numel() == 0:
            return self.no_states(column)
        if self._cache is None or torch.is_grad_enabled():
            if self.attention == "flex_attention":  # compiled for each shape, of which packed states have many
                return self.hidden(input_ids, attention_mask)[row, column]
            packed = packing(input_ids, attention_mask, row, column, self.block_size, self.feature_size)
            return self.attend(packed.tokens, packed.position, packed.earlier(), packed.block)[
                packed.row, packed.column
            ]
        return self._cache.hidden_at(self.attend, input_ids, attention_mask, row, column)

    def replayed(
        self, prompt_ids: Tensor, prompt_mask: Tensor, clean_ids: Tensor, noised_ids: Tensor, scored: Tensor
    ) -> Tensor:
        """Computes final hidden states of blocks that are each in a state of their own, all blocks in one forward.

        The input is [prompt, clean completion, end of the prompt, noised completion]. A block of the noised completion
        sees itself and the clean blocks before it, so that it is predicted as if it were the block being decoded (arXiv
        2503.09573). The end of the prompt that shares a block with the completion is repeated too: it sees that block,
        and so its keys and values depend on the noised tokens.

        Args:
            prompt_ids, prompt_mask: int64 and bool [B, P], left-padded.
            clean_ids, noised_ids: int64 [B, L].
            scored: bool [B, L], positions of the noised completion.

        Returns:
            What the head turns into logits, [N, D], N = scored.sum(), in row-major order.

        Raises:
            UserError: the logits at position i - 1 predict token i.
        """
        if self.shift_logits:
            raise UserError(
                "BlockReplay is not for models whose logits are shifted by one: a block's first token is predicted by "
                "the block before, which is in another state there; take StepTokenLogProb"
            )
        prompt_ids, prompt_mask = unpadded(prompt_ids, prompt_mask)
        shared = min(self.block_size - 1, prompt_ids.shape[1])
        tail = slice(prompt_ids.shape[1] - shared, None)
        real = torch.cat([prompt_mask, torch.ones_like(scored)], dim=1)
        position = real.long().cumsum(-1) - 1
        block = (position // self.block_size).masked_fill(~real, PADDING)
        first = block[:, -scored.shape[1], None]  # the block in which the completion begins
        again = block[:, tail].masked_fill(block[:, tail] < first, PADDING)
        key_block = torch.cat([block, again], dim=1)
        noised = torch.arange(key_block.shape[1], device=block.device) >= block.shape[1]
        query, key = key_block[:, :, None], key_block[:, None, :]
        earlier = torch.where(noised[:, None], key < query, key <= query) & ~noised
        own = (query == key) & noised[:, None] & noised
        ids = torch.cat([prompt_ids, clean_ids, prompt_ids[:, tail], noised_ids], dim=1)
        where = torch.cat([position, position[:, tail]], dim=1)
        row, column = scored.nonzero(as_tuple=True)
        with phase("body"):
            return self.in_turn(
                row,
                column,
                lambda: self.attend(ids, where, earlier | own, key_block)[:, -scored.shape[1] :][row, column],
            )


def attention_mask_for(implementation: str, allowed: Tensor, dtype: torch.dtype) -> Tensor | BlockMask:
    """Returns a mask as one of transformers' attention implementations takes it.

    Args:
        implementation: one of ``ATTENTION``.
        allowed: bool [B, Q, K], which keys a query sees.
        dtype: of the model.
    """
    if implementation == "eager":
        closed = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return closed.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]
    if implementation == "flex_attention":
        return _flex_mask(allowed)
    return allowed[:, None]


def _flex_mask(allowed: Tensor) -> BlockMask:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allowed[batch, query, key]

    batch, queries, keys = allowed.shape
    return create_block_mask(visible, batch, None, queries, keys, device=allowed.device)
