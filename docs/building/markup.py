"""Pieces of Markdown."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; the cells are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def directive(name: str, argument: str, options: Mapping[str, str], content: str = "") -> str:
    """Returns a directive in reStructuredText, wrapped for Markdown."""
    given = "".join(f"   :{option}: {value}".rstrip() + "\n" for option, value in options.items())
    return f"```{{eval-rst}}\n.. {name}:: {argument}\n{given}\n{textwrap.indent(content, '   ')}\n```"


def source_link(thing: type, up: str) -> str:
    """Returns a link to the line that defines a class; ``up`` leads from the page to the root of the repository."""
    name = Path(inspect.getfile(thing)).resolve().relative_to(ROOT).as_posix()
    return f"[{name}]({up}{name}#L{inspect.getsourcelines(thing)[1]})"
