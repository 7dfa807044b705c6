"""What ``adapter_config.json`` of peft says: translated to transformers' names of modules, or refused by name.

An adapter may be trained on a model whose modules have other names than here. So every setting that names modules is
evaluated on the names that the adapter knows, and the result is written down module by module.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.validate import clipped
from dlmrl_kit.policies.model_files import AGAIN, foreign, read_json

if TYPE_CHECKING:
    from peft import LoraConfig

CONFIG = "adapter_config.json"

SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Settings that choose modules by their names."""

_HARMLESS = (
    *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "inference_mode"),
    *("lora_dropout", "fan_in_fan_out", "runtime_config", "ensure_weight_tying", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "megatron_core", "qalora_group_size"),
)
"""Settings that do not change what a trained adapter adds to the weights of linear layers and embeddings."""

_FORMS: dict[str, tuple[type, ...]] = {
    "r": (int,),
    "lora_alpha": (int, float),
    "use_rslora": (bool,),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
    "target_modules": (str, list),
    "exclude_modules": (str, list),
    "layers_to_transform": (int, list),
    "layers_pattern": (str, list),
}
"""Settings that are understood, and the types that they have in JSON."""

_PATTERNS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}
"""Settings that give modules values of another setting, by patterns of their names."""

_PLAIN_STARTS = ("gaussian", "orthogonal", "eva")
"""Names of initialisations that leave the base's weights as they are; true and false do, too."""


@dataclass(frozen=True)
class AdapterSettings:
    """The settings of a saved LoRA, all of which are understood.

    Args:
        path: of its ``adapter_config.json``.
        base: path or hub id of the checkpoint that it is for.
        values: those in ``_FORMS`` that it gives.
    """

    path: Path
    base: str
    values: Mapping[str, Any]

    def check_selection(self, adapted: set[str], model: Mapping[str, nn.Module], head: str | None) -> None:
        """Refuses settings that choose other modules than the adapter has weights for.

        Args:
            adapted: names of the modules that it has weights for, as the adapter calls them.
            model: the base's modules by the same names.
            head: the name of the output embeddings, which ``all-linear`` does not mean.

        Raises:
            UserError: names a module, and the settings.
        """
        targets = self.values.get("target_modules")
        if targets is None:
            return  # peft then chooses by the class of the model; the weights say what came of it
        able = {name: part for name, part in model.items() if isinstance(part, (nn.Linear, nn.Embedding))}
        chosen = {name for name, part in able.items() if isinstance(part, nn.Linear) and name != head}
        if targets != "all-linear":
            from peft import LoraConfig
            from peft.tuners.tuners_utils import check_target_module_exists

            settings = {name: self.values[name] for name in SELECTION if name in self.values}
            with foreign(f"{self.path}: {', '.join(settings)} cannot be used"):
                config = LoraConfig(**settings)
                chosen = {name for name in able if bool(check_target_module_exists(config, name))}
        given = ", ".join(name for name in SELECTION if self.values.get(name))
        for name in sorted(adapted - chosen):
            raise UserError(f"{self.path}: {given} leave out {name}, for which the adapter has weights")
        for name in sorted(chosen - adapted):
            raise UserError(f"{self.path}: {given} choose {name}, for which the adapter has no weights")

    def config(self, names: Mapping[str, str]) -> LoraConfig:
        """Returns peft's configuration of the adapter, with a rank and a scale for each module by its full name.

        Args:
            names: the name that the adapter knows of each adapted module by transformers' name.

        Raises:
            UserError: a pattern of names that fits no adapted module.
        """
        from peft import LoraConfig

        values = self.values
        scale = {name: values[name] for name in ("r", "lora_alpha", "use_rslora") if name in values}
        with foreign(f"{self.path}: its settings cannot be used"):
            return LoraConfig(
                **scale,
                target_modules=sorted(names),
                rank_pattern=self._translated("rank_pattern", names),
                alpha_pattern=self._translated("alpha_pattern", names),
            )

    def _translated(self, setting: str, names: Mapping[str, str]) -> dict[str, Any]:
        """Returns a setting that gives modules values by regular expressions, by transformers' full names instead."""
        from peft.utils.other import get_pattern_key

        values: dict[str, Any] = self.values.get(setting) or {}
        found, used = {}, set()
        for ours, name in names.items():
            with foreign(f"{self.path}: {setting} has a name that is no regular expression"):
                key = get_pattern_key(list(values), name)
            if key in values:
                used.add(key)
                found[re.escape(ours)] = values[key]
        for key in values:
            if key not in used:
                raise UserError(f"{self.path}: {setting} names {clipped(key)!r}, which is none of the adapted modules")
        return found


def base_of(folder: str) -> str:
    """Returns the path or hub id of the checkpoint that a saved adapter is for.

    Raises:
        UserError: ``adapter_config.json`` cannot be read, or names none.
    """
    path = Path(folder) / CONFIG
    base = read_json(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{path} names no base model: write its path or hub id as base_model_name_or_path")
    return base


def read_settings(folder: str) -> AdapterSettings:
    """Reads the settings of a saved adapter.

    Raises:
        UserError: the file is damaged, or a setting means more than a LoRA whose weights are added to its base's.
    """
    from peft import LoraConfig

    path = Path(folder) / CONFIG
    stored = read_json(path, finite=True)
    defaults = {f.name: f.default for f in dataclasses.fields(LoraConfig)}
    if stored.get("peft_type", "LORA") != "LORA":
        raise UserError(f"{path}: the adapter trains more than LoRA, peft_type = {stored['peft_type']!r}")
    refuse = partial(_refuse, path)
    for name, value in stored.items():
        if name in _HARMLESS or (name in _FORMS and value is None):
            continue
        if name in _FORMS:
            of = _PATTERNS.get(name)
            fits = _fits(name, value) and (of is None or all(_fits(of, inner) for inner in value.values()))
            if not fits:
                raise UserError(f"{path}: {name} = {clipped(repr(value))} is not what peft writes: {AGAIN}")
        elif name == "init_lora_weights":
            if isinstance(value, str) and value not in _PLAIN_STARTS:
                refuse(name, value, "starts from other weights of the base")
        elif name == "revision":
            if value not in (None, "main"):
                refuse(name, value, "asks for another version of the base")
        elif value and value != defaults.get(name):
            refuse(name, value, "is not supported")
    return AdapterSettings(
        path, base_of(folder), {name: stored[name] for name in _FORMS if stored.get(name) is not None}
    )


def _fits(name: str, value: object) -> bool:
    """Tells whether a value has a type that a setting may have."""
    return isinstance(value, _FORMS[name]) and (bool in _FORMS[name] or not isinstance(value, bool))


def _refuse(path: Path, name: str, value: object, why: str) -> None:
    shown = clipped(repr(value))
    raise UserError(f"{path}: {name} = {shown} {why}: merge the adapter into its base with peft, and load the result")
