"""The generated pages: components by kind, the Python API, the commands, and what lies outside the folder.

They are written into ``docs/reference``, which git ignores, before Sphinx looks for pages.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata
from typer.core import TyperGroup

import dlmrl_kit
from building.component_pages import component_page, page_of
from building.contents import ELSEWHERE
from building.coverage import check_coverage
from building.docstrings import cell, escaped, prose
from building.kit import kit_components, kit_kinds
from building.markup import ROOT, directive, table
from dlmrl_kit.cli.app import app as commands
from dlmrl_kit.core.registry import KINDS, Entry, Kind

_OPTION = re.compile(r"--[a-z][a-z-]*")


def pages() -> Iterator[tuple[str, str]]:
    """Yields the name and the text of every generated page."""
    entries = kit_components()
    by_kind = {kind.name: [entry for entry in entries if entry.kind == kind.name] for kind in kit_kinds()}
    yield "reference/components", _components_page(by_kind)
    yield "reference/python", _python_page()
    yield "reference/commands", _commands_page()
    for name, found in by_kind.items():
        yield f"reference/{KINDS[name].folder}", _kind_page(KINDS[name], found)
    for entry in entries:
        yield page_of(entry), component_page(entry)
    for file, page in ELSEWHERE.items():
        if page.startswith("reference/"):
            text = (ROOT / file).read_text(encoding="utf-8")
            yield page, re.sub(r"\]\((?!https?:|#)(docs/)?", lambda link: "](../" if link[1] else "](../../", text)


def _components_page(by_kind: dict[str, list[Entry]]) -> str:
    rows = [
        [f"[{name}]({KINDS[name].folder}.md)", KINDS[name].summary, ", ".join(f"`{entry.name}`" for entry in entries)]
        for name, entries in by_kind.items()
    ]
    return "\n\n".join(
        [
            "# Components",
            "A component fills a slot of an algorithm, or a place in another component. Every kind has an interface, "
            "and a page for each of its components. [Compose an algorithm](../compose-an-algorithm.md) says how they "
            "are put together, [write a plugin](../write-a-plugin.md) how to add one.",
            table(["kind", "what it is for", "components"], rows),
            _toctree([KINDS[name].folder for name in by_kind]),
        ]
    )


def _kind_page(kind: Kind, entries: list[Entry]) -> str:
    module = importlib.import_module(f"dlmrl_kit.{kind.folder}")
    rows = [[f"`{e.name}`", cell(e.summary), cell(e.paper)] for e in entries]
    own = {entry.name for entry in entries}
    interfaces = [name for name in module.__all__ if name not in own]
    parts = [
        f"# {kind.folder.replace('_', ' ').capitalize()}",
        directive("py:module", module.__name__, {}),
        prose(module.__doc__ or ""),
        table(["component", "what it does", "source"], rows),
        "## Interfaces",
        "What components of the kind inherit from, for your own ones.",
        *(_documented(f"{module.__name__}.{name}") for name in interfaces),
    ]
    return "\n\n".join(parts)


def _python_page() -> str:
    names = [name for name in dlmrl_kit.__all__ if not name.startswith("_")]
    found = {name: getattr(dlmrl_kit, name) for name in names}
    functions = [name for name, thing in found.items() if inspect.isfunction(thing)]
    classes = [name for name, thing in found.items() if inspect.isclass(thing)]
    folders = [name for name, thing in found.items() if inspect.ismodule(thing)]
    return "\n\n".join(
        [
            "# Python API",
            "What `import dlmrl_kit as dk` offers. [By hand, in Python](../python.md) shows it at work. Components are "
            f"imported from their kinds: {', '.join(f'[dk.{name}]({name}.md)' for name in folders)}.",
            directive("py:module", "dlmrl_kit", {}),
            "## Functions",
            *(_documented(f"dlmrl_kit.{name}") for name in functions),
            "## Classes",
            *(_documented(f"dlmrl_kit.{name}") for name in classes),
        ]
    )


def _documented(name: str) -> str:
    module, _, last = name.rpartition(".")
    if inspect.isfunction(getattr(importlib.import_module(module), last)):
        return directive("autofunction", name, {})
    return directive("autoclass", name, {"members": "", "show-inheritance": ""})


def _commands_page() -> str:
    parts = ["# Commands", "Every option of every command. [Command line](../command-line.md) says what they are for."]
    for path, command in _leaves("dlmrl", typer.main.get_command(commands)):
        records = [p.get_help_record(command.make_context(path, [], resilient_parsing=True)) for p in command.params]
        rows = [[f"`{name}`", _OPTION.sub(r"`\g<0>`", cell(text))] for name, text in filter(None, records)]
        about, _, example = inspect.cleandoc(command.help or "").partition("Example: ")
        parts += [f"## {path}", _OPTION.sub(r"`\g<0>`", prose(about)), table(["", ""], rows)]
        if example:
            parts.append(f"```console\n$ {example}\n```")
    return "\n\n".join(parts)


def _leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yields the commands that do something, with the words that call them."""
    if isinstance(command, TyperGroup):
        for name, child in command.commands.items():
            yield from _leaves(f"{path} {name}", child)
    else:
        yield path, command


def _toctree(entries: list[str]) -> str:
    return "```{toctree}\n:hidden:\n\n" + "\n".join(entries) + "\n```"


def write_pages(app: Sphinx) -> None:
    """Writes the pages that changed, and takes away those of components that are gone."""
    docs = Path(app.srcdir)
    wanted = {docs / f"{name}.md": text for name, text in pages()}
    for path in set((docs / "reference").rglob("*.md")) - set(wanted):
        path.unlink()
    for path, text in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def escape_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escapes what autodoc found, before its sections are read."""
    lines[:] = escaped("\n".join(lines)).split("\n")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Listens for the start of a build, for docstrings and for the end of reading."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", escape_docstring, priority=100)
    app.connect("env-check-consistency", check_coverage)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
