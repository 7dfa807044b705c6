"""What ``dlmrl show`` prints: all that is known of a component, or the text of a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.keys import KEYS, Key
from dlmrl_kit.core.registry import Entry, nearest
from dlmrl_kit.recipe.catalogue import components, find
from dlmrl_kit.recipe.load import recipe_names, recipes_dir
from dlmrl_kit.recipe.plugins import origin
from dlmrl_kit.report.tables import plain_table, words


def recipe_source(name: str) -> str | None:
    """Returns the file of one of the kit's recipes as it was written, comments included; None for any other name."""
    return (recipes_dir() / f"{name}.gin").read_text(encoding="utf-8") if name in recipe_names() else None


def component_page(name: str) -> RenderableType:
    """Returns all that is known of a component: documentation, paper, claims, parameters and keys.

    Raises:
        UserError: there is no component or recipe of that name, or there are several components.
    """
    names = {entry.name for entry in components()}
    if "." not in name and name not in names:
        raise UserError(f"no component or recipe named {name!r}; {nearest(name, names | set(recipe_names()))}")
    entry = find(name)
    parts: list[RenderableType] = [Text.assemble((entry.name, "bold"), f"  {entry.kind}, package {origin(entry)}"), ""]
    for text in _documentation(entry.cls):
        parts += [Text(text), ""]
    parts += [Text(f"{label:<8} {value}") for label, value in _facts(entry)]
    if entry.parameters:
        parts.append(_parameters(entry))
    keys = entry.keys()
    if keys is not None:
        parts.append(_keys({"reads": keys.reads, "writes": keys.writes, "on demand": keys.on_demand}))
    return Group(*parts)


def key_text(key: Key) -> str:
    """Returns a trajectory key on one line: ``("step", "log_prob")`` is ``step.log_prob``."""
    return key if isinstance(key, str) else ".".join(key)


def _documentation(cls: type) -> list[str]:
    """Returns the docstring of a class, and those of the base classes that it or one of these refers to.

    A docstring refers to a base class by its name in code: "Arguments as ``Sampler``".
    """
    texts = [inspect.getdoc(cls) or "(no documentation)"]
    for base in inspect.getmro(cls)[1:]:
        if any(f"``{base.__name__}``" in text for text in texts):
            texts.append(f"{base.__name__}: {inspect.getdoc(base)}")
    return texts


def _facts(entry: Entry) -> list[tuple[str, str]]:
    facts = [("paper", entry.paper)] if entry.paper else []
    claims = entry.claims
    if claims.unbiased is not None:
        under = f", under: {claims.under}" if claims.under else ""
        scale = f"; scale {claims.scale}" if claims.unbiased else ""
        facts.append(("claims", f"gradient {'unbiased' if claims.unbiased else 'biased'}{scale}{under}"))
    use = f"--use {entry.kind}={entry.name}, or in a recipe: @{entry.gin_name}()"
    return [*facts, ("source", _source(entry.cls)), ("use", use)]


def _source(cls: type) -> str:
    """Returns the file of a class; its module where it has no file (a class made in an interpreter)."""
    try:
        return str(Path(inspect.getfile(cls)))
    except (OSError, TypeError):
        return cls.__module__


def _parameters(entry: Entry) -> Table:
    table = plain_table(words("parameter", whole=True), words("type"), words("default"))
    for parameter in entry.parameters:
        default = "required" if parameter.required else repr(parameter.default)
        table.add_row(Text(parameter.name, style="bold"), Text(parameter.annotation), Text(default))
    return table


def _keys(groups: dict[str, Iterable[Key]]) -> Table:
    """Returns keys under the headings of their groups, with type and meaning where the kit knows them."""
    table = plain_table(words(""), words("key"), words("type"), words("meaning"))
    for heading, keys in groups.items():
        for position, key in enumerate(keys):
            spec = KEYS.get(key)
            kind, meaning = (f"{spec.dtype} {spec.shape}", spec.meaning) if spec else ("", "")
            table.add_row(heading if position == 0 else "", key_text(key), Text(kind), Text(meaning))
    return table
