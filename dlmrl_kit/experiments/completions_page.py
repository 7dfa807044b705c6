"""The page on which completions are read: one HTML file with everything in it, which needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from dlmrl_kit.tasks.base import prompt_text


def page(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the text of the page.

    Args:
        title: of the page.
        rows: an example each, with ``index``, ``prompt``, ``prefix``, ``answer`` and ``completions``, which have
            ``text`` and ``scores``. Texts are shown as they are: nothing in them is taken for HTML.
    """
    examples = [{**row, "prompt": prompt_text(row["prompt"])} for row in rows]
    # "</script>" in a text would end the block of data, and "<!--" begin a comment in it.
    data = json.dumps({"title": title, "examples": examples}, ensure_ascii=True, separators=(",", ":"))
    template = files("dlmrl_kit.experiments").joinpath("completions_page.html").read_text(encoding="utf-8")
    return template.replace("__DATA__", data.replace("<", "\\u003c"))
