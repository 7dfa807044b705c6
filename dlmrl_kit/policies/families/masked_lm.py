"""Masked language models (ModernBERT, BERT, RoBERTa, DistilBERT ...): every one of them is a denoiser.

Encoders count positions from the left and expect padding on the right. Rows are brought into that order and hidden
states back, so that left padding changes nothing, whatever positions a model uses. The head (transform, decoder, bias)
is the model's own code, run on the asked positions alone.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor, nn

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.phases import phase
from dlmrl_kit.policies.checkpoint_files import ConfigJson, architectures, load_tokenizer, without_remote_code
from dlmrl_kit.policies.families.base import Family
from dlmrl_kit.policies.layout import Layout
from dlmrl_kit.policies.options import LoadOptions, PolicyArguments
from dlmrl_kit.policies.text_bounds import distinct
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from dlmrl_kit.policies.checkpoint_files import ModelClass


class MaskedLMPolicy(TransformersPolicy):
    """A denoiser around a masked language model. Plain prompts begin with the class token, as in its training.

    Args:
        model: a transformers model for masked language modelling.
        tokenizer, arguments: as ``TransformersPolicy``.

    Raises:
        UserError: as ``TransformersPolicy``, a model that cannot be told what is padding, or one that counts positions
            from another padding than the tokenizer's.
    """

    unshardable = "is not for masked language models, whose head runs within the whole model"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **arguments: Unpack[PolicyArguments]
    ) -> None:
        if "attention_mask" not in inspect.signature(model.forward).parameters:
            raise UserError(f"{type(model).__name__} takes no attention mask: padding would change its results")
        super().__init__(model, tokenizer, **arguments)
        self.prefix_ids = self.prefix_ids or distinct([tokenizer.cls_token_id])
        table = _position_table(model)
        pad = model.config.pad_token_id
        counts = table is not None and pad is not None and table.padding_idx == pad % table.num_embeddings
        if counts and pad != tokenizer.pad_token_id:
            raise UserError(
                f"{type(model).__name__} counts positions from pad_token_id = {pad} of config.json, but the "
                f"tokenizer's padding is {tokenizer.pad_token_id}: correct the one that is wrong"
            )
        self.table_length = None if table is None else table.num_embeddings - _reserved(table)
        """The tokens that its table of positions has room for; None: it has no such table."""
        self.max_length = self.max_length if self.table_length is None else self.table_length

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Computes final hidden states [B, S, D]; positions count the real tokens of a row.

        Raises:
            UserError: longer than the model's table of positions.
        """
        if len(input_ids) == 0:  # not no_states: embeddings may be of another size than hidden states
            return input_ids.new_zeros(*input_ids.shape, self.model.config.hidden_size, dtype=self.model.dtype)
        if self.table_length is not None and input_ids.shape[1] > self.table_length:
            raise UserError(
                f"prompt and completion have {input_ids.shape[1]} tokens, and {type(self.model).__name__} has "
                f"{self.table_length} positions: lower the sampler's completion_length"
            )
        order = (~attention_mask).long().argsort(dim=1, stable=True)  # real tokens first
        mask = attention_mask.gather(1, order).long()
        states: Tensor = self.model.base_model(input_ids=input_ids.gather(1, order), attention_mask=mask)[0]
        back = order.argsort(dim=1)
        return states.gather(1, back[..., None].expand_as(states))

    def head(self, features: Tensor) -> Tensor:
        """Computes logits [..., V] from hidden states [..., D], by the model's own head.

        transformers has no common name for the head of these models (transform, decoder, bias). So the whole model
        runs, on a body that answers with the given states.
        """
        rows = features.reshape(1, -1, features.shape[-1])
        ids = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
        with phase("head"), _answering(self.model.base_model, rows):
            logits: Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return logits.reshape(*features.shape[:-1], logits.shape[-1])

    @property
    def trains_head(self) -> bool:
        """Whether anything is trained: an adapter may reach into these heads, which have layers of their own."""
        return bool(self.trainable())


@contextlib.contextmanager
def _answering(body: nn.Module, states: Tensor) -> Iterator[None]:
    """Within the context, ``body`` returns ``states`` whatever it is given."""
    from transformers.modeling_outputs import BaseModelOutput

    own = vars(body).get("forward")  # set on the module itself where another library wraps it

    def forward(*given: object, **named: object) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=states)

    body.forward = forward
    try:
        yield
    finally:
        del body.forward
        if own is not None:
            body.forward = own


def _position_table(model: nn.Module) -> nn.Embedding | None:
    """Returns a model's table of absolute positions; None if it has none."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module
    return None


def _reserved(table: nn.Embedding) -> int:
    """Returns how many rows of a table of positions stand for no position: RoBERTa counts from its padding."""
    return 0 if table.padding_idx is None else table.padding_idx + 1


class MaskedLM(Family):
    """Models for masked language modelling that transformers has a class for."""

    supported = "masked language models that transformers has a class for (BERT, RoBERTa, DistilBERT, ModernBERT ...)"
    policy_class = MaskedLMPolicy
    unused = (
        *(r"(^|\.)pooler\.", r"^cls\.seq_relationship\.", r"^sop_classifier\."),
        *(r"^discriminator_predictions\.", r"^(mask|lm)_predictions\."),
    )  # the heads of other objectives than masked language modelling, as published checkpoints have them

    def recognises(self, config: ConfigJson) -> bool:
        """Tells whether transformers has a masked language model for the checkpoint."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

        known = config.get("model_type") in MODEL_FOR_MASKED_LM_MAPPING_NAMES and without_remote_code(config)
        return known and not any(name.endswith("ForCausalLM") for name in architectures(config))

    def model_class(self) -> ModelClass:
        """``AutoModelForMaskedLM``."""
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    def model_config(self, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """Returns transformers' configuration."""
        from transformers import AutoConfig

        return AutoConfig.for_model(**config)

    def checkpoint_config(self, folder: str, config: ConfigJson, options: LoadOptions) -> PretrainedConfig:
        """Reads the configuration as transformers does."""
        from transformers import AutoConfig

        settings: PretrainedConfig = AutoConfig.from_pretrained(folder)
        return settings

    def empty_model(self, config: ConfigJson, options: LoadOptions) -> PreTrainedModel:
        """Builds the model with random weights; see ``Family.empty_model``."""
        from transformers import AutoModelForMaskedLM

        model: PreTrainedModel = AutoModelForMaskedLM.from_config(self.model_config(config, options))
        return model

    def layout(self, folder: str, config: ConfigJson) -> Layout | None:
        """Returns None: the checkpoint is written as transformers writes it."""
        return None

    def tokenizer(self, folder: str, config: ConfigJson) -> PreTrainedTokenizerBase:
        """Loads the tokenizer; where it has no end of text, the separator is it, which ends a text in these models."""
        tokenizer = load_tokenizer(folder, config)
        if tokenizer.eos_token is None and tokenizer.sep_token is not None:
            tokenizer.eos_token = tokenizer.sep_token
        return tokenizer
