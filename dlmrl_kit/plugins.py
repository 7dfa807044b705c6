"""Plugins: components from other packages, found by entry point, and what the kit holds them to.

A distribution that declares

    [project.entry-points."dlmrl_kit.components"]
    acme = "acme_steps"

has its module ``acme_steps`` imported when a recipe is loaded or the catalogue is asked for, once per process and never
when the kit is imported; the module's ``@register`` decorators do the rest. A plugin goes in whole or not at all: if it
raises while it is imported, or takes a name of the kit, it is reported (a ``PluginWarning``, and ``report``), nothing
that it registered stays, and the kit works on without it. ``DLMRL_KIT_NO_PLUGINS=1`` turns plugins off.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from dlmrl_kit import registry
from dlmrl_kit.errors import RecipeError, RegistryError, UserError
from dlmrl_kit.registry import Component

GROUP = "dlmrl_kit.components"
"""Entry-point group; the value of an entry is a module to import."""

OFF_SWITCH = "DLMRL_KIT_NO_PLUGINS"
"""Environment variable that turns plugins off, unless it is empty or 0."""

_KIT = __name__.split(".", 1)[0]
_HERE = str(Path(__file__).resolve().parent)
_DATAFLOW_KINDS = frozenset({"sampler", "selector", "advantage", "likelihood", "loss", "regulariser"})
_TERMS = frozenset({"loss", "regulariser"})


class PluginWarning(UserWarning):
    """A plugin that was skipped, or a name that two plugins share."""


@dataclass(frozen=True)
class Plugin:
    """An entry point of the group ``GROUP``.

    ``distribution`` and ``version``: what pip installed. ``components``: gin names of what its import registered.
    ``problem``: why it was skipped; empty if it was not.
    """

    name: str
    module: str
    distribution: str
    version: str
    components: tuple[str, ...] = ()
    problem: str = ""

    @property
    def package(self) -> str:
        """Top-level package of the module."""
        return self.module.split(".", 1)[0]

    @property
    def origin(self) -> str:
        """Distribution and version: ``acme-steps 0.1.0``."""
        return f"{self.distribution} {self.version}".strip()


class _State:
    """What this process has loaded. ``started`` is set first: a plugin may load recipes while it is imported."""

    lock = threading.RLock()
    started = False
    plugins: tuple[Plugin, ...] = ()


def disabled() -> bool:
    """Whether the environment turns plugins off."""
    return os.environ.get(OFF_SWITCH, "") not in ("", "0")


def load() -> tuple[Plugin, ...]:
    """Imports the installed plugins, the first time it is called; warns of those that are skipped.

    Returns:
        All plugins found, skipped ones included; none if plugins are turned off.
    """
    if disabled():
        return ()
    with _State.lock:
        if _State.started:
            return _State.plugins
        _State.started = True
        try:
            registry.load_builtin()
            for plugin in _installed():
                _State.plugins += (_load(plugin),)
        except BaseException:  # an interrupt: start again the next time
            _State.started, _State.plugins = False, ()
            raise
    for line in report():
        warnings.warn_explicit(line, PluginWarning, _KIT, 1)
    return _State.plugins


def report() -> list[str]:
    """One line for each plugin that was skipped, and for each name that two plugins share; loads nothing."""
    skipped = [
        f"plugin {p.name!r} ({p.origin}, module {p.module}) is skipped: {p.problem}"
        for p in _State.plugins
        if p.problem
    ]
    return skipped + list(_shared_names())


def origin(component: Component) -> str:
    """Where a component comes from: its package and, for a plugin's, the distribution and version."""
    for plugin in _State.plugins:
        if component.gin_name in plugin.components or (component.package == plugin.package and not plugin.problem):
            return f"{component.package} ({plugin.origin})"
    return component.package


def _shared_names() -> Iterator[str]:
    owners: dict[str, list[Component]] = {}
    for component in registry.registered():
        if any(component.gin_name in plugin.components for plugin in _State.plugins):
            owners.setdefault(component.name, []).append(component)
    for name, found in sorted(owners.items()):
        if len({c.package for c in found}) > 1:
            by = " and by ".join(origin(c) for c in found)
            spelt = " or ".join(f"@{c.gin_name}()" for c in found)
            yield f"the name {name!r} is registered by {by}; in a recipe, write {spelt}"


def _installed() -> list[Plugin]:
    """Entry points of the group, sorted; of two distributions of one name, the first on the path counts."""
    found: dict[str, list[Plugin]] = {}
    for distribution in metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except (OSError, UnicodeDecodeError):
            continue
        if GROUP not in text:
            continue
        name, version = _name_and_version(distribution)
        if name in found:
            continue
        try:
            entries = [(e.name, e.value) for e in distribution.entry_points if e.group == GROUP]
            found[name] = [Plugin(entry, value.strip(), name, version) for entry, value in entries]
        except Exception as error:
            found[name] = [Plugin("?", "?", name, version, problem=f"its entry points are malformed: {_text(error)}")]
    return sorted((p for plugins in found.values() for p in plugins), key=lambda p: (p.distribution, p.name))


