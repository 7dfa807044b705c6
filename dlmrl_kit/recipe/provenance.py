"""Which package each component of a run came from, and what to say where that is not there any more.

``run.json`` of a run, ``ablation.json`` and ``comparison.json`` keep it, by the full names of the components:

{"components": {"acme_steps.selector.AboveAverage": {"package": "acme-steps", "version": "0.1.0"}, ...}}
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from dlmrl_kit.core.errors import CheckpointError, RecipeError
from dlmrl_kit.core.registry import registered
from dlmrl_kit.core.run_folder import ABOUT, read_json
from dlmrl_kit.core.version import DISTRIBUTION, PACKAGE, VERSION
from dlmrl_kit.recipe.plugins import PluginWarning, load_plugins, plugin_hint
from dlmrl_kit.recipe.resolve import Block

Provenance: TypeAlias = Mapping[str, Mapping[str, str]]
"""By the full name of a component: ``package``, as pip calls it, and ``version``; "" for what pip did not install."""

KEY = "components"
"""The entry of the files that hold it."""


def provenance_of(blocks: Iterable[Block]) -> Provenance:
    """Returns where the components of a resolved recipe come from."""
    brought = {p.package: {"package": p.distribution, "version": p.version} for p in load_plugins()}
    brought[PACKAGE] = {"package": DISTRIBUTION, "version": VERSION}
    found = {}
    for block in blocks:
        package = block.cls.__module__.split(".", 1)[0]
        found[block.gin_name] = brought.get(package, {"package": package, "version": ""})
    return found


def check_recipe_file(path: Path) -> None:
    """Checks the components of a recipe that lies in a run folder, or in the folder of its model; as ``check``."""
    for folder in (path.absolute().parent, path.absolute().parent.parent):
        if (folder / ABOUT).is_file():
            check(folder / ABOUT)
            return


def check(record: Path) -> None:
    """Looks whether the components that a file names are still there; warns of those that are of another version.

    Args:
        record: such a file; one that is not there names none.

    Raises:
        RecipeError: one is not; with the package that it came from, and the command that installs that.
    """
    load_plugins()
    for name, origin in _read(record).items():
        package, version = origin.get("package", ""), origin.get("version", "")
        if not version or package == DISTRIBUTION:
            continue
        there = any(entry.gin_name == name for entry in registered())
        now = _version(package)
        install = f"pip install {package}=={version}"
        came = f"{record}: {name} came from {package} {version}, "
        if not there and now is None:
            raise RecipeError(f"{came}which is not installed any more: {install}")
        if not there:
            back = "" if now == version else f": {install}"
            raise RecipeError(f"{came}and {package} {now} does not bring it{back}{plugin_hint(name)}")
        if now != version:
            line = f"{came}and is of {package} {now} now: numbers may differ; for those of then, {install}"
            warnings.warn_explicit(line, PluginWarning, PACKAGE, 1)


def brought_by(record: Mapping[str, object], package: str) -> list[str]:
    """Lists the names of the components that a package has brought, from the contents of ``run.json``."""
    found = record.get(KEY)
    if not isinstance(found, dict):
        return []
    return [name.rsplit(".", 1)[1] for name, origin in found.items() if origin.get("package") == package]


def _read(record: Path) -> dict[str, dict[str, str]]:
    """Reads the provenance in a file; nothing where it holds none, or is damaged, which others report."""

    def parse(stored: Any) -> dict[str, dict[str, str]]:
        found = stored[KEY].items()
        return {str(name): {str(k): str(v) for k, v in origin.items()} for name, origin in found}

    try:
        return read_json(record, parse)
    except CheckpointError:
        return {}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except (metadata.PackageNotFoundError, ValueError):
        return None
