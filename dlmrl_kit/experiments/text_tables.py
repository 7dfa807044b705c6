"""Tables as text for papers and pages: Markdown, and LaTeX for the package ``booktabs``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table as Markdown; the first row has the titles."""
    escaped = [[re.sub(r"([\\|<>*`\[\]])", r"\\\1", " ".join(cell.split())) for cell in row] for row in rows]
    escaped.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def latex_table(rows: Sequence[Sequence[str]], comments: Iterable[str] = ()) -> str:
    """Returns a table for ``booktabs``; the first row has the titles, ``comments`` stand above it."""
    titles, *lines = [" & ".join(map(_latex_text, row)) + r" \\" for row in rows]
    head = [f"% {' '.join(comment.split())}" for comment in comments]
    head += [rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", titles, r"\midrule"]
    return "\n".join([*head, *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
