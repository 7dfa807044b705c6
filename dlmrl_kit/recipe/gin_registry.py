"""Which functions and classes gin knows, and how to make it forget some.

Gin has no public way to do either. It is needed for a plugin that registers something of its own with gin and then
fails: gin would refuse the same name when another plugin imports that package again. Nothing else in the kit uses gin's
registry: recipes are read with gin's parser and built by ``recipe.build``.
"""

from __future__ import annotations

from collections.abc import Set

from gin import config


def names() -> frozenset[str]:
    """Returns the full names that gin knows."""
    return frozenset(name for name, _ in config._REGISTRY.items())


def forget(packages: Set[str], kept: Set[str]) -> None:
    """Makes gin forget what the modules of some packages registered.

    Args:
        packages: top-level packages.
        kept: names that stay.
    """
    for name, configurable in list(config._REGISTRY.items()):
        wrapped = configurable.wrapped
        if name not in kept and str(wrapped.__module__).split(".", 1)[0] in packages:
            config._REGISTRY.pop(name)
            config._INVERSE_REGISTRY.pop(wrapped, None)
