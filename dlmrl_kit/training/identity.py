"""What a run depends on: settings, files, packages and machine, kept in its checkpoints and compared at a resume.

Files have names that stay when what they belong to is moved: those of the kit, of installed packages, of the hub's
cache and of imported modules are relative to where these are found. Files that the user named by a path, data and
checkpoints, are known by their absolute paths.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from inspect import getsourcefile
from pathlib import Path
from typing import TypeAlias

import torch

from dlmrl_kit.algorithm.algorithm import Algorithm, Pretraining
from dlmrl_kit.core.checksums import file_digest
from dlmrl_kit.core.component import settings
from dlmrl_kit.core.dependencies import INSTALLED, Dependent, code_of, root_of
from dlmrl_kit.core.errors import FileError
from dlmrl_kit.core.files import reason_of
from dlmrl_kit.core.version import VERSION
from dlmrl_kit.recipe.load import Recipe
from dlmrl_kit.recipe.plugins import load_plugins

Identity: TypeAlias = dict[str, dict[str, str]]
"""By section (``recipe``, ``files``, ``data``, ``packages``, ``machine``) what a run depends on: value or digest."""

_KIT = "dlmrl_kit"
_LIBRARIES = ("torch", "transformers", "peft", "reasoning-gym")
"""Packages that compute: with other versions numbers differ, in the last digits or in what a task contains."""


@dataclass(frozen=True)
class Change:
    """Something that a run depends on and that is not as it was.

    Attributes:
        section, name: as in ``Identity``.
        before, now: value or digest; "" where there is none.
    """

    section: str
    name: str
    before: str
    now: str

    def __str__(self) -> str:
        if self.section == "files":
            state = (
                "is not there any more" if not self.now else "has changed" if self.before else "was not there before"
            )
            return f"{self.name} {state}"
        if self.name == "processes":
            return f"processes were {self.before or 1}, now {self.now or 1}"
        what = {"packages": "package ", "data": "data ", "machine": ""}.get(self.section, "")
        return f"{what}{self.name} was {self.before or 'not there'}, now {self.now or 'not there'}"


def files_of(built: Algorithm | Pretraining) -> set[Path]:
    """Returns the files and folders that the components of a recipe name, code of reward functions included."""
    return {path.absolute() for part in _all(_parts(built)) for path in part.files()}


def contents_of(parts: Iterable[object]) -> Identity:
    """Returns what some components depend on, without settings: ``files``, their own code included, and ``data``.

    Raises:
        FileError: a file cannot be read.
    """
    found = list(_all(parts))
    named = {path.absolute() for part in found for path in part.files()}
    return {
        "files": _digests(named, [type(part) for part in found]),
        "data": {name: version for part in found for name, version in part.versions().items()},
    }


def identity_of(recipe: Recipe, built: Algorithm | Pretraining, device: torch.device, processes: int = 1) -> Identity:
    """Finds out what a run depends on, and reads all files among it.

    Args:
        recipe: what is run.
        built: of it.
        device: that the run is on.
        processes: that train together.

    Raises:
        FileError: a file cannot be read.
    """
    bound = {key: value.text or f"a {type(value.value).__name__}" for key, value in recipe.bindings.items()}
    machine = {"device": device.type}
    if device.type == "cpu":  # sums over another number of threads differ in the last digit
        machine["threads"] = str(torch.get_num_threads())
    if processes > 1:
        machine["processes"] = str(processes)
    return {
        "recipe": bound | {text: "there" for text in recipe.imports},
        "files": _digests(files_of(built), [block.cls for block in recipe.blocks]),
        "data": {name: version for part in _all(_parts(built)) for name, version in part.versions().items()},
        "packages": dict(packages_of(recipe)),
        "machine": machine,
    }


def _digests(files: Iterable[Path], classes: Iterable[type]) -> dict[str, str]:
    """Returns the digests of files, absolute, and of the code of classes, by names that stay when these are moved."""
    names = {path: lasting_name(path, None) for path in files}
    for code, root in map(_source, classes):
        names |= {path: lasting_name(path, root) for path in code}
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    found = {str(path) if name in twice else name: path for path, name in names.items()}
    return {name: content_digest(path) for name, path in sorted(found.items())}


def lasting_name(path: Path, root: Path | None) -> str:
    """Returns the name of a file, absolute, that stays when what the file belongs to is moved.

    Args:
        path: of the file.
        root: the folder that it was imported from; None: it was not.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    package = Path(__file__).resolve().parents[1]
    homes = [package.parent] if path.is_relative_to(package) else []
    homes += [Path(HF_HUB_CACHE).absolute(), *(folder for folder in path.parents if folder.name in INSTALLED)]
    homes += [] if root is None else [root]
    home = next((folder for folder in homes if path.is_relative_to(folder)), None)
    return str(path) if home is None else path.relative_to(home).as_posix()


