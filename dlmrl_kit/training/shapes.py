"""Finds the ``config.json`` of a checkpoint without its weights: in its folder, on the hub, or in ``shapes.json``.

``shapes.json`` ships with the kit. It has the published sizes of the checkpoints that the kit's recipes name, for dry
runs without a network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.hub import is_reachable
from dlmrl_kit.policies.adapter_files import holds_adapter
from dlmrl_kit.policies.adapter_settings import base_of
from dlmrl_kit.policies.checkpoint_files import SHIPPED, read_config

SHAPES = Path(__file__).with_name("shapes.json")


def find_config(path: str) -> tuple[dict[str, Any], str]:
    """Finds the configuration of a checkpoint, and says in words where it was found.

    Args:
        path: a folder, ``shipped:NAME`` or a hub id, as ``Pretrained.path``.

    Raises:
        UserError: the configuration is in none of the places.
    """
    folder = local_folder(path)
    if folder is not None:
        if holds_adapter(str(folder)) and not (folder / "config.json").is_file():
            return find_config(base_of(str(folder)))
        return read_config(str(folder)), f"{folder / 'config.json'}"
    found = _from_hub(path)
    if found is not None:
        return read_config(str(Path(found).parent)), "config.json of the hub"
    shapes = json.loads(SHAPES.read_text(encoding="utf-8"))
    if path in shapes:
        return shapes[path], "the published sizes, as they ship with dlmrl_kit (the hub could not be reached)"
    raise UserError(
        f"no config.json for {path}: there is no such folder, the hub does not give one (or cannot be reached), and "
        f"dlmrl_kit ships the sizes of these only: {', '.join(sorted(shapes))}"
    )


def local_folder(path: str) -> Path | None:
    """Returns the folder that the path of a checkpoint stands for; None for a hub id."""
    folder = SHIPPED / path.removeprefix("shipped:") if path.startswith("shipped:") else Path(path)
    return folder if folder.is_dir() else None


def _from_hub(path: str) -> str | None:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        cached = try_to_load_from_cache(path, "config.json")
        if isinstance(cached, str):
            return cached
        return hf_hub_download(path, "config.json") if is_reachable() else None
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError):
        return None
