"""Every public name has a page, and a documentation to be shown there: the build warns of those that have not."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import dlmrl_kit
from building.component_pages import page_of, public_name
from building.kit import kit_components, kit_kinds

_LOGGER = logging.getLogger(__name__)


def public_names() -> Iterator[str]:
    """Yields what users import: the names of the package and those of the kinds' packages."""
    yield from (f"dlmrl_kit.{name}" for name in dlmrl_kit.__all__ if not name.startswith("_"))
    for kind in kit_kinds():
        module = importlib.import_module(f"dlmrl_kit.{kind.folder}")
        yield from (f"{module.__name__}.{name}" for name in module.__all__)
    yield from (public_name(entry) for entry in kit_components())


def undocumented(names: Iterable[str], described: Iterable[str]) -> list[str]:
    """Lists the names that no page describes, or that have no docstring to be shown."""
    found = set(described)
    return sorted({name for name in names if name not in found or not inspect.getdoc(_resolved(name))})


def _resolved(name: str) -> object:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def check_coverage(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of public names without a page, and of components that are not on theirs."""
    objects = env.domains.python_domain.objects
    for name in undocumented(public_names(), objects):
        _LOGGER.warning("%s is public and has no page, or no docstring", name)
    for entry in kit_components():
        described = objects.get(public_name(entry))
        if described and described.docname != page_of(entry):
            _LOGGER.warning("%s is described on %s instead of %s", entry.name, described.docname, page_of(entry))