def _name_and_version(distribution: metadata.Distribution) -> tuple[str, str]:
    try:
        return distribution.metadata["Name"] or "unknown distribution", distribution.version or ""
    except Exception:  # no or broken METADATA
        return "unknown distribution", ""


def _load(plugin: Plugin) -> Plugin:
    """Imports a plugin's module, and takes everything back if that fails or its components cannot stay."""
    if plugin.problem:
        return plugin
    before = _Snapshot()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output may be JSON
            _import(plugin.module)
        new = before.new_components()
        _check(plugin, new)
    except KeyboardInterrupt:
        before.restore(plugin)
        raise
    except BaseException as error:  # SystemExit and the like: no plugin ends the program
        before.restore(plugin)
        return replace(plugin, problem=_reason(error))
    return replace(plugin, components=tuple(c.gin_name for c in new))


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
    """The modules, components and gin names there were before a plugin was imported."""

    def __init__(self) -> None:
        import gin

        self.modules = set(sys.modules)
        self.components = {c.gin_name for c in registry.registered()}
        self.gin_names = {name for name, _ in gin.config._REGISTRY.items()}

    def new_components(self) -> list[Component]:
        """Components registered since, besides the kit's own."""
        return [c for c in registry.registered() if c.gin_name not in self.components and c.package != _KIT]

    def restore(self, plugin: Plugin) -> None:
        """Takes back what was registered since, and forgets the modules that did so: another plugin may need them."""
        import gin

        new = self.new_components()
        packages = {plugin.package, *(c.package for c in new)} - {_KIT}
        for component in new:
            registry.unregister(component)
        for name, configurable in list(gin.config._REGISTRY.items()):
            wrapped = configurable.wrapped
            if name not in self.gin_names and str(wrapped.__module__).split(".", 1)[0] in packages:
                gin.config._REGISTRY.pop(name)
                gin.config._INVERSE_REGISTRY.pop(wrapped, None)
        for name in set(sys.modules) - self.modules:
            if name.split(".", 1)[0] in packages:
                del sys.modules[name]


def _check(plugin: Plugin, new: list[Component]) -> None:
    """Whether the components that a plugin registered can stay.

    Raises:
        RegistryError: none at all, a name of the kit, or a class that does not fit its kind.
    """
    if not any(c.package == plugin.package for c in registry.registered()) and not new:
        raise RegistryError("importing it registers no component; decorate classes with @dlmrl_kit.register(kind)")
    taken = _names_of_the_kit()
    for component in new:
        what = f"{component.kind} {component.gin_name!r}"
        if component.name in taken:
            raise RegistryError(
                f"package {component.package!r} registers the {component.kind} {component.name!r}, a name that package "
                f"{_KIT!r} has taken for its {taken[component.name]}; give the class another name"
            )
        if component.kind in _DATAFLOW_KINDS:
            from dlmrl_kit.component import Component as Base

            if not issubclass(component.cls, Base):
                raise RegistryError(f"{what} must inherit from dlmrl_kit.component.Component")
        try:
            _ = component.parameters
        except (TypeError, ValueError) as error:
            raise RegistryError(f"the constructor of {what} has no readable signature: {error}") from error


def _names_of_the_kit() -> dict[str, str]:
    """What recipes may call by name, and what it is: a plugin of that name would change what the kit's recipes mean."""
    from dlmrl_kit.gin_names import ROOTS

    own = [c for c in registry.registered() if c.package == _KIT]
    bases = {b for c in own for b in c.cls.__mro__ if b.__module__.split(".", 1)[0] == _KIT}
    names = {b.__name__: f"base class {b.__module__}.{b.__name__}" for b in bases}
    names |= {root: f"root {root}" for root in ROOTS}
    return names | {c.name: f"{c.kind} {c.gin_name}" for c in own}


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return _text(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_HERE, "<frozen"))]
    line = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames and not isinstance(error, SyntaxError) else ""
    if isinstance(error, SyntaxError) and error.filename:
        line = f" ({error.filename}:{error.lineno})"
    return f"{_text(error)}{line}"


def _text(error: BaseException) -> str:
    """An exception on one line; its own ``__str__`` may fail, which ``traceback`` survives."""
    last = traceback.format_exception_only(type(error), error)[-1]
    text = " ".join(last.split())
    if isinstance(error, UserError):
        text = text.split(": ", 1)[-1]
    return text if len(text) <= 300 else text[:297] + "..."


def guard(component: Component) -> None:
    """Makes a component from outside the kit answer for its keys: when it is built, and each time it runs.

    A TensorDict component is then checked to declare keys as ``dlmrl_kit.component`` describes, and to write what it
    declares and nothing else. Other components are left alone.

    Raises:
        RegistryError: malformed keys in the class itself.
    """
    if "tensordict" not in sys.modules:
        return
    from dlmrl_kit import contract

    contract.guard(component)
