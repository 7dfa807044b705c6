"""Docstrings of the kit, which are plain text with sections (``Args:``), as reStructuredText."""

from __future__ import annotations

import re
import textwrap

from sphinx.ext.napoleon import Config, GoogleDocstring

_PIECES = re.compile(r"(``.+?``)", re.DOTALL)
_EMPHASIS = re.compile(r"(?<![\w*])\*(\w[^*\n]*\w|\w)\*(?![\w*])")
_SPECIAL = re.compile(r"[\\|_`]")
_LETTER = re.compile(r"(^\s*|: )([A-Za-z])\.(?=\s|$)", re.MULTILINE)
"""What would begin a list: "group_size: G."."""
_MARKDOWN = re.compile(r"[\\_<>$\[\]]")
_CELL = re.compile(r"[\\_<>$\[\]*`]")
_STAR = re.compile(r"(?<=\S)\*|\*(?=\S)")


def escaped(text: str) -> str:
    """Returns text in which only code, lists and emphasis are markup: ``|o_b|`` and ``x_`` stay as they are written."""
    pieces = _PIECES.split(text)
    return "".join(piece if number % 2 else _plain(piece) for number, piece in enumerate(pieces))


def _plain(text: str) -> str:
    parts = _EMPHASIS.split(_SPECIAL.sub(lambda found: f"\\{found.group()}", text))
    plain = "".join(f"*{part}*" if number % 2 else _STAR.sub(r"\\*", part) for number, part in enumerate(parts))
    return _LETTER.sub(r"\1\\\2.", plain)


def sections(text: str) -> str:
    """Returns the docstring of a class or function as reStructuredText, its sections as lists of fields."""
    return str(GoogleDocstring(escaped(text), Config(napoleon_use_ivar=True, napoleon_use_param=True)))


def prose(text: str) -> str:
    """Returns the docstring of a module as Markdown; what is indented is shown as it stands: equations and tables."""
    parts = []
    for indented, block in _blocks(textwrap.dedent(text).strip()):
        parts.append(f"```text\n{textwrap.dedent(block)}\n```" if indented else _markdown(block))
    return "\n\n".join(parts)


def _blocks(text: str) -> list[tuple[bool, str]]:
    """Splits text at empty lines; blocks that are indented by four and follow each other stay together."""
    found: list[tuple[bool, str]] = []
    in_list = False
    for block in re.split(r"\n\s*\n", text):
        indented = block.startswith("    ") and not in_list
        in_list = bool(re.match(r"[*-] ", block)) or (in_list and block.startswith("  "))
        if indented and found and found[-1][0]:
            found[-1] = (True, f"{found[-1][1]}\n\n{block}")
        else:
            found.append((indented, block))
    return found


def cell(text: str) -> str:
    """Returns plain text with code in it as the content of a cell of a Markdown table."""
    pieces = _PIECES.split(text)
    shown = (piece if number % 2 else _CELL.sub(r"\\\g<0>", piece) for number, piece in enumerate(pieces))
    return "".join(shown).replace("|", "\\|")


def _markdown(text: str) -> str:
    pieces = _PIECES.split(text)  # code in two backticks is code in Markdown, too
    return "".join(piece if number % 2 else _MARKDOWN.sub(r"\\\g<0>", piece) for number, piece in enumerate(pieces))
