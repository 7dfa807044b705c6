"""What ``dlmrl list``, ``show`` and ``check`` print: components, recipes and the dataflow of a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.registry import KINDS, Component, components, find, nearest
from dlmrl_kit.recipe import plugins
from dlmrl_kit.recipe.load import recipe_names, recipes_dir
from dlmrl_kit.recipe.plugins import Plugin

RECIPES = "recipes"


def table_of_components(kind: str | None = None) -> RenderableType:
    """Registered components, of one kind or of all, and where they come from; then the plugins, if there are any.

    Args:
        kind: a kind, or the name of its folder (``selectors``). Of the plugins, then only those that were skipped.

    Raises:
        RegistryError: no such kind.
    """
    folders = {k.folder: k.name for k in KINDS.values()}
    table = _table("kind", "name", "summary", "from")
    for component in components(kind if kind in KINDS else folders.get(kind or "", kind)):
        name, summary = Text(component.name, style="bold"), Text(component.summary)
        table.add_row(component.kind, name, summary, Text(plugins.origin(component)))
    if plugins.disabled():
        return Group(table, Text(f"Plugins are turned off: {plugins.OFF_SWITCH} is set."))
    found = [plugin for plugin in plugins.load() if plugin.problem or kind is None]
    return Group(table, table_of_plugins(found)) if found else table


def table_of_plugins(found: Iterable[Plugin]) -> Table:
    """Plugins: what each registered, or why it was skipped."""
    table = _table("plugin", "distribution", "module", "components")
    for plugin in found:
        names = ", ".join(name.rsplit(".", 1)[1] for name in plugin.components)
        state = Text(f"skipped: {plugin.problem}", style="red") if plugin.problem else Text(names)
        table.add_row(Text(plugin.name, style="bold"), Text(plugin.origin), Text(plugin.module), state)
    return table


def table_of_recipes() -> Table:
    """The kit's recipes with their headlines."""
    table = _table("recipe", "summary")
    for name, summary in recipe_names().items():
        table.add_row(Text(name, style="bold"), Text(summary))
    return table


def recipe_source(name: str) -> str | None:
    """The file of one of the kit's recipes as it was written, comments included; None if ``name`` is none."""
    return (recipes_dir() / f"{name}.gin").read_text(encoding="utf-8") if name in recipe_names() else None


def component_page(name: str) -> RenderableType:
    """All that is known of a component.

    Raises:
        UserError: no component or recipe of that name, or several.
    """
    names = {c.name for c in components()}
    if "." not in name and name not in names:
        raise UserError(f"no component or recipe named {name!r}; {nearest(name, names | set(recipe_names()))}")
    component = find(name)
    title = Text.assemble((component.name, "bold"), f"  {component.kind}, package {plugins.origin(component)}")
    parts: list[RenderableType] = [title, Text()]
    for text in _documentation(component.cls):
        parts += [Text(text), Text()]
    parts += [Text(f"{label:<8} {value}") for label, value in _facts(component)]
    if component.parameters:
        parts.append(_parameters(component))
    keys = component.keys()
    if keys is not None:
        parts.append(_keys_table({"reads": keys.reads, "writes": keys.writes, "on demand": keys.on_demand}))
    return Group(*parts)


def stages(algorithm: Any) -> list[dict[str, Any]]:
    """The components of a built algorithm in the order they run: ``slot``, ``component``, ``reads``, ``writes``."""
    slots = {id(getattr(algorithm, slot)): slot for slot in ("sampler", "selector", "advantage")}
    slots |= {id(part): "filter" for part in algorithm.filters}
    rows = [(slots.get(id(part), "reward"), part, part.written_keys()) for part in algorithm.plan.rollout]
    rows.append(("likelihood", algorithm.likelihood, algorithm.likelihood.written_keys()))
    rows += [("value", part, part.written_keys()) for part in algorithm.values]
    rows.append(("loss", algorithm.loss, ()))
    rows += [("regulariser", term, ()) for term in algorithm.regularisers]
    return [
        {
            "slot": slot,
            "component": type(part).__name__,
            "reads": [key_text(key) for key in part.in_keys],
            "writes": [key_text(key) for key in written],
        }
        for slot, part, written in rows
    ]


def dataflow_page(algorithm: Any) -> RenderableType:
    """The components of a built algorithm in the order they run, what each reads and writes, and what comes between."""
    table = _table("slot", "component", "reads", "writes")
    for stage in stages(algorithm):
        component = Text(stage["component"], style="bold")
        table.add_row(stage["slot"], component, "\n".join(stage["reads"]), "\n".join(stage["writes"]), end_section=True)
    plan = algorithm.plan
    lines = [f"{key_text(key)}: {_origin(source)}" for key, source in plan.old.items()]
    lines += [f"{key_text(key)} of the reference policy: once per rollout" for key in plan.reference]
    lines += [f"{key_text(key)} of the reference policy: in every micro-batch" for key in plan.live_reference]
    return Group(table, *(Text(line) for line in lines))


def _origin(source: Any) -> str:
    if source is None:
        return "from the likelihood, once per rollout before its first update"
    return f"the sampler's {key_text(source)}"


def key_text(key: Any) -> str:
    """A trajectory key on one line: ``("step", "log_prob")`` is ``step.log_prob``."""
    return key if isinstance(key, str) else ".".join(key)


def _documentation(cls: type) -> list[str]:
    """The docstring of a class, and those of its base classes that it refers to (``Arguments as ``Sampler````)."""
    text = inspect.getdoc(cls) or "(no documentation)"
    bases = [base for base in cls.__mro__[1:] if f"``{base.__name__}``" in text]
    return [text, *(f"{base.__name__}: {inspect.getdoc(base)}" for base in bases)]


def _facts(component: Component) -> list[tuple[str, str]]:
    facts = [("paper", component.paper)] if component.paper else []
    claims = component.claims
    if claims.unbiased is not None:
        under = f", under: {claims.under}" if claims.under else ""
        scale = f"; scale {claims.scale}" if claims.unbiased else ""
        facts.append(("gradient", f"{'unbiased' if claims.unbiased else 'biased'}{scale}{under}"))
    facts += [
        ("source", _source_file(component)),
        ("use", f"--use {component.kind}={component.name}, or in a recipe: @{component.gin_name}()"),
    ]
    return facts


def _source_file(component: Component) -> str:
    try:
        return str(Path(inspect.getfile(component.cls)))
    except (OSError, TypeError):
        return component.cls.__module__


def _parameters(component: Component) -> Table:
    table = _table("parameter", "type", "default")
    for parameter in component.parameters:
        default = "required" if parameter.required else repr(parameter.default)
        annotation = "" if parameter.annotation == "inspect._empty" else parameter.annotation
        table.add_row(Text(parameter.name, style="bold"), Text(annotation), Text(default))
    return table


def _keys_table(keys: dict[str, Iterable[Any]]) -> Table:
    from dlmrl_kit.core.keys import KEYS

    table = _table("", "key", "type", "meaning")
    for heading, entries in keys.items():
        for key in entries:
            spec = KEYS.get(key)
            kind, meaning = (f"{spec.dtype} {spec.shape}", spec.meaning) if spec else ("", "")
            table.add_row(heading, key_text(key), Text(kind), Text(meaning))
            heading = ""
    return table


def _table(*headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(
            heading, overflow="fold", no_wrap=heading in ("kind", "name", "recipe", "slot", "parameter", "plugin")
        )
    return table
