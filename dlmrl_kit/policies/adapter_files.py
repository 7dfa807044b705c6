"""Adapters in files, as peft writes them, under the names that modules have in the family of the checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, equal

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.finite import require_finite, weights_of
from dlmrl_kit.policies.adapter import pattern
from dlmrl_kit.policies.adapter_settings import CONFIG, AdapterSettings, read_settings
from dlmrl_kit.policies.checkpoint_files import quiet
from dlmrl_kit.policies.lora_names import joined_lora, module_of, split_lora
from dlmrl_kit.policies.model_files import AGAIN, foreign
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.policies.weight_files import require_unquantised, tensor_types

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""Names of files with an adapter's weights, in the order in which peft takes them."""

_COPY = ".base_layer.weight"
"""How the name of a weight of the base ends, of which peft writes a copy beside the adapter of its module."""


def holds_adapter(folder: str) -> bool:
    """Tells whether a folder holds an adapter, and not a model."""
    return (Path(folder) / CONFIG).is_file()


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
    config = copy.copy(policy.adapter.peft_config["default"])
    assert isinstance(config, LoraConfig)
    state, joined = joined_lora(_once(get_peft_model_state_dict(policy.adapter, save_embedding_layers=False)), rename)
    config.rank_pattern = {leaf: config.r * parts for leaf, parts in joined.items()}
    config.alpha_pattern = {leaf: config.lora_alpha * parts for leaf, parts in joined.items()}
    config.base_model_name_or_path = policy.name
    config.target_modules = pattern(_modules(state))
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def merge_adapter(policy: TransformersPolicy, folder: str) -> None:
    """Adds a saved adapter to the weights of the policy of its base checkpoint. All weights can be trained afterwards.

    Raises:
        UserError: the adapter is damaged, does not fit the policy's model, or is not LoRA alone.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    settings = read_settings(folder)
    weights, copied = _read_weights(folder)
    # The adapter may have the family's names of modules, or else transformers'.
    names = {ours: name for name in sorted(_modules(weights)) for ours in _native(name, policy)}
    _check_modules(settings, names, policy)
    _check_copies(settings, copied, policy)
    with foreign(f"the adapter does not fit its base {settings.base}"), quiet():
        model = get_peft_model(policy.model, settings.config(names))
        restored = split_lora(weights, names, policy.model)
        expected = get_peft_model_state_dict(model, save_embedding_layers=False)
        for name in sorted(expected.keys() ^ restored.keys()):
            problem = "is missing" if name in expected else "has no place"
            raise UserError(f"the adapter does not fit its base {settings.base}: {name} {problem}")
        set_peft_model_state_dict(model, restored)
        model.merge_and_unload()  # puts the linear layers back into the policy's model
    require_finite(weights_of(policy.model), f"the base {settings.base} with the adapter {folder} merged")
    policy.requires_grad_(True)
    policy.eval()


def _read_weights(folder: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Reads an adapter's weights, under the names of the file.

    Returns:
        Those of LoRA, and the copies of weights of the base that peft writes beside them where the head or the
        embeddings are adapted.

    Raises:
        UserError: there are none, the file is damaged, or they are NaN, infinite or more than LoRA's.
    """
    from peft import load_peft_weights

    files = [file for name in WEIGHTS if (file := Path(folder) / name).is_file()]
    if not files:
        raise UserError(f"{folder} holds no {' or '.join(WEIGHTS)}: copy the adapter's weights there, too")
    require_unquantised(tensor_types(files[0]), files[0])
    with foreign(f"{files[0]} cannot be read"):
        weights: dict[str, Tensor] = load_peft_weights(folder, device="cpu")
    copied = {name: weights.pop(name) for name in list(weights) if name.endswith(_COPY)}
    other = [name for name in weights if ".lora_" not in name]
    if other:
        raise UserError(f"the adapter trains more than LoRA, for example {other[0]}")
    if not weights:
        raise UserError(f"{files[0]} holds no weights: {AGAIN}")
    require_finite([*weights.items(), *copied.items()], str(files[0]))
    return weights, copied


def _check_copies(settings: AdapterSettings, copied: dict[str, Tensor], policy: TransformersPolicy) -> None:
    """Refuses an adapter with weights of the base, by their names in the file, that are not those of this base.

    Raises:
        UserError: names the module.
    """
    modules = dict(policy.model.named_modules())
    for name, stored in copied.items():
        module = module_of(name.removesuffix(_COPY))
        ours = _native(module, policy)
        own = modules[ours[0]].get_parameter("weight") if len(ours) == 1 and ours[0] in modules else None
        if own is None or own.shape != stored.shape or not equal(own, stored.to(own.dtype)):
            raise UserError(
                f"the adapter holds weights of {module} that are not those of its base {settings.base}: it was trained "
                "on another base, or trains them, too; merge it into its base with peft, and load the result"
            )


def _check_modules(settings: AdapterSettings, names: dict[str, str], policy: TransformersPolicy) -> None:
    """Refuses an adapter of modules that the model does not have, or that its settings or tied weights rule out.

    Args:
        settings: of the adapter.
        names: the adapter's name of each adapted module by transformers'.
        policy: of the base.

    Raises:
        UserError: names a module.
    """
    modules = dict(policy.model.named_modules())
    for ours, name in names.items():
        if ours not in modules:
            why = f"the model has no module {name}"
            if ".experts." in name:
                why = f"{name} is an expert, and transformers holds all of a layer's in one tensor: merge it with peft"
            raise UserError(f"the adapter does not fit its base {settings.base}: {why}")
    first, last = policy.model.get_input_embeddings(), policy.model.get_output_embeddings()
    tied = last is not None and first.weight is last.weight
    for ours, name in names.items():
        if tied and modules[ours] in (first, last):
            raise UserError(
                f"the adapter changes {name} alone, which shares its weights with the other end of its base "
                f"{settings.base}: it cannot be merged"
            )
    theirs = {names.get(ours) or _family_name(ours, names, policy): part for ours, part in modules.items()}
    head = next((name for name, part in theirs.items() if part is last), None)
    settings.check_selection(set(names.values()), theirs, head)


def _native(name: str, policy: TransformersPolicy) -> tuple[str, ...]:
    """Returns transformers' names of a module that the adapter calls ``name``: its own where the family has no such."""
    try:
        return (name,) if policy.layout is None else policy.layout.parts(name)
    except KeyError:
        return (name,)


def _family_name(ours: str, names: dict[str, str], policy: TransformersPolicy) -> str:
    """Returns what an adapter with these names of modules calls another module, as far as it can be known."""
    if policy.layout is None or all(name == native for native, name in names.items()):
        return ours
    try:
        return policy.layout.rename(ours)
    except KeyError:
        return ours


def _modules(state: Iterable[str]) -> set[str]:
    """Returns the names of the adapted modules, from those of an adapter's weights."""
    return {module_of(name) for name in state}


def _once(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns each tensor under one name, the last: modules of tied weights share an adapter, which is merged once."""
    names = {tensor.data_ptr(): name for name, tensor in state.items()}
    return {name: state[name] for name in names.values()}
