"""Finds the program in what a model wrote: between answer tags, in a fenced block, or all of it. Linear in length."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

_DEFINED = re.compile(r"^(?:async[ \t]+def|def|class)[ \t]+(\w+)|^(\w+)[ \t]*=(?!=)", re.MULTILINE)


def answer_text(text: str) -> str | None:
    """Returns what stands behind the last ``<answer>``, up to ``</answer>``, white space included; None without."""
    _, tag, rest = text.rpartition("<answer>")
    return rest.partition("</answer>")[0] if tag else None


def code_in(text: str, names: Iterable[str]) -> str:
    """Returns the program in a text.

    It is in ``<answer>`` if there is one. Of several fenced blocks it is the last that defines one of the names, else
    the last; a block that is not closed goes to the end. Without a block it is the whole text.

    Args:
        text: what a model wrote.
        names: what the program is to define.
    """
    inside = answer_text(text)
    part = text if inside is None else inside
    blocks = _blocks(part)
    wanted = set(names)
    return next((block for block in reversed(blocks) if wanted & defined(block)), blocks[-1] if blocks else part)


def program_in(text: str, meta: Mapping[str, Any]) -> str:
    """Returns the program in a text, ready to be run.

    Args:
        text: what a model wrote.
        meta: of the example: ``names`` that the program is to define and, where the model was given the head of a
            function, ``head``. A program that does not define the names itself goes on behind it.
    """
    code, head = code_in(text, meta["names"]), meta.get("head", "")
    if not head:
        return code
    if set(meta["names"]) & defined(code):
        return f"{head}\n{code}"  # the head has imports and other functions
    first = next((line for line in code.splitlines() if line.strip()), "")
    return head + (code if first[:1].isspace() else textwrap.indent(code, "    "))


def defined(code: str) -> set[str]:
    """Returns the names of functions, classes and variables that a program defines at its top level, by their look."""
    return {function or variable for function, variable in _DEFINED.findall(code)}


def _blocks(text: str) -> list[str]:
    """Returns the contents of fenced blocks."""
    blocks: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
            if inside:
                blocks.append([])
        elif inside:
            blocks[-1].append(line)
    return ["\n".join(lines) + "\n" for lines in blocks]
