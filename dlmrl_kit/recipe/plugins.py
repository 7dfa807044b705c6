"""Plugins: components from other packages, found by entry point.

A distribution that declares

    [project.entry-points."dlmrl_kit.components"]
    acme = "acme_steps"

has its module ``acme_steps`` imported when a recipe is loaded or the catalogue is asked for, once per process and never
when the kit is imported; the module's ``@register`` decorators do the rest. A component that cannot stay is reported (a
``PluginWarning``, and ``plugin_report``) and left out, the rest of its plugin works: one of an unknown kind, or with a
name of the kit, or in a module that raises while it is imported. A plugin of which nothing is left is skipped, as is
one whose distribution requires another version of the kit; nothing of it stays. ``DLMRL_KIT_NO_PLUGINS=1`` turns
plugins off.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlmrl_kit.core import registry
from dlmrl_kit.core.errors import RegistryError, UserError
from dlmrl_kit.core.registry import Entry, Skipped
from dlmrl_kit.policies.added_families import added_families, keep_families
from dlmrl_kit.recipe import gin_registry
from dlmrl_kit.recipe.builtin import load_builtin
from dlmrl_kit.recipe.moved import moved_hint, moved_to
from dlmrl_kit.recipe.plugin_versions import version_fault

if TYPE_CHECKING:
    from dlmrl_kit.policies.families.base import Family

ENTRY_POINT_GROUP = "dlmrl_kit.components"
"""Entry-point group; the value of an entry is a module to import."""

OFF_SWITCH = "DLMRL_KIT_NO_PLUGINS"
"""Environment variable that turns plugins off, unless it is empty or 0."""

SLOW_SECONDS = 10.0
"""Seconds after which a plugin that is still being imported is named, for it may hang."""

_KIT = __name__.split(".", 1)[0]
_HERE = str(Path(__file__).resolve().parent.parent) + os.sep


class PluginWarning(UserWarning):
    """Warns of a plugin that was skipped, or of a name that two plugins share."""


@dataclass(frozen=True)
class Plugin:
    """An entry point of the group ``ENTRY_POINT_GROUP``.

    Attributes:
        name: the name of the entry point.
        module: the module that it imports.
        distribution, version: what pip installed.
        components: the full names of the components it brought.
        problem: why it was skipped; empty if it was not.
        skipped: what of it was left out, where the rest was not.
    """

    name: str
    module: str
    distribution: str
    version: str
    components: tuple[str, ...] = ()
    problem: str = ""
    skipped: tuple[Skipped, ...] = ()

    @property
    def package(self) -> str:
        """Top-level package of the module."""
        return self.module.partition(":")[0].split(".", 1)[0].strip()

    @property
    def origin(self) -> str:
        """Distribution and version: ``acme-steps 0.1.0``."""
        return f"{self.distribution} {self.version}".strip()

    @property
    def named(self) -> str:
        """The plugin as messages name it."""
        return f"plugin {self.name!r} ({self.origin}, module {self.module})"


class _State:
    """What this process has loaded. ``started`` is set first: a plugin may load recipes while it is imported."""

    lock = threading.RLock()
    started = False
    plugins: tuple[Plugin, ...] = ()


def disabled() -> bool:
    """Tells whether the environment turns plugins off."""
    return os.environ.get(OFF_SWITCH, "") not in ("", "0")


def load_plugins() -> tuple[Plugin, ...]:
    """Imports the installed plugins, the first time it is called; warns of those that are skipped.

    Returns:
        All plugins found, those that were skipped included; none if plugins are turned off.
    """
    if disabled():
        return ()
    with _State.lock:
        if _State.started:
            return _State.plugins
        _State.started = True
        try:
            load_builtin()
            installed = installed_plugins()
            packages = {plugin.package for plugin in installed}
            for plugin in installed:
                _State.plugins += (_load(plugin, packages - {plugin.package}),)
        except BaseException:  # an interrupt: start again the next time
            _State.started, _State.plugins = False, ()
            raise
    for line in plugin_report():
        warnings.warn_explicit(line, PluginWarning, _KIT, 1)
    return _State.plugins


def recipe_folders() -> list[Path]:
    """Lists the folders ``recipes`` of the installed plugins' packages, which recipes may include; imports nothing."""
    if disabled():
        return []
    return [place / "recipes" for plugin in installed_plugins() for place in places_of(plugin) if place.suffix != ".py"]


