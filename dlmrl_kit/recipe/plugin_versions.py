"""Which versions of the kit a plugin is for, as its distribution says in its dependencies."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from dlmrl_kit.core.version import DISTRIBUTION, VERSION

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def kit_requirement(distribution: str) -> Requirement | None:
    """Returns what a distribution requires of the kit; None if it says nothing, or pip does not know it."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        needed = [Requirement(text) for text in metadata.requires(distribution) or []]
    except (metadata.PackageNotFoundError, InvalidRequirement, ValueError):  # ValueError: a name that is none
        return None
    return next((r for r in needed if r.name.replace("_", "-").lower() == DISTRIBUTION), None)


def version_fault(distribution: str) -> str:
    """Says that a distribution is for other versions of the kit; "" if it is not, or says nothing."""
    needed = kit_requirement(distribution)
    if needed is None or needed.specifier.contains(VERSION, prereleases=True):
        return ""
    return f"it is for {needed}, and {VERSION} is installed; install a version of {distribution} for this one"
