"""Which family reads a checkpoint, decided by its ``config.json`` and never by the name of its path.

A family is a module of ``dlmrl_kit.policies.families`` with two functions and a text:

    SUPPORTED: str                      # what it reads, for the error when nothing matches
    def matches(config: dict[str, Any]) -> bool
    def load(source: str, config: dict[str, Any], options: LoadOptions) -> TransformersPolicy

``config`` is the checkpoint's ``config.json`` as it is; ``source`` is a local folder with the checkpoint's files (those
of a hub id are downloaded first). No code of the checkpoint is ever run. ``FAMILIES`` is asked from the top; the first
family that matches loads. What a user can put right is a ``UserError``.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.checkpoint_files import read_config, resolve
from dlmrl_kit.policies.options import LoadOptions, read_told
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

FAMILIES: tuple[str, ...] = (
    "llada_moe",
    "llada",
    "dream",
    "sdar",
    "diffusion_gemma",
    "bidirectional",
    "masked_lm",
)
"""Modules of ``dlmrl_kit.policies.families``, in the order in which they are asked."""


def family_of(config: dict[str, Any]) -> Any:
    """The module of the first family that matches a ``config.json``.

    Raises:
        UserError: none does.
    """
    modules = []
    for name in FAMILIES:  # imported one by one: most checkpoints are met early
        modules.append(import_module(f"dlmrl_kit.policies.families.{name}"))
        if modules[-1].matches(config):
            return modules[-1]
    classes = ", ".join(config.get("architectures") or ["no architecture named"])
    raise UserError(
        f"no denoiser for model type {config.get('model_type')!r} ({classes}); the kit knows these families: "
        + "; ".join(module.SUPPORTED for module in modules)
    )


def load_policy(path: str | Path, **options: Any) -> TransformersPolicy:
    """Loads a denoiser from a checkpoint folder (or hub id); its ``config.json`` decides the family, never its name.

    Args:
        path: a checkpoint in transformers' layout or in its family's own, a peft adapter's folder (the adapter is
            merged into its base), ``shipped:NAME`` for a denoiser inside the package, or a hub id.
        options: see ``dlmrl_kit.policies.options.LoadOptions``: ``mask_id``, ``shift_logits``, ``forbidden_ids``,
            ``chat_template``, ``block_size``, ``dtype``, ``attention``, ``quantisation``.

    Raises:
        UserError: no such folder, or a family the kit does not know.
    """
    given = LoadOptions(**options)
    source = resolve(path)
    try:
        if (Path(source) / "adapter_config.json").is_file():
            from dlmrl_kit.policies.saving import load_merged

            return load_merged(source, given)
        config = read_config(source)
        return load_folder(source, config, given, str(path))
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load a denoiser from {path}: {error}") from error


def load_folder(source: str, config: dict[str, Any], options: LoadOptions, name: str) -> TransformersPolicy:
    """Loads a checkpoint folder with the options that were saved with it, where none are given.

    Args:
        source: the folder.
        config: its ``config.json``.
        options: as given by the user.
        name: the path or hub id as the user wrote it, which adapters will name as their base.
    """
    policy: TransformersPolicy = family_of(config).load(source, config, options.over(read_told(source)))
    policy.name = name
    return policy