def places_of(plugin: Plugin) -> list[Path]:
    """Lists the folders of a plugin's package, or the file of a plugin that is one module; imports nothing."""
    try:
        spec = importlib.util.find_spec(plugin.package) if plugin.package else None
    except (ImportError, ValueError):  # a name that is no package's, or a module that was loaded without a spec
        spec = None
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.origin else []
    return [Path(folder) for folder in spec.submodule_search_locations]


def plugin_report() -> list[str]:
    """Writes a line for each plugin or part of one that was skipped, and each name that two share; loads nothing."""
    whole = [f"{plugin.named} is skipped: {plugin.problem}" for plugin in _State.plugins if plugin.problem]
    parts = [f"{s.what} of {p.named} is skipped: {s.problem}" for p in _State.plugins for s in p.skipped]
    return whole + parts + list(_shared_names())


def plugin_hint(name: str) -> str:
    """Says whether plugins may be the reason that a component was not found, as the end of a message.

    Args:
        name: of the component, as it was looked for.
    """
    if disabled():
        return f"; plugins are turned off ({OFF_SWITCH} is set)"
    for plugin in _State.plugins:
        for part in plugin.skipped:
            if part.name == name.rsplit(".", 1)[-1]:
                return f"; {part.what} of {plugin.named} is skipped: {part.problem}"
        if plugin.problem and (plugin.package == name.split(".", 1)[0] or plugin.distribution == moved_to(name)):
            return f"; {plugin.named} is skipped: {plugin.problem}"
    if moved_to(name):
        return moved_hint(name)
    some = [plugin.name for plugin in _State.plugins if plugin.problem or plugin.skipped]
    return f"; skipped, in whole or in part, are the plugins {', '.join(some)}: see `dlmrl doctor`" if some else ""


def origin(entry: Entry) -> str:
    """Says where a component comes from: its package and, if a plugin brought it, the distribution and version."""
    for plugin in _State.plugins:
        if entry.gin_name in plugin.components:
            return f"{entry.package} ({plugin.origin})"
    return entry.package


def _shared_names() -> Iterator[str]:
    owners: dict[str, list[Entry]] = {}
    for entry in registry.registered():
        if any(entry.gin_name in plugin.components for plugin in _State.plugins):
            owners.setdefault(entry.name, []).append(entry)
    for name, found in sorted(owners.items()):
        if len({c.package for c in found}) > 1:
            by = " and by ".join(origin(c) for c in found)
            spelt = " or ".join(f"@{c.gin_name}()" for c in found)
            yield f"the name {name!r} is registered by {by}; in a recipe, write {spelt}"


def installed_plugins() -> list[Plugin]:
    """Lists the entry points of the group; of two distributions of one name, the first on the path counts.

    Each call sees what was installed, or taken away, since the one before.
    """
    return list(_installed(tuple(map(_stamp, sys.path))))


@functools.lru_cache(maxsize=1)
def _installed(path: tuple[tuple[str, int, int], ...]) -> tuple[Plugin, ...]:
    """Reads the entry points of every distribution on the path, some tens of milliseconds; again where it changed."""
    found = [Plugin(e.name, e.value.strip(), *_distribution(e)) for e in metadata.entry_points(group=ENTRY_POINT_GROUP)]
    return tuple(sorted(found, key=lambda p: (p.distribution, p.name)))


