"""Adapters in files, as peft writes them, under the names that modules have in the family of the checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.adapter import pattern
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

_PEFT = "base_model.model."


def holds_adapter(folder: str) -> bool:
    """Tells whether a folder holds an adapter, and not a model."""
    return (Path(folder) / "adapter_config.json").is_file()


def base_of(folder: str) -> str:
    """Returns the path or hub id of the checkpoint that a saved adapter is for.

    Raises:
        UserError: the adapter names none.
    """
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not base:
        raise UserError("adapter_config.json names no base model")
    return str(base)


def write_adapter(policy: TransformersPolicy, folder: Path) -> None:
    """Writes a policy's adapter: its weights and its configuration.

    Raises:
        UserError: the policy has no adapter.
    """
    from peft import LoraConfig, get_peft_model_state_dict
    from safetensors.torch import save_file

    if policy.adapter is None:
        raise UserError("the policy has no adapter to save")
    folder.mkdir(parents=True, exist_ok=True)
    rename = policy.layout.rename if policy.layout else str
    state = _renamed(_once(get_peft_model_state_dict(policy.adapter, save_embedding_layers=False)), rename)
    config = copy.copy(policy.adapter.peft_config["default"])
    assert isinstance(config, LoraConfig)
    config.base_model_name_or_path = policy.name
    config.target_modules = pattern(_modules(state))
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def merge_adapter(policy: TransformersPolicy, folder: str) -> None:
    """Adds a saved adapter to the weights of the policy of its base checkpoint. All weights can be trained afterwards.

    Raises:
        UserError: the adapter does not fit the policy's model, or is not LoRA alone.
    """
    from peft import LoraConfig, PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(folder)
    weights = load_peft_weights(folder, device="cpu")
    other = [name for name in weights if ".lora_" not in name]
    if other or not isinstance(config, LoraConfig):
        raise UserError(f"the adapter trains more than LoRA, for example {other[0] if other else config.peft_type}")
    restored = _restored(weights, policy)
    config.target_modules = pattern(_modules(restored))
    try:
        model = get_peft_model(policy.model, config)
        unknown = set_peft_model_state_dict(model, restored).unexpected_keys  # type: ignore[attr-defined]  # untyped
        if unknown:
            raise ValueError(f"no place for {unknown[0]}")
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the adapter does not fit its base {config.base_model_name_or_path}: {error}") from error
    model.merge_and_unload()  # puts the linear layers back into the policy's model
    policy.requires_grad_(True)
    policy.eval()


def _modules(state: Iterable[str]) -> set[str]:
    """Returns the names of the adapted modules, from those of an adapter's weights."""
    return {name.removeprefix(_PEFT).partition(".lora_")[0] for name in state}


def _once(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns each tensor under one name, the last: modules of tied weights share an adapter, which is merged once."""
    names = {tensor.data_ptr(): name for name, tensor in state.items()}
    return {name: state[name] for name in names.values()}


def _renamed(state: dict[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Returns an adapter's weights on the CPU, under other names of modules."""
    renamed = {}
    for name, tensor in state.items():
        module, _, rest = name.removeprefix(_PEFT).partition(".lora_")
        renamed[f"{_PEFT}{rename(module)}.lora_{rest}"] = tensor.detach().cpu().contiguous()
    return renamed


def _restored(state: dict[str, Tensor], policy: TransformersPolicy) -> dict[str, Tensor]:
    """Returns an adapter's weights under transformers' names of modules; they may have had these all along."""
    if policy.layout is None:
        return state
    try:
        return _renamed(state, policy.layout.restore)
    except KeyError:
        return state
