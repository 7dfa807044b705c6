"""What the pages are about: the kit's own kinds and components, whatever plugins are installed."""

from __future__ import annotations

import functools

from dlmrl_kit.core.registry import KINDS, Entry, Kind
from dlmrl_kit.core.version import PACKAGE
from dlmrl_kit.recipe.catalogue import components


def kit_kinds() -> list[Kind]:
    """Lists the kinds of the kit."""
    return [kind for kind in KINDS.values() if kind.package == PACKAGE]


@functools.cache
def kit_components() -> tuple[Entry, ...]:
    """Lists the components of the kit, by kind and name."""
    return tuple(entry for entry in components() if entry.package == PACKAGE)