def _stamp(folder: str) -> tuple[str, int, int]:
    """Returns what is another as soon as a distribution is installed into a folder of the path, or removed."""
    try:
        about = os.stat(folder or ".")
    except OSError:  # none, as a zip file of the standard library often is
        return folder, 0, 0
    return os.path.abspath(folder), about.st_ino, about.st_mtime_ns


def _distribution(entry: metadata.EntryPoint) -> tuple[str, str]:
    try:
        assert entry.dist is not None
        return entry.dist.metadata["Name"] or "unknown distribution", entry.dist.version or ""
    except Exception:  # no or broken METADATA
        return "unknown distribution", ""


def _load(plugin: Plugin, others: set[str]) -> Plugin:
    """Imports a plugin's module, leaves out what cannot stay, and takes everything back if that is all.

    Components that its import registers in a package of ``others``, the other plugins, count as theirs.
    """
    if problem := version_fault(plugin.distribution):
        return replace(plugin, problem=problem)
    before = _Snapshot()
    try:
        with (
            contextlib.redirect_stdout(sys.stderr),  # standard output may be JSON
            _named_if_slow(plugin),
            registry.skipping_faults() as skipped,
        ):
            rest = _import_what_can_be(plugin, before)
        skipped += _unregister_misfits(before.new_entries()) + rest
        new = before.new_entries()
        own = [
            e for e in registry.registered() if e.package == plugin.package or (e in new and e.package not in others)
        ]
        if not own and not before.new_families() and not before.declarations.new_kinds():
            none = "importing it registers no component; decorate classes with @dlmrl_kit.register(kind)"
            raise RegistryError("; ".join(part.problem for part in skipped) or none)
    except KeyboardInterrupt:
        before.restore(plugin)
        raise
    except BaseException as error:  # SystemExit and the like: no plugin ends the program
        before.restore(plugin)
        return replace(plugin, problem=_reason(error))
    return replace(plugin, components=tuple(sorted(entry.gin_name for entry in own)), skipped=tuple(skipped))


def _import_what_can_be(plugin: Plugin, before: _Snapshot) -> list[Skipped]:
    """Imports a plugin's module; if that fails, keeps the components of those modules that were imported whole.

    Returns:
        What is missing then: whatever the rest would have brought.

    Raises:
        Exception: that of the import, if no component is left.
    """
    try:
        _import(plugin.module)
    except Exception as error:
        for entry in before.new_entries():
            if not _is_imported(entry.cls.__module__):
                registry.unregister(entry)
        if not any(entry.package == plugin.package for entry in before.new_entries()):
            raise
        return [Skipped(f"the rest of module {plugin.module}", "", _reason(error))]
    return []


def _is_imported(module: str) -> bool:
    """Tells whether a module and the packages around it were imported to the end."""
    parts = module.split(".")
    return all(".".join(parts[: depth + 1]) in sys.modules for depth in range(len(parts)))


