"""The sidebar: sections of ``index.md`` become its captions, and the pages that they link to its entries.

The words of a link are those of the entry. So the index is a plain list of links on GitHub, and no page is listed
twice. What is generated has no file there to be linked to: it is appended to the last section.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

GENERATED = """
- [Components](reference/components.md): parameters, keys that are read and written, claims, sources
- [Python API](reference/python.md): what `import dlmrl_kit as dk` offers
- [Commands](reference/commands.md): every option of `dlmrl`
"""
"""What is appended to the index: the pages of ``building.reference``."""

ELSEWHERE = {"CONTRIBUTING.md": "reference/contributing", "CHANGELOG.md": "reference/changelog", "README.md": "index"}
"""Pages of the site for Markdown files outside the folder."""

_SECTION = re.compile(r"^## (.+)\n((?:(?!^## ).*\n)*)", re.MULTILINE)
_PAGE = re.compile(r"^- \[([^]]*)\]\((?:\.\./)?([^)#]+)\.(?:md|ipynb)\)", re.MULTILINE)

_SIDEBARS: dict[str, str] = {}
"""Made in this build, by the options of the theme."""


def with_toctrees(index: str) -> str:
    """Returns the index with the generated pages, and a hidden table of contents at the end of each section."""
    return _SECTION.sub(_section, index.rstrip("\n") + GENERATED)


def _section(found: re.Match[str]) -> str:
    caption, text = found.groups()
    entries = [f"{title} <{ELSEWHERE.get(f'{page}.md', page)}>" for title, page in _PAGE.findall(text)]
    if not entries:
        return found.group()
    lines = "\n".join(entries)
    return f"{found.group().rstrip()}\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n\n"


def read_index(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts the tables of contents into the index when it is read."""
    if docname == "index":
        source[0] = with_toctrees(source[0])


def share_sidebar(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Gives all pages of components the sidebar of the first: they are no entries of it, and equally deep."""
    if "orphan" in app.env.metadata.get(pagename, {}):
        make = context["toctree"]

        def toctree(**options: object) -> str:
            key = repr(options)
            if key not in _SIDEBARS:
                _SIDEBARS[key] = make(**options)
            return _SIDEBARS[key]

        context["toctree"] = toctree


def setup(app: Sphinx) -> ExtensionMetadata:
    """Listens for the index, and for pages before the theme makes their sidebar."""
    app.connect("source-read", read_index)
    app.connect("html-page-context", share_sidebar, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
