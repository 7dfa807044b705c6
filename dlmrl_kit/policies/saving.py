"""Writing policies: as transformers does, in their family's layout, or the adapter alone; and adapters read back."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.adapter import merged_state, pattern
from dlmrl_kit.policies.checkpoint_files import quiet
from dlmrl_kit.policies.options import LoadOptions, write_told
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

SHARD = "5GB"
"""Largest size of a file of weights."""

_PEFT = "base_model.model."


def save_transformers(policy: TransformersPolicy, folder: Path) -> None:
    """Writes a folder that transformers loads: weights, ``config.json``, generation settings, tokenizer."""
    policy.model.config.mask_token_id = policy.mask_id
    if policy.shift_logits:
        policy.model.config.shift_logits = True
    _save_weights(policy, folder)
    policy.tokenizer.save_pretrained(folder)
    write_told(folder, policy.told)


def save_own_layout(policy: TransformersPolicy, folder: Path) -> None:
    """Writes the family's tensor names and the small files that the checkpoint came with."""
    layout = policy.layout
    if layout is None:
        return save_transformers(policy, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if layout.names:
        from huggingface_hub import save_torch_state_dict

        state = merged_state(policy.model)
        if policy.model.config.tie_word_embeddings:
            state.pop("lm_head.weight", None)
        renamed = {layout.rename(name): tensor for name, tensor in state.items()}
        save_torch_state_dict(renamed, folder, max_shard_size=SHARD, metadata={"format": "pt"})
    else:
        _save_weights(policy, folder)
        for path in folder.glob("*.json"):
            if not path.name.endswith(".index.json"):
                path.unlink()
    for name, content in layout.files.items():
        (folder / name).write_bytes(content)
    return write_told(folder, policy.told)


def _save_weights(policy: TransformersPolicy, folder: Path) -> None:
    # Tensors that were renamed on loading would be named back under a config.json that does not fit them.
    renamed = policy.layout is not None and bool(policy.layout.names)
    with quiet(), _as_unquantised(policy.model):
        policy.model.save_pretrained(
            folder, state_dict=merged_state(policy.model), max_shard_size=SHARD, save_original_format=not renamed
        )


@contextlib.contextmanager
def _as_unquantised(model: Any) -> Iterator[None]:
    """Within the context, transformers writes a model in 4 bits like any other: its weights are expanded already."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        yield
        return
    settings = model.config.quantization_config
    model.hf_quantizer = None
    del model.config.quantization_config
    try:
        yield
    finally:
        model.hf_quantizer, model.config.quantization_config = quantizer, settings


def save_adapter(policy: TransformersPolicy, folder: Path) -> None:
    """Writes a peft folder: adapter weights and configuration in the family's module names, and the tokenizer.

    Raises:
        UserError: the policy has no adapter.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    if policy.adapter is None:
        raise UserError("the policy has no adapter to save")
    folder.mkdir(parents=True, exist_ok=True)
    rename = policy.layout.rename if policy.layout else str
    state = _renamed(_once(get_peft_model_state_dict(policy.adapter, save_embedding_layers=False)), rename)
    config = copy.copy(policy.adapter.peft_config["default"])
    config.base_model_name_or_path = policy.name
    config.target_modules = pattern({name.removeprefix(_PEFT).partition(".lora_")[0] for name in state})
    config.inference_mode = True
    config.save_pretrained(folder)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    policy.tokenizer.save_pretrained(folder)
    write_told(folder, policy.told)


def load_merged(folder: str, options: LoadOptions) -> TransformersPolicy:
    """The policy of a peft folder: its base checkpoint with the adapter merged into the weights.

    Raises:
        UserError: the base cannot be loaded, the adapter does not fit it, or is not LoRA alone.
    """
    from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    from dlmrl_kit.policies.checkpoint_files import read_config, resolve
    from dlmrl_kit.policies.load import load_folder
    from dlmrl_kit.policies.options import read_told

    config = PeftConfig.from_pretrained(folder)
    if options.quantisation != "none":
        raise UserError("an adapter cannot be merged into weights in 4 bits: load the merged model, or the base")
    base = config.base_model_name_or_path
    if not base:
        raise UserError("adapter_config.json names no base model")
    source = resolve(base)
    policy = load_folder(source, read_config(source), options.over(read_told(folder)), folder)
    weights = load_peft_weights(folder, device="cpu")
    if other := [name for name in weights if ".lora_" not in name]:
        raise UserError(f"the adapter trains more than LoRA, for example {other[0]}")
    restored = _restored(weights, policy)
    config.target_modules = pattern({name.removeprefix(_PEFT).partition(".lora_")[0] for name in restored})
    try:
        model = get_peft_model(policy.model, config)
        found: Any = set_peft_model_state_dict(model, restored)
        if found.unexpected_keys:
            raise ValueError(f"no place for {found.unexpected_keys[0]}")
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the adapter does not fit its base {base}: {error}") from error
    policy.model = model.merge_and_unload()
    policy.requires_grad_(True)
    policy.eval()
    return policy


def _once(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor under one name, the last: modules of tied weights share an adapter, which is merged once."""
    names = {tensor.data_ptr(): name for name, tensor in state.items()}
    return {name: state[name] for name in names.values()}


def _renamed(state: dict[str, Tensor], rename: Any) -> dict[str, Tensor]:
    """Adapter weights under other module names."""
    renamed = {}
    for name, tensor in state.items():
        module, _, rest = name.removeprefix(_PEFT).partition(".lora_")
        renamed[f"{_PEFT}{rename(module)}.lora_{rest}"] = tensor.detach().cpu().contiguous()
    return renamed


def _restored(state: dict[str, Tensor], policy: TransformersPolicy) -> dict[str, Tensor]:
    """Adapter weights under transformers' module names, whichever of the two they have."""
    if policy.layout is None:
        return state
    try:
        return _renamed(state, policy.layout.restore)
    except KeyError:
        return state
