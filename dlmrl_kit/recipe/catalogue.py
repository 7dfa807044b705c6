"""Every component there is: the kit's own and those of the installed plugins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

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
    return pick(name, components(), kind, kind or "component")


class Named(Protocol):
    """What a component is found by, whether it is the registered class or a description of it."""

    @property
    def kind(self) -> str:
        """As in ``core.registry.Entry``."""

    @property
    def name(self) -> str:
        """As in ``core.registry.Entry``."""

    @property
    def package(self) -> str:
        """As in ``core.registry.Entry``."""

    @property
    def gin_name(self) -> str:
        """As in ``core.registry.Entry``."""


N = TypeVar("N", bound=Named)


def pick(name: str, everything: Sequence[N], kind: str | None, what: str, others: Iterable[str] = ()) -> N:
    """Picks a component by its class name or a longer name.

    Args:
        name: the name.
        everything: the components of all kinds.
        kind: the kind that it must be of; None for any.
        what: what is looked for, as messages name it.
        others: names besides those of components that a message may suggest.

    Raises:
        RegistryError: no such component (with the nearest names), or more than one.
    """
    candidates = [c for c in everything if kind in (None, c.kind)]
    matches = [c for c in candidates if c.gin_name == name or c.gin_name.endswith("." + name)]
    if not matches:
        elsewhere = next((f"{name!r} is a {c.kind}. " for c in everything if c.name == name), "")
        known = nearest(name, {c.name for c in candidates} | set(others))
        raise RegistryError(f"no {what} named {name!r}; {elsewhere}{known}{plugin_hint(name)}")
    if len(matches) > 1:
        raise RegistryError(
            f"{what} {name!r} is ambiguous: registered by {' and '.join(sorted(m.package for m in matches))}; "
            f"write one of {', '.join(sorted(m.gin_name for m in matches))}"
        )
    return matches[0]
