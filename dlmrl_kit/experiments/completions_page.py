"""The page on which completions are read: one HTML file with everything in it, which needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlmrl_kit.core.html_page import filled_page
from dlmrl_kit.tasks.base import prompt_text


def page(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the text of the page.

    Args:
        title: of the page.
        rows: an example each, with ``index``, ``prompt``, ``prefix``, ``answer`` and ``completions``, which have
            ``text`` and ``scores``. Texts are shown as they are: nothing in them is taken for HTML.
    """
    examples = [{**row, "prompt": prompt_text(row["prompt"])} for row in rows]
    return filled_page("dlmrl_kit.experiments", "completions_page.html", {"title": title, "examples": examples})
