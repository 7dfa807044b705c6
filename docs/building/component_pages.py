"""Pages of components: signature, documentation, claim, keys, recipes and source, from what the catalogue knows."""

from __future__ import annotations

import functools
import inspect
import re
import sys

from building.docstrings import cell, prose, sections
from building.markup import directive, source_link, table
from dlmrl_kit.core.registry import KINDS, Entry
from dlmrl_kit.recipe.load import load_recipe, recipe_names
from dlmrl_kit.report.descriptions import Description

SHOWN_RECIPES = 8
"""How many recipes a page names; some components are in nearly all."""


def page_of(entry: Entry) -> str:
    """Returns the name of a component's page, ``reference/selectors/EntropyTopK``."""
    return f"reference/{KINDS[entry.kind].folder}/{entry.name}"


def public_name(entry: Entry) -> str:
    """Returns the name from which Python imports a component, ``dlmrl_kit.selectors.EntropyTopK``."""
    return f"dlmrl_kit.{KINDS[entry.kind].folder}.{entry.name}"


def component_page(entry: Entry) -> str:
    """Returns the page of a component in Markdown."""
    about = Description.of(entry)
    parameters = ", ".join(
        f"{p.name}: {p.type or 'object'}" + ("" if p.default is None else f" = {p.default}") for p in about.parameters
    )
    own, *inherited = about.documentation
    options = {"canonical": f"{entry.cls.__module__}.{entry.name}"}
    parts = [
        "---\norphan: true\n---",  # the sidebar has kinds, whose pages list components: with all of them it is slow
        f"# {entry.name}",
        directive("py:class", f"{public_name(entry)}({parameters})", options, sections(own)),
        "## At a glance",
        table(["", ""], _facts(entry, about)),
    ]
    if about.keys:
        rows = [
            [heading, f"`{key.key}`", key.type, key.meaning] for heading, keys in about.keys.items() for key in keys
        ]
        parts += ["## Keys", table(["", "key", "type", "meaning"], _headings_once(rows))]
    for text in inherited:
        name, _, documentation = text.partition(": ")
        parts += [f"## What it shares: {name}", directive("container", "", {}, sections(documentation))]
    module = inspect.getdoc(sys.modules[entry.cls.__module__])
    if module:
        parts += ["## The method", prose(module)]
    return "\n\n".join(parts) + "\n"


def _facts(entry: Entry, about: Description) -> list[list[str]]:
    kind = KINDS[entry.kind]
    recipes = _recipes_with(entry.name)
    links = [f"[{name}](../../../recipes/{name}.gin)" for name in recipes[:SHOWN_RECIPES]]
    if recipes[SHOWN_RECIPES:]:
        links.append(f"and {len(recipes) - SHOWN_RECIPES} more")
    facts = {
        "kind": f"[{entry.kind}](../{kind.folder}.md), {kind.summary}",
        "claim": cell(about.claims),
        "source": cell(about.paper),
        "in Python": f"`from dlmrl_kit.{kind.folder} import {entry.name}`",
        "in a recipe": f"`@{entry.name}()`",
        "on the command line": f"`--use {entry.kind}={entry.name}`",
        "recipes that use it": ", ".join(links),
        "file": source_link(entry.cls, "../../../"),
    }
    return [[label, text] for label, text in facts.items() if text]


def _headings_once(rows: list[list[str]]) -> list[list[str]]:
    before = ["", *(row[0] for row in rows)]
    return [[heading if heading != old else "", *cells] for old, (heading, *cells) in zip(before, rows, strict=False)]


@functools.cache
def _recipes() -> dict[str, str]:
    return {name: load_recipe(name).text(header=False) for name in recipe_names()}


def _recipes_with(component: str) -> list[str]:
    return [name for name, text in _recipes().items() if re.search(rf"@(?:\w+/)?{component}\(", text)]
