"""What the shell completes: names of recipes, kinds, components and parameters.

Completing imports no component: names come from the catalogue that ``dlmrl list`` keeps.
"""

from __future__ import annotations

from collections.abc import Iterable


def recipe(begun: str) -> list[str]:
    """Lists the kit's recipes whose names begin with ``begun``."""
    from dlmrl_kit.recipe.load import recipe_names

    return _beginning(begun, recipe_names())


def kind_or_recipes(begun: str) -> list[str]:
    """Lists the kinds of components, and ``recipes``."""
    from dlmrl_kit.report.catalogue_file import catalogue

    return _beginning(begun, [*(kind.name for kind in catalogue().kinds), "recipes"])


def component_or_recipe(begun: str) -> list[str]:
    """Lists components and recipes."""
    from dlmrl_kit.report.catalogue_file import catalogue
    from dlmrl_kit.report.component_list import all_recipes

    return _beginning(begun, [*(c.name for c in catalogue().components), *all_recipes()])


def use(begun: str) -> list[str]:
    """Lists the ends of ``--use KIND=NAME``: kinds, then the components of the kind."""
    from dlmrl_kit.report.catalogue_file import catalogue

    kind, equals, _ = begun.partition("=")
    if not equals:
        return _beginning(begun, [f"{found.name}=" for found in catalogue().kinds])
    return _beginning(begun, [f"{kind}={c.name}" for c in catalogue().components if c.kind == kind])


def binding(begun: str) -> list[str]:
    """Lists the ends of ``--set Component.parameter=``: components, then their parameters."""
    from dlmrl_kit.report.catalogue_file import catalogue

    name, point, _ = begun.partition(".")
    everything = catalogue().components
    if not point:
        return _beginning(begun, [f"{c.name}." for c in everything])
    return _beginning(begun, [f"{name}.{p.name}=" for c in everything if c.name == name for p in c.parameters])


def _beginning(begun: str, names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(begun))
