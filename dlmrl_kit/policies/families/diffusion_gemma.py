"""DiffusionGemma: a causal encoder reads what is final, and a decoder denoises one canvas of tokens both ways.

The two share their weights. A completion is a row of canvases; the prompt and the canvases before the asked one go
through the encoder, whose keys and values the decoder reads. Canvases are counted from the end of the sequence, so
that a completion must consist of whole canvases.

Self-conditioning is off: at each denoising step transformers' ``generate`` also feeds the decoder the logits of the
step before. These are no function of the state, but of all steps before it and of the weights that sampled them; with
them no step would have an exact log-probability of its own. The decoder gets the zero signal that it was trained with
for a part of the examples (Analog Bits, arXiv 2208.04202), and that it gets in every first step.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Unpack

import torch
from torch import Tensor, nn

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.phases import phase
from dlmrl_kit.policies.adapter import pattern
from dlmrl_kit.policies.checkpoint_files import ConfigJson, architectures, load_tokenizer
from dlmrl_kit.policies.families.base import Family
from dlmrl_kit.policies.foreign import given_cache
from dlmrl_kit.policies.options import LoadOptions, PolicyArguments
from dlmrl_kit.policies.text_bounds import distinct, end_of_turn
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import DynamicCache, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from dlmrl_kit.policies.checkpoint_files import ModelClass

_ADAPTED = re.compile(r"model\.(decoder|encoder\.language_model)\.layers\.\d+\.(self_attn|mlp)\.\w+")
_ENCODER, _DECODER = "model.encoder.language_model.", "model.decoder."


class DiffusionGemmaPolicy(TransformersPolicy):
    """A denoiser around a ``DiffusionGemmaForBlockDiffusion``, for text: its vision tower is frozen.

    The model knows no mask. ``mask_id``, the tokenizer's mask or else its padding, stands where a canvas has not begun.

    Args:
        model: the transformers model.
        tokenizer, arguments: as ``TransformersPolicy``.

    Raises:
        UserError: as ``TransformersPolicy``.
    """

    noise: Literal["mask", "uniform"] = "uniform"
    block_size: int
    uncompilable = (
        "is not for DiffusionGemma: its layers look up cached keys by their number, so that each would be compiled for "
        "itself, dozens of times"
    )
    unshardable = "is not for DiffusionGemma, whose prompts are encoded and cached by parts of the model"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **arguments: Unpack[PolicyArguments]
    ) -> None:
        if arguments.get("mask_id") is None and tokenizer.mask_token_id is None:
            arguments["mask_id"] = tokenizer.pad_token_id
        super().__init__(model, tokenizer, **arguments)
        self.block_size = int(model.config.canvas_length)
        self.softcap = float(model.config.get_text_config().final_logit_softcapping)
        self.prefix_ids = self.prefix_ids or distinct([tokenizer.bos_token_id])
        for name, part in model.get_submodule("model.encoder").named_children():
            if name != "language_model":
                part.requires_grad_(False)
        self._prefixes: _Prefixes | None = None
        self._caching = False

    def hidden_at(self, input_ids: Tensor, attention_mask: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """As ``TransformersPolicy.hidden_at``; every asked canvas is denoised with what comes before it.

        Raises:
            UserError: a position before the first canvas, or an asked canvas with masks in it.
        """
        row, column = torch.broadcast_tensors(row, column)
        if row.numel() == 0:
            return self.no_states(row)
        from_end = (input_ids.shape[1] - 1 - column) // self.block_size
        pairs, index = torch.unique(torch.stack([row, from_end]).flatten(1), dim=1, return_inverse=True)
        start = input_ids.shape[1] - (pairs[1] + 1) * self.block_size
        hidden = self._denoise(input_ids[pairs[0]], attention_mask[pairs[0]], start)
        index = index.view_as(row)
        return hidden[index, column - start[index]]

    def head(self, features: Tensor) -> Tensor:
        """Computes soft-capped logits [..., V] in float32 from hidden states [..., D]."""
        with phase("head"):
            logits: Tensor = self.model.get_output_embeddings()(features)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            return torch.tanh(logits / self.softcap) * self.softcap

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Refuses: there are no hidden states of whole sequences.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("DiffusionGemma has no hidden states of whole sequences, only of one canvas")

    def _denoise(self, input_ids: Tensor, attention_mask: Tensor, start: Tensor) -> Tensor:
        """Returns the hidden states [B, C, D] of the canvas of each row that begins at ``start`` (int64 [B])."""
        if bool((start < 0).any()):
            raise UserError(f"completions must be whole canvases of {self.block_size} tokens")
        offset = torch.arange(self.block_size, device=start.device)
        canvas = input_ids.gather(1, start[:, None] + offset)
        if bool((canvas == self.mask_id).any()):
            raise UserError(
                "this model has no mask: it denoises random tokens, so it needs a sampler such as "
                "EntropyBoundRenoising, and a likelihood of single steps such as StepLogProb"
            )
        prefix_ids, prefix_mask = _left_padded(input_ids, attention_mask, start)
        prefix_mask, states = self._encoded(prefix_ids, prefix_mask)
        position = prefix_mask.sum(-1)[:, None] + offset
        decoder = self.model.get_decoder()
        hidden: Tensor = decoder(
            decoder_input_ids=canvas,
            **given_cache(decoder, states),
            decoder_attention_mask=torch.cat([prefix_mask, torch.ones_like(canvas, dtype=torch.bool)], dim=1),
            decoder_position_ids=position,
        ).last_hidden_state
        return hidden

    def _encoded(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, DynamicCache]:
        """Returns keys and values of left-padded prefixes, and the mask [B, W] that belongs to them."""
        if not self._caching or torch.is_grad_enabled():
            return mask, self._encode(ids, mask)
        found = None if self._prefixes is None else self._prefixes.select(ids, mask)
        self._prefixes = found or _Prefixes(ids, mask, self._encode(ids, mask))
        return self._prefixes.mask, self._prefixes.states

    def _encode(self, ids: Tensor, mask: Tensor) -> DynamicCache:
        """Runs the encoder on left-padded prefixes, int64 and bool [B, W]; returns its keys and values."""
        from transformers import DynamicCache

        position = (mask.long().cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config.get_text_config())
        encoder = self.model.get_submodule("model.encoder.language_model")
        encoder(input_ids=ids, attention_mask=mask, position_ids=position, **given_cache(encoder, cache))
        return cache

    @contextlib.contextmanager
    def prefix_cache(self) -> Iterator[None]:
        """Within the context and without gradients, a prefix goes through the encoder once."""
        outer = (self._caching, self._prefixes)
        self._caching, self._prefixes = True, None
        try:
            yield
        finally:
            self._caching, self._prefixes = outer

    def add_adapter(self, config: PeftConfig) -> None:
        """Adds an adapter to attention and MLP of the text layers; encoder and decoder share it.

        Args:
            config: a ``LoraConfig``; its own choice of modules is replaced.
        """
        from peft import LoraConfig
        from peft.tuners.lora import LoraLayer

        assert isinstance(config, LoraConfig)
        config = copy.copy(config)
        linear = {name for name, part in self.model.named_modules() if isinstance(part, nn.Linear)}
        config.target_modules = pattern(name for name in linear if _ADAPTED.fullmatch(name))
        super().add_adapter(config)
        modules = dict(self.model.named_modules())
        for name, part in modules.items():
            if name.startswith(_ENCODER) and isinstance(part, LoraLayer):
                twin = modules[_DECODER + name.removeprefix(_ENCODER)]
                assert isinstance(twin, LoraLayer)
                part.lora_A, part.lora_B = twin.lora_A, twin.lora_B


@dataclass(frozen=True)
class _Prefixes:
    """Encoded prefixes.

    Args:
        ids, mask: their tokens, int64 [E, W], and which of them are real, bool [E, W]; left-padded.
        states: their keys and values.
    """

    ids: Tensor
    mask: Tensor
    states: DynamicCache

    def select(self, ids: Tensor, mask: Tensor) -> _Prefixes | None:
        """Returns the entries for prefixes [B, W'], left-padded; None if one of them is not there."""
        width = min(ids.shape[1], self.ids.shape[1])
        if bool(mask[:, : mask.shape[1] - width].any()):
            return None
        same_mask = self.mask.sum(-1) == mask.sum(-1)[:, None]
        ours, theirs = self.ids[:, -width:], ids[:, -width:]
        same = same_mask & ((ours == theirs[:, None]) | ~mask[:, None, -width:]).all(-1)
        if not bool(same.any(-1).all()):
            return None
        index = same.long().argmax(-1)
        if torch.equal(index, torch.arange(len(self.ids), device=index.device)):
            return self
        states = copy.copy(self.states)
        states.layers = [copy.copy(layer) for layer in states.layers]
        states.batch_select_indices(index)
        return _Prefixes(self.ids[index], self.mask[index], states)


def _left_padded(input_ids: Tensor, attention_mask: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the columns before ``end`` (int64 [B]) of each row, their last one on the right: ids and mask [B, W]."""
    width = int(end.max())
    column = end[:, None] - width + torch.arange(width, device=end.device)
    inside = column >= 0
    column = column.clamp(min=0)
    mask = attention_mask.gather(1, column) & inside
    empty = int((~mask.any(0)).long().cumprod(0).sum()) if width else 0
    empty = min(empty, width - 1)  # keeps one column at least, for transformers
    ids = input_ids.gather(1, column) * mask
    if width == 0:
        return torch.zeros_like(end)[:, None], torch.zeros_like(end, dtype=torch.bool)[:, None]
    return ids[:, empty:], mask[:, empty:]


class DiffusionGemma(Family):
    """DiffusionGemma's weights in ``DiffusionGemmaForBlockDiffusion``."""

    supported = "DiffusionGemma (model type diffusion_gemma)"
    policy_class = DiffusionGemmaPolicy

    def recognises(self, config: ConfigJson) -> bool:
        """Tells whether ``config.json`` is DiffusionGemma's."""
        named = config.get("model_type") == "diffusion_gemma"
        return named or "DiffusionGemmaForBlockDiffusion" in architectures(config)

    def model_class(self) -> ModelClass:
        """``DiffusionGemmaForBlockDiffusion``."""
        from transformers import DiffusionGemmaForBlockDiffusion

        return DiffusionGemmaForBlockDiffusion

    def model_config(self, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """Returns the ``DiffusionGemmaConfig``."""
        from transformers import DiffusionGemmaConfig

        return DiffusionGemmaConfig.from_dict(config)

    def tokenizer(self, folder: str, config: ConfigJson) -> PreTrainedTokenizerBase:
        """Loads the tokenizer; the part of ``config.json`` on text says what it does not."""
        return load_tokenizer(folder, config.get("text_config") or {})

    def ends(self, folder: str, config: ConfigJson, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Returns the ids that end a text, the end of a turn first: it fills what a finished answer leaves open."""
        return distinct([end_of_turn(tokenizer), *super().ends(folder, config, tokenizer)])
