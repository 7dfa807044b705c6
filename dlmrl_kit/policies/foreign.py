"""What transformers, peft and bitsandbytes do not type: attributes that only some of their objects have.

Everything else of these libraries is used through its types.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState
    from peft.tuners.lora import LoraLayer
    from transformers import Cache, PretrainedConfig, PreTrainedModel


def setting(config: PretrainedConfig, name: str) -> object:
    """Returns a setting of a configuration, None where it has none of this name.

    For what no class of transformers declares: ``mask_token_id``, ``shift_logits`` and ``block_size`` are there only if
    the checkpoint's ``config.json`` has them.
    """
    found: object = getattr(config, name, None)
    return found


def context_length(config: PretrainedConfig) -> int | None:
    """Returns for how many positions a configuration says that its model is; None: it does not say.

    Rotary positions that are stretched reach further than ``max_position_embeddings``, where that is what they were
    before.
    """
    length, rope = setting(config, "max_position_embeddings"), setting(config, "rope_parameters")
    if not isinstance(length, int) or length < 1:
        return None
    factor = rope.get("factor") if isinstance(rope, dict) else None
    before = rope.get("original_max_position_embeddings") if isinstance(rope, dict) else None
    if isinstance(factor, int | float):
        length = max(length, int(factor * (before if isinstance(before, int) else length)))
    return length


def attention_of(config: PretrainedConfig) -> str:
    """Returns the name of the attention implementation; transformers keeps it in a private attribute only."""
    return str(config._attn_implementation)


def given_cache(model: nn.Module, cache: Cache | None) -> dict[str, Cache]:
    """Returns a cache as the argument of a model's forward that takes it: ``cache``, in older versions another name.

    The older name still works, with a warning, whether there is a cache or not; so without one nothing is given.
    """
    if cache is None:
        return {}
    return {"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache}


@contextlib.contextmanager
def using_attention(config: PretrainedConfig, implementation: str) -> Iterator[None]:
    """Within the context, a model of this configuration computes attention with ``implementation``.

    ``set_attn_implementation`` of transformers would check and import anew in every call.
    """
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = before


def quantisation_of(weight: Tensor) -> QuantState | None:
    """Returns how bitsandbytes stored a weight in 4 bits; None for other weights, which have no such attribute."""
    state: QuantState | None = getattr(weight, "quant_state", None)
    return state


@contextlib.contextmanager
def as_unquantised(model: PreTrainedModel) -> Iterator[None]:
    """Within the context, transformers saves a model in 4 bits like any other, for whoever gives it expanded weights.

    Only a model that was loaded in 4 bits has a ``hf_quantizer``.
    """
    loaded: Any = model
    quantizer = getattr(loaded, "hf_quantizer", None)
    if quantizer is None:
        yield
        return
    settings = loaded.config.quantization_config
    loaded.hf_quantizer = None
    del loaded.config.quantization_config
    try:
        yield
    finally:
        loaded.hf_quantizer, loaded.config.quantization_config = quantizer, settings


def delta_weight(layer: LoraLayer, adapter: str) -> Tensor:
    """Returns s B A, what an adapter adds to the weight of a layer.

    Every LoRA layer of a linear projection can tell it, in 4 bits too; the base class that they share does not say so.
    """
    linear: Any = layer
    delta: Tensor = linear.get_delta_weight(adapter)
    return delta


def plain_weight(module: nn.Module) -> Tensor | None:
    """Returns the weight of a layer that is a product with it and nothing else: no bias, adapter, hook or quantisation.

    None: it may be more than that.
    """
    if type(module) is not nn.Linear or module.bias is not None:
        return None
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    weight = module.weight.data
    return weight if type(weight) is Tensor and not hooked else None