@contextlib.contextmanager
def _named_if_slow(plugin: Plugin) -> Iterator[None]:
    """Names a plugin on standard error if its import takes long: nothing else would say what a command waits for."""
    text = (
        f"plugin {plugin.name!r} ({plugin.origin}, module {plugin.module}) is still being imported after "
        f"{SLOW_SECONDS:g} s; if it hangs, stop the command and turn plugins off: {OFF_SWITCH}=1\n"
    )
    timer = threading.Timer(SLOW_SECONDS, sys.stderr.write, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _import(value: str) -> None:
    module, colon, attribute = value.partition(":")
    module, attribute = module.strip(), attribute.strip()
    if not all(part.isidentifier() for part in [*module.split("."), *(attribute.split(".") if colon else [])]):
        raise RegistryError(f"its entry point is {value!r}, which is no module to import")
    if module.split(".", 1)[0] == _KIT:
        raise RegistryError(f"its entry point is {value!r}, a module of the kit itself")
    found: Any = importlib.import_module(module)
    for name in attribute.split(".") if attribute else []:
        found = getattr(found, name)


class _Snapshot:
    """Remembers which modules, components, kinds and gin configurables there were before a plugin was imported."""

    def __init__(self) -> None:
        from dlmrl_kit.algorithm.kinds import Declarations  # with torch, which an import of this module must not load

        self.modules = set(sys.modules)
        self.entries = {entry.gin_name for entry in registry.registered()}
        self.configurables = gin_registry.names()
        self.families = added_families()
        self.declarations = Declarations.now()

    def new_families(self) -> list[Family]:
        """Lists the families of checkpoints that were added since."""
        return [family for family in added_families() if family not in self.families]

    def new_entries(self) -> list[Entry]:
        """Lists the components registered since, besides the kit's own."""
        return [e for e in registry.registered() if e.gin_name not in self.entries and e.package != _KIT]

    def restore(self, plugin: Plugin) -> None:
        """Takes back what was registered since, and forgets the modules that did so: another plugin may need them."""
        new = self.new_entries()
        kinds = self.declarations.new_kinds()
        packages = {plugin.package, *(e.package for e in new), *(k.package for k in kinds)} - {_KIT}
        for entry in new:
            registry.unregister(entry)
        self.declarations.restore()
        keep_families(self.families)
        gin_registry.forget(packages, self.configurables)
        for name in set(sys.modules) - self.modules:
            if name.split(".", 1)[0] in packages:
                del sys.modules[name]


def _unregister_misfits(new: list[Entry]) -> list[Skipped]:
    """Takes those components of a plugin out of the registry that cannot stay; returns them with the reasons."""
    taken = _names_of_the_kit()
    faults = {entry: fault for entry in new if (fault := _fault(entry, taken))}
    for entry in faults:
        registry.unregister(entry)
    return [Skipped(f"{entry.kind} {entry.name!r}", entry.name, fault) for entry, fault in faults.items()]


def _fault(entry: Entry, taken: Mapping[str, str]) -> str:
    """Says why a component cannot stay: a name of the kit, or a class that does not fit its kind; "" if it can."""
    from dlmrl_kit.algorithm.bases import BASE_CLASSES

    what = f"{entry.kind} {entry.gin_name!r}"
    if entry.name in taken:
        return (
            f"package {entry.package!r} registers the {entry.kind} {entry.name!r}, a name that package "
            f"{_KIT!r} has taken for its {taken[entry.name]}; give the class another name"
        )
    base = BASE_CLASSES[entry.kind]
    if not issubclass(entry.cls, base):
        return f"{what} must inherit from {base.__module__}.{base.__name__}"
    try:
        _ = entry.parameters
    except (TypeError, ValueError) as error:
        return f"the constructor of {what} has no readable signature: {error}"
    return ""


def _names_of_the_kit() -> dict[str, str]:
    """Lists the names that recipes give a meaning, and what they mean; no plugin may take one of them."""
    from dlmrl_kit.algorithm.algorithm import ROOTS

    own = [entry for entry in registry.registered() if entry.package == _KIT]
    bases = {base for entry in own for base in entry.ancestors if base.__module__.split(".", 1)[0] == _KIT}
    names = {base.__name__: f"base class {base.__module__}.{base.__name__}" for base in bases}
    names |= {root: f"root {root}" for root in ROOTS}
    return names | {entry.name: f"{entry.kind} {entry.gin_name}" for entry in own}


def _reason(error: BaseException) -> str:
    """Writes an exception on one line, with the line of the plugin that it came from."""
    skip = (_HERE, "<frozen", importlib.__file__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(skip)]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{_text(error)}{where}"


def _text(error: BaseException) -> str:
    try:
        message = " ".join(str(error).split())
    except Exception:  # a plugin's exceptions are its own
        message = "no readable message"
    name = "" if isinstance(error, UserError) else type(error).__name__
    text = ": ".join(part for part in (name, message) if part)
    return text if len(text) <= 300 else text[:297] + "..."
