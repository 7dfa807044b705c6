"""The descriptions of all components, kept in the user's cache folder: ``dlmrl list`` then imports none of them.

The file is used as long as nothing has changed that it was made from: the files of the kit and of the plugins' packages
(by size and time of change), what pip says of the plugins, and Python. It is not kept while a plugin is skipped, for
what ails it may be elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs

from dlmrl_kit.core.errors import FileError, RegistryError
from dlmrl_kit.core.files import read_regular, write_atomic
from dlmrl_kit.core.registry import KINDS, nearest
from dlmrl_kit.core.version import PACKAGE, VERSION
from dlmrl_kit.recipe.catalogue import components, pick
from dlmrl_kit.recipe.plugins import Plugin, disabled, installed_plugins, load_plugins, places_of, plugin_report
from dlmrl_kit.report.descriptions import Description, KeyText, KindDescription, ParameterText

KIT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Catalogue:
    """Every component there is, sorted by kind and name, the plugins that were found, and the kinds."""

    components: tuple[Description, ...]
    plugins: tuple[Plugin, ...]
    kinds: tuple[KindDescription, ...]

    def of_kind(self, kind: str | None) -> list[Description]:
        """Lists the components of a kind, given by its name or its folder (``selectors``); all for None.

        Raises:
            RegistryError: there is no such kind.
        """
        if kind is None:
            return [*self.components]
        name = next((k.name for k in self.kinds if kind in (k.name, k.folder)), None)
        if name is None:
            raise RegistryError(f"unknown kind {kind!r}; {nearest(kind, [k.name for k in self.kinds])}")
        return [c for c in self.components if c.kind == name]

    def named(self, name: str, others: Iterable[str] = ()) -> Description:
        """Finds a component by its class name, or by a longer one such as ``acme.selector.EarlySteps``.

        Args:
            name: the name.
            others: further names that a message may suggest.

        Raises:
            RegistryError: there is no such component (the nearest names are told), or there are several.
        """
        return pick(name, self.components, None, "component or recipe", others)


def catalogue() -> Catalogue:
    """Returns the catalogue from the cache folder; where it is not there or out of date, makes it again."""
    path = Path(platformdirs.user_cache_dir(PACKAGE)) / "catalogue.json"
    state = _state()
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):  # no file, or a damaged one
        kept = json.loads(read_regular(path))
        if kept["state"] == state:
            return _from_data(kept)
    found, whole = _made()
    if whole:
        with contextlib.suppress(FileError):  # a home that cannot be written to: it is made again the next time
            write_atomic(path, json.dumps({"state": state, **asdict(found)}))
    return found


def _made() -> tuple[Catalogue, bool]:
    """Imports everything; returns the catalogue, and whether all plugins went in and no name is shared."""
    plugins = load_plugins()
    brought = {name for plugin in plugins for name in plugin.components}
    entries = [entry for entry in components() if entry.package == PACKAGE or entry.gin_name in brought]
    kinds = tuple(map(KindDescription.of, KINDS.values()))
    return Catalogue(tuple(Description.of(entry) for entry in entries), plugins, kinds), not plugin_report()


def _from_data(kept: dict[str, Any]) -> Catalogue:
    kinds = [KindDescription(keys=_keys(k.pop("keys")), **k) for k in kept["kinds"]]
    return Catalogue(
        tuple(map(_description, kept["components"])), tuple(_plugin(p) for p in kept["plugins"]), tuple(kinds)
    )


def _description(kept: dict[str, Any]) -> Description:
    return Description(
        documentation=tuple(kept.pop("documentation")),
        parameters=tuple(ParameterText(**p) for p in kept.pop("parameters")),
        keys=_keys(kept.pop("keys")),
        **kept,
    )


def _keys(kept: dict[str, Any] | None) -> dict[str, tuple[KeyText, ...]] | None:
    return None if kept is None else {name: tuple(KeyText(**k) for k in found) for name, found in kept.items()}


def _plugin(kept: dict[str, Any]) -> Plugin:
    return Plugin(components=tuple(kept.pop("components")), skipped=tuple(kept.pop("skipped")), **kept)


def _state() -> str:
    """Returns a digest of all that the catalogue is made from."""
    plugins = () if disabled() else installed_plugins()
    places = [KIT, *(place for plugin in plugins for place in places_of(plugin))]
    facts = [VERSION, sys.version, *map(repr, plugins), *(line for place in places for line in _files(place))]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _files(place: Path) -> Iterator[str]:
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        with contextlib.suppress(OSError):  # gone meanwhile, or a dangling link
            about = path.stat()
            yield f"{path} {about.st_size} {about.st_mtime_ns}"
