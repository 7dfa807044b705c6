"""Every component there is: the kit's own and those of the installed plugins."""

from __future__ import annotations

from dlmrl_kit.core.errors import RegistryError
from dlmrl_kit.core.registry import KINDS, Entry, nearest, registered, unknown_kind
from dlmrl_kit.recipe.builtin import load_builtin
from dlmrl_kit.recipe.plugins import load_plugins, plugin_hint


def components(kind: str | None = None) -> list[Entry]:
    """Loads the kit's components and the plugins, and returns all (of one kind), sorted by kind and name.

    Raises:
        RegistryError: no such kind.
    """
    load_builtin()
    load_plugins()
    return registered(kind)


def find(name: str, kind: str | None = None) -> Entry:
    """Finds a component by its class name, or a longer name such as ``acme.selector.EarlySteps``.

    Raises:
        RegistryError: no such kind, no such component (with the nearest names), or more than one.
    """
    if kind is not None and kind not in KINDS:
        raise unknown_kind(kind)
    everything = components()
    candidates = [entry for entry in everything if kind in (None, entry.kind)]
    matches = [entry for entry in candidates if entry.gin_name == name or entry.gin_name.endswith("." + name)]
    what = kind or "component"
    if not matches:
        others = [entry for entry in everything if entry.name == name]
        elsewhere = f"{name!r} is a {others[0].kind}. " if others else ""
        known = nearest(name, {entry.name for entry in candidates})
        raise RegistryError(f"no {what} named {name!r}; {elsewhere}{known}{plugin_hint()}")
    if len(matches) > 1:
        raise RegistryError(
            f"{what} {name!r} is ambiguous: registered by {' and '.join(sorted(m.package for m in matches))}; "
            f"write one of {', '.join(sorted(m.gin_name for m in matches))}"
        )
    return matches[0]
