"""Finds the final answer in what a model wrote: between tags, in a box, behind an equals sign. Linear in its length."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

AnswerIn: TypeAlias = Literal["answer", "boxed", "any", "text"]
ANSWER_IN = ("answer", "boxed", "any", "text")

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s+([^\s{}$\\]+)")


def in_answer(text: str) -> str | None:
    """Returns what stands behind the last ``<answer>``, up to ``</answer>`` if that follows; None without the tag."""
    _, tag, rest = text.rpartition("<answer>")
    return rest.partition("</answer>")[0].strip() if tag else None


def in_box(text: str) -> str | None:
    r"""Returns what stands in the last complete ``\boxed{...}`` (or ``\fbox``), braces inside included; None without.

    ``\boxed 5``, without braces, counts where no box has braces.
    """
    ends = _closing_braces(text)
    for match in reversed(list(_BOX.finditer(text))):
        if (end := ends.get(match.end())) is not None:
            return text[match.end() + 1 : end].strip()
    bare = _BARE_BOX.findall(text)
    return bare[-1] if bare else None


def _closing_braces(text: str) -> dict[int, int]:
    """Returns, for each opening brace that is closed, where; escaped braces count as text."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            ends[opened.pop()] = match.start()
    return ends


def final_answer(text: str, where: AnswerIn = "any") -> str | None:
    r"""Returns the final answer of a text; None where it has none.

    Args:
        text: what a model wrote.
        where: ``answer``: behind the last ``<answer>``. ``boxed``: in the last ``\boxed{}``. ``any``: behind the last
            ``<answer>``, and there in the last box if it has one; without the tag in the last box of the text.
            ``text``: the whole text.
    """
    if where == "text":
        return text.strip()
    block = None if where == "boxed" else in_answer(text)
    if where == "answer":
        return block
    boxed = in_box(text if block is None else block)
    return block if boxed is None else boxed


def before_equals(text: str) -> str:
    """Returns an expression without a value that is stated behind it: ``1+2`` of ``1+2 = 3``."""
    return text.partition("=")[0].strip()


def last_equation(text: str) -> str | None:
    """Returns what stands before the equals sign in the last line that has exactly one; None without such a line."""
    for line in reversed(text.splitlines()):
        if line.count("=") == 1:
            return before_equals(line)
    return None
