"""Pages of one HTML file with everything in it, which need no network."""

from __future__ import annotations

import json
from importlib.resources import files


def filled_page(package: str, name: str, data: object) -> str:
    """Returns a page with its data.

    Args:
        package: that holds the template.
        name: of the template, which has ``__DATA__`` for the text of the data, in a block of JSON, and ``__HELPERS__``
            at the beginning of its script (``page_helpers.js``: ``data``, ``byId``, ``make``).
        data: what JSON can hold. Texts are shown as they are: nothing in them is taken for HTML.
    """
    # "</script>" in a text would end the block of data, and "<!--" begin a comment in it.
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    template = files(package).joinpath(name).read_text(encoding="utf-8")
    helpers = files("dlmrl_kit.core").joinpath("page_helpers.js").read_text(encoding="utf-8")
    return template.replace("__HELPERS__\n", helpers).replace("__DATA__", text)  # the data last: they may say anything
