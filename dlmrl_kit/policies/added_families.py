"""The families of models that plugins add; this module imports no torch, as every recipe that is loaded asks it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlmrl_kit.policies.families.base import Family

_added: list[Family] = []


def add_family(family: Family) -> None:
    """Lets a family of a plugin load checkpoints: it is asked before the kit's own. It replaces one of its class."""
    keep_families([*(other for other in _added if type(other).__qualname__ != type(family).__qualname__), family])


def added_families() -> tuple[Family, ...]:
    """Returns the families that plugins added."""
    return tuple(_added)


def keep_families(families: Iterable[Family]) -> None:
    """Forgets the families that plugins added, but for these."""
    _added[:] = families
