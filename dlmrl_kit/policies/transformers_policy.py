"""A policy around a transformers model with a language-model head.

The head runs at the asked positions only; mask id, end of text and forbidden ids come from the checkpoint. The model
stays in eval mode, in the update too: dropout would make the old/new ratio differ from 1.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.generation import BATCH_SIZE, Decoder, as_list, generate
from dlmrl_kit.core.phases import phase
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.core.prompt import Prompt
from dlmrl_kit.core.trajectory import on_device, on_host
from dlmrl_kit.core.window import Window
from dlmrl_kit.policies.adapter import blocks
from dlmrl_kit.policies.checkpoint_files import quiet
from dlmrl_kit.policies.compiling import check_compiler, compile_each
from dlmrl_kit.policies.foreign import attention_of, context_length, plain_weight, setting
from dlmrl_kit.policies.fused_lora import fused
from dlmrl_kit.policies.key_cache import KeyCache
from dlmrl_kit.policies.last_layer import DECODERS, last_layer_at, prunable
from dlmrl_kit.policies.last_layer import positions as rotary_positions
from dlmrl_kit.policies.layout import Layout
from dlmrl_kit.policies.merging import merged
from dlmrl_kit.policies.options import Told
from dlmrl_kit.policies.sharding import Parts, Sharding, check_shardable
from dlmrl_kit.policies.special_ids import mask_of
from dlmrl_kit.policies.text_bounds import beginning, distinct, end_of_turn, unknown_tokens

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class TransformersPolicy(Policy):
    """A denoiser around a transformers model that attends both ways. ``load_policy`` makes one of a checkpoint.

    Subclasses, for models that attend otherwise or have another head, override ``hidden``, ``hidden_at`` or ``head``.

    Args:
        model: a transformers model with a language-model head.
        tokenizer: its tokenizer; must define the mask token unless ``mask_id`` is given.
        mask_id: id of the mask token, where neither the model's config nor the tokenizer says.
        shift_logits: whether the logits at position i - 1 predict token i; None: as the model's config says.
        forbidden_ids: ids that are never committed, besides the mask, padding, the unknown token and rows beyond the
            tokenizer's vocabulary.
        eos_ids: ids that end a text, besides those below and those of tokenizer and chat template.
        chat_template: format plain prompts with the tokenizer's chat template, as one message of the user;
            conversations always are. None: no.
        listed_ends: ids that end a text by the checkpoint's files; the first fills what finished completions leave
            open. Empty: that is the tokenizer's end of text.
        layout: how the family of the checkpoint writes its files; None: as transformers does.
        name: the path or hub id that it was loaded from.

    Raises:
        UserError: no mask id to be found, ends of text that are no tokens or the mask, or ``chat_template`` for a
            tokenizer that has none.
    """

    uncompilable: ClassVar[str] = ""
    """Why blocks of this class of policies cannot be compiled; empty where they can."""
    unshardable: ClassVar[str] = ""
    """Why weights of this class of policies cannot be sharded; empty where they can."""
    exact: ClassVar[tuple[str, ...]] = ()
    """Names of modules in a block that compute in the precision of their weights, in bfloat16 training, too."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mask_id: int | None = None,
        shift_logits: bool | None = None,
        forbidden_ids: tuple[int, ...] = (),
        eos_ids: tuple[int, ...] = (),
        chat_template: bool | None = None,
        listed_ends: tuple[int, ...] = (),
        layout: Layout | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.layout = layout
        self.name = name
        self.told: Told = {
            "mask_id": mask_id,
            "shift_logits": shift_logits,
            "forbidden_ids": tuple(forbidden_ids),
            "eos_ids": tuple(eos_ids),
            "chat_template": chat_template,
        }
        """What the caller said of the checkpoint; saved beside the weights."""
        config = text_config(model)
        self.shift_logits = bool(setting(config, "shift_logits")) if shift_logits is None else shift_logits
        self.mask_id = mask_of(config, tokenizer, mask_id)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.mask_id
        self.vocab_size = int(config.vocab_size)
        self.eos_ids = distinct([*listed_ends, tokenizer.eos_token_id, end_of_turn(tokenizer), *eos_ids])
        for index in self.eos_ids:
            if not 0 <= index < self.vocab_size or index == self.mask_id:
                what = "the mask" if index == self.mask_id else f"no token of the model, which has {self.vocab_size}"
                raise UserError(f"{'eos_ids' if index in eos_ids else 'an end of text'}: {index} is {what}")
        self.prefix_ids = beginning(tokenizer)
        self.unknown_ids = unknown_tokens(tokenizer)
        self.max_length = context_length(config)
        special = {self.mask_id, *forbidden_ids, *range(len(tokenizer), self.vocab_size)}
        nothing = distinct([tokenizer.pad_token_id, tokenizer.unk_token_id])
        special |= {*nothing} - {*self.eos_ids}  # padding may be an end
        self.forbidden_ids = tuple(sorted(special))
        self.chat_template = bool(chat_template)
        if self.chat_template and not tokenizer.chat_template:
            raise UserError("chat_template = True, but the tokenizer has no chat template")
        self.compiled = False
        """Whether the transformer blocks are compiled."""
        self.frozen: PreTrainedModel | None = None
        """The reference's copy of the model; None before ``freeze_reference``, and with an adapter."""
        self.adapter: PeftModel | None = None
        """The model with its adapter; None without one."""
        self._keys: KeyCache | None = None
        self._sharding: Sharding | None = None
        self.eval()

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Device that forwards run on; parts of sharded weights may lie elsewhere."""
        return super().device if self._sharding is None else self._sharding.device

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model, an adapter's included."""
        return sum(p.numel() for p in self.model.parameters())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Computes logits at the asked positions.

        Samplers and likelihoods call ``features`` and ``head`` instead, so that overriding this would change nothing.
        """
        return self.head(self.features(input_ids, attention_mask, positions))

    @property
    def feature_size(self) -> int:
        """D, the hidden size."""
        return int(text_config(self.model).hidden_size)

    def features(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Computes final hidden states at the positions that predict the asked ones; see ``Policy.features``."""
        asked, device = on_host(positions), input_ids.device
        if asked.dtype == torch.bool:
            row, column = asked.nonzero(as_tuple=True)
        else:
            row, column = torch.arange(len(asked))[:, None], asked
        if self.shift_logits:  # a row's first token has no predecessor and is predicted from its own position
            before = (column - 1).clamp(min=0)
            column = torch.where(on_host(attention_mask)[row, before], before, column)
        row, column = on_device(row, device), on_device(column, device)
        with phase("body"):
            return self.in_turn(row, column, lambda: self.hidden_at(input_ids, attention_mask, row, column))

    def in_turn(self, row: Tensor, column: Tensor, run: Callable[[], Tensor]) -> Tensor:
        """Runs the body once, for states at the places (row, column); if weights are sharded, other processes join."""
        if self._sharding is None:
            return run()
        places = torch.broadcast_tensors(row, column)[0]
        return self._sharding.forward(self.model, run) if places.numel() else self.no_states(places)

    def one_token(self, model: PreTrainedModel, token: Tensor) -> Tensor:
        """Runs a token, int64 [1, 1], through the body of a model like this one; returns its states [1, 1, D]."""
        states: Tensor = model.get_decoder()(
            input_ids=token, attention_mask=token == 0, position_ids=token, use_cache=False
        ).last_hidden_state
        return states

    def hidden_at(self, input_ids: Tensor, attention_mask: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Computes final hidden states [..., D] at the places (row, column), int64 [...] each (they broadcast)."""
        if len(input_ids) and self._keys is not None and not torch.is_grad_enabled():
            return self._keys.hidden_at(self.model.get_decoder(), input_ids, attention_mask, row, column)
        if len(input_ids) and prunable(self.model):
            return last_layer_at(self.model.get_decoder(), input_ids, attention_mask, row, column)
        pruned = None if self._sharding is None else self._sharding.pruned(self.model)
        if len(input_ids) and pruned is not None:
            return pruned(input_ids, attention_mask, row, column)
        return self.hidden(input_ids, attention_mask)[row, column]

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Computes final hidden states [B, S, D]; rotary positions count from each row's first real token."""
        if len(input_ids) == 0:
            return self.no_states(input_ids)
        position_ids = rotary_positions(attention_mask)
        body = self.model.get_decoder()
        states: Tensor = body(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        return states

    def no_states(self, places: Tensor) -> Tensor:
        """Returns hidden states [..., D] for no places, int64 [...] with 0 elements: transformers cannot compute them.

        They are the embeddings of no tokens, which have the precision and device of hidden states, and a gradient.
        """
        if self._sharding is not None:  # embeddings that this process has but a part of
            dtype, learns = self.model.dtype, torch.is_grad_enabled()
            return torch.zeros(*places.shape, self.feature_size, dtype=dtype, device=self.device, requires_grad=learns)
        states: Tensor = self.model.get_input_embeddings()(places)
        return states

    def head(self, features: Tensor) -> Tensor:
        """Computes logits [..., V] from hidden states [..., D]."""
        with phase("head"):
            logits: Tensor = self.model.get_output_embeddings()(features)
        return logits

    @property
    def head_weight(self) -> Tensor | None:
        """The weight of the output embeddings where ``head`` is one product with it; see ``Policy.head_weight``."""
        own = getattr(self.head, "__func__", None) is TransformersPolicy.head and self._sharding is None
        return plain_weight(self.model.get_output_embeddings()) if own else None

    @property
    def trains_head(self) -> bool:
        """Whether a weight of the model's output embeddings is trained, which tied ones share with the input's."""
        return any(parameter.requires_grad for parameter in self.model.get_output_embeddings().parameters())

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

    def compile_blocks(self, mode: str) -> None:
        """Compiles the transformer blocks of the model and of its frozen reference, each when it is first used.

        The block that computes the asked positions only (see ``last_layer``), forwards with cached keys, embeddings and
        head run as before.

        Args:
            mode: of ``torch.compile``, without CUDA graphs.

        Raises:
            UserError: no blocks, blocks that would be compiled each for itself, or no compiler on this machine.
        """
        if self.uncompilable:
            raise UserError(f"Trainer.compile {self.uncompilable}; set it to None")
        models = [self.model, *([] if self.frozen is None else [self.frozen])]
        found = [block for model in models for block in blocks(model).values()]
        if attention_of(self.model.config) == "flex_attention":
            raise UserError(
                "Trainer.compile is not for attention = 'flex_attention', which is compiled by itself; take 'sdpa', or "
                "set it to None"
            )
        check_compiler(self.device)
        compile_each(found, mode)
        self.compiled = True

    def check_sharding(self) -> None:
        """Refuses ``shard`` where it cannot be had.

        Raises:
            UserError: weights of this kind cannot be sharded.
        """
        check_shardable(self.model, self.unshardable)

    def shard(self, processes: Processes, parts: Parts) -> None:
        """Leaves each process a part of the weights, of the frozen reference, too; see ``policies.sharding``.

        All parameters are new ones afterwards, with the same names.

        Args:
            processes: that train together; they have the same weights.
            parts: how these are kept and put together.

        Raises:
            UserError: as ``check_sharding``.
        """
        self.check_sharding()
        self._sharding = Sharding(self.model, self.frozen, processes, parts, self.one_token, self.exact)

    @property
    def parts(self) -> Parts | None:
        """How sharded weights are kept and put together; None: they are not sharded."""
        return None if self._sharding is None else self._sharding.how

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, this process holds all weights, if there is room; every process must enter it."""
        return contextlib.nullcontext() if self._sharding is None else self._sharding.whole()

    def in_step(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, forwards and backwards may need all processes, each of which must enter it."""
        return contextlib.nullcontext() if self._sharding is None else self._sharding.in_step()

    def backward(self, loss: Tensor) -> None:
        """Back-propagates a loss."""
        if self._sharding is None:
            loss.backward()
        else:
            self._sharding.backward(loss)

    @contextlib.contextmanager
    def cached(self, window: Window) -> Iterator[None]:
        """Within the context and without gradients, this policy is the cached one."""
        outer, self._keys = self._keys, None if window.cell == 1 else KeyCache(window)
        try:
            yield
        finally:
            self._keys = outer

    def add_adapter(self, config: PeftConfig) -> None:
        """Freezes the model and trains a peft adapter instead; the reference is then the base with the adapter off.

        Args:
            config: of the adapter; ``policies.adapter.lora_config`` makes one.
        """
        from peft import get_peft_model

        with quiet():
            self.adapter = get_peft_model(self.model, config)
        self.adapter.eval()

    def freeze_reference(self) -> None:
        """Fixes the present weights as the reference policy. With an adapter nothing is copied."""
        if self.adapter is None:
            self.frozen = copy.deepcopy(self.model).requires_grad_(False)

    @contextlib.contextmanager
    def reference(self) -> Iterator[Policy]:
        """Within the context, this policy computes with the frozen reference weights.

        Raises:
            RuntimeError: ``freeze_reference`` was not called and there is no adapter.
        """
        if self.adapter is not None:
            with self.adapter.disable_adapter():
                yield self
            return
        if self.frozen is None:
            raise RuntimeError("call freeze_reference() before using the reference policy")
        current = self.model
        self.model = self.frozen
        try:
            yield self
        finally:
            self.model = current

    def merged(self) -> contextlib.AbstractContextManager[None]:
        """Within the context and without gradients, the adapter is in the weights: faster, equal up to rounding."""
        return contextlib.nullcontext() if self.adapter is None else merged(self.adapter)

    def fused(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, in which the weights must not change, an adapter takes fewer matrix products."""
        return contextlib.nullcontext() if self.adapter is None else fused(self.adapter)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampler: Decoder,
        *,
        seed: int = 0,
        samples: int = 1,
        batch_size: int = BATCH_SIZE,
    ) -> list[list[str]]:
        """Completes prompts; ``core.generation.generate`` says how.

        Args:
            prompts: one text or conversation, or a list of them.
            sampler: decodes, such as ``LowConfidence(256, block_length=32)``.
            seed, samples, batch_size: as there.

        Returns:
            For each prompt its completions.

        Raises:
            RecipeError: a prompt that the policy cannot read.
        """
        return generate(self, as_list(prompts), sampler, seed=seed, samples=samples, batch_size=batch_size)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Returns the parameters that the optimiser updates, with their names in the model."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]


def text_config(model: PreTrainedModel) -> PretrainedConfig:
    """Returns what a model's configuration says of text: all of it, but for models that also see images."""
    return model.config.get_text_config()
