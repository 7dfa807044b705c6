"""Masked language models (ModernBERT, BERT, RoBERTa, DistilBERT ...): every one of them is a denoiser.

Encoders count positions from the left and expect padding on the right. Rows are brought into that order and hidden
states back, so that left padding changes nothing, whatever positions a model uses. The head (transform, decoder, bias)
is the model's own code, run on the asked positions alone.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.checkpoint_files import load_model, load_tokenizer, without_remote_code
from dlmrl_kit.policies.options import LoadOptions
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

SUPPORTED = "masked language models that transformers has a class for (BERT, RoBERTa, DistilBERT, ModernBERT ...)"


def matches(config: dict[str, Any]) -> bool:
    """Whether transformers has a masked language model for the checkpoint."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    known = config.get("model_type") in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    classes = config.get("architectures") or []
    return known and without_remote_code(config) and not any(name.endswith("ForCausalLM") for name in classes)


def load(source: str, config: dict[str, Any], options: LoadOptions) -> TransformersPolicy:
    """Loads the checkpoint.

    Raises:
        UserError: no weights for the head, or a model that cannot be told what is padding.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM

    model = load_model(AutoModelForMaskedLM, source, options, config=AutoConfig.from_pretrained(source))
    if "attention_mask" not in inspect.signature(model.forward).parameters:
        raise UserError(f"{type(model).__name__} takes no attention mask: padding would change its results")
    tokenizer = load_tokenizer(source, config)
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token  # what ends a text in these models
    return MaskedLMPolicy(model, tokenizer, **options.policy_arguments())


class MaskedLMPolicy(TransformersPolicy):
    """A denoiser around a masked language model. Plain prompts begin with the class token, as in its training."""

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        self.prefix_ids = () if tokenizer.cls_token_id is None else (tokenizer.cls_token_id,)
        self.max_length = _max_length(model)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Final hidden states [B, S, D]; positions count the real tokens of a row.

        Raises:
            UserError: longer than the model's table of positions.
        """
        if len(input_ids) == 0:  # transformers cannot reshape an empty batch
            return input_ids.new_zeros(*input_ids.shape, self.model.config.hidden_size, dtype=self.model.dtype)
        if self.max_length is not None and input_ids.shape[1] > self.max_length:
            raise UserError(
                f"prompt and completion have {input_ids.shape[1]} tokens, and {type(self.model).__name__} has "
                f"{self.max_length} positions: lower the sampler's completion_length"
            )
        order = (~attention_mask).long().argsort(dim=1, stable=True)  # real tokens first
        mask = attention_mask.gather(1, order).long()
        states = self.model.base_model(input_ids=input_ids.gather(1, order), attention_mask=mask)[0]
        back = order.argsort(dim=1)
        return states.gather(1, back[..., None].expand_as(states))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] from hidden states [..., D], by the model's own head."""
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        ids = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
        with _answering(self.model.base_model, rows):
            logits: Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return logits.reshape(*hidden.shape[:-1], logits.shape[-1])


@contextlib.contextmanager
def _answering(body: nn.Module, states: Tensor) -> Iterator[None]:
    """Within the context, ``body`` returns ``states`` whatever it is given."""
    from transformers.modeling_outputs import BaseModelOutput

    own = body.__dict__.get("forward")  # set where another library wraps the module
    body.forward = lambda *given, **named: BaseModelOutput(last_hidden_state=states)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del body.forward
        if own is not None:
            body.forward = own


def _max_length(model: nn.Module) -> int | None:
    """How many tokens the model's table of absolute positions has room for; None without such a table."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts from there
            return module.num_embeddings - reserved
    return None