def _parts(built: Algorithm | Pretraining) -> list[object]:
    """Returns all that an algorithm, or a pre-training, is built of."""
    if isinstance(built, Pretraining):
        return [built.task, built.policy, built.demonstrator, built.pretrainer, built.sampler]
    return [built.task, built.policy, built.fillings, built.trainer, built.collector, built.loggers]


def changes(before: Mapping[str, Mapping[str, str]], now: Identity) -> list[Change]:
    """Lists what differs between two identities, section by section."""
    found = []
    for section, entries in now.items():
        old = _renamed(before.get(section, {}), entries) if section == "files" else before.get(section, {})
        for name in dict.fromkeys([*old, *entries]):
            if old.get(name) != entries.get(name):
                found.append(Change(section, name, old.get(name, ""), entries.get(name, "")))
    return found


def digest_of(identity: Mapping[str, Mapping[str, str]]) -> str:
    """Returns one digest of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def content_digest(path: Path) -> str:
    """Returns the digest of a file, or of the names and contents of all files of a folder that are not hidden.

    Raises:
        FileError: it cannot be read.
    """
    try:
        if not path.is_dir():
            return file_digest(path)
        inside = [p.relative_to(path) for p in sorted(path.rglob("*")) if p.is_file()]
        shown = [p for p in inside if not any(part.startswith((".", "__pycache__")) for part in p.parts)]
        return digest_of({"files": {str(p): file_digest(path / p) for p in shown}})
    except OSError as error:
        raise FileError(f"cannot read {path}, which the run depends on: {reason_of(error)}") from error


def _all(components: Iterable[object]) -> Iterator[Dependent]:
    """Yields the components, and those that they were given, alone or in lists and dictionaries."""
    for part in components:
        if isinstance(part, Dependent):
            yield part
            yield from _all(settings(part).values())
        elif isinstance(part, Mapping):
            yield from _all(part.values())
        elif isinstance(part, list | tuple):
            yield from _all(part)


def _source(cls: type) -> tuple[set[Path], Path | None]:
    """Lists the code of a component that is not the kit's: a plugin's, or that of a module that a recipe imports.

    Returns:
        The files, and the folder that the component's module was found from.
    """
    if cls.__module__.split(".", 1)[0] == _KIT:
        return set(), None
    try:
        found = getsourcefile(cls)
    except (TypeError, OSError):
        return set(), None
    if found is None:
        return set(), None
    file = Path(found).absolute()
    return code_of(cls.__module__, file), root_of(cls.__module__, file)


def _renamed(old: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Returns the files of an identity by the names of another: earlier versions knew all files by absolute paths."""
    longest = sorted((name for name in now if not Path(name).is_absolute()), key=len, reverse=True)
    ours = {name: next((new for new in longest if name.endswith(f"/{new}")), name) for name in old if name not in now}
    return {ours.get(name, name): digest for name, digest in old.items()}


def packages_of(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yields names and versions of the kit, of libraries that compute, and of the plugins that the recipe uses."""
    yield _KIT, VERSION
    for name in _LIBRARIES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    used = {block.cls.__module__.split(".", 1)[0] for block in recipe.blocks}
    for plugin in load_plugins():
        if plugin.package in used:
            yield plugin.distribution, plugin.version
