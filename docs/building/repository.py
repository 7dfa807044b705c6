"""Links to files outside the documentation: to pages with their text, whose lines have the anchors of GitHub."""

from __future__ import annotations

import functools
import html
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from posixpath import relpath

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer, TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.typing import ExtensionMetadata

from building.contents import ELSEWHERE

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FOLDER = "files"
"""Where the pages go, below the site."""
SCHEME = "repository"
"""How a marked link begins."""
PICTURES = (".png", ".svg", ".jpg")

_OUTWARD = re.compile(r"\]\((?P<path>\.\./[^)#\s]*)(?P<place>#[^)\s]*)?\)")

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title><style>
body {{ margin: 0; font: 14px/1.5 monospace; background: #fff; color: #222; }}
header {{ padding: 0.8em 1em; border-bottom: 1px solid #8884; }}
a {{ color: #0a4bff; }}
pre {{ margin: 0; padding: 1em; overflow-x: auto; line-height: 1.5; }}
span:target {{ background: #ffe9a8; }}
{light}
@media (prefers-color-scheme: dark) {{
body {{ background: #131416; color: #ddd; }}
a {{ color: #6a9bff; }}
span:target {{ background: #574a1c; }}
{dark}
}}
</style></head><body><header><a href="{home}">dlmrl_kit</a> / {name}</header>
{text}
</body></html>
"""


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Marks links out of the documentation, so that they keep their lines: ``repository:<path>#L12``."""
    folder = Path(app.env.doc2path(docname)).parent

    def marked(link: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / link["path"]))
        here = path.is_relative_to(DOCS) or path.suffix in PICTURES  # Sphinx finds these by itself
        if here or not path.is_relative_to(ROOT) or not path.exists():
            return link.group()
        name, place = path.relative_to(ROOT).as_posix(), link["place"] or ""
        return f"](/{ELSEWHERE[name]}.md{place})" if name in ELSEWHERE else f"]({SCHEME}:{name}{place})"

    source[0] = _OUTWARD.sub(marked, source[0])


class FileLinks(SphinxTransform):
    """Leads the marked links to pages of the site, and writes these."""

    default_priority = 400

    def apply(self) -> None:
        """Replaces the links of a page; one to a folder stays as its text."""
        for link in list(self.document.findall(nodes.reference)):
            scheme, _, target = link.get("refuri", "").partition(":")
            if scheme == SCHEME:
                name, _, line = target.partition("#")
                if (ROOT / name).is_file():
                    self._lead(link, name, line)
                else:
                    link.replace_self(link.children)

    def _lead(self, link: nodes.reference, name: str, line: str) -> None:
        self.env.note_dependency(ROOT / name)
        page = relpath(write_page(Path(self.app.outdir), name), str(PurePosixPath(self.env.docname).parent))
        link["refuri"] = f"{page}#{line}" if line else page
        link["internal"] = True


@functools.cache
def write_page(site: Path, name: str) -> str:
    """Writes the text of a file as a page of its own, highlighted where its language is known; once in a build.

    Returns:
        Where the page is in the site. A file that is no text is copied, and is where it was copied to.
    """
    path, target = ROOT / name, site / FOLDER / f"{name}.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        shutil.copyfile(path, site / FOLDER / name)
        return f"{FOLDER}/{name}"
    try:
        lexer = PythonLexer() if path.suffix == ".gin" else get_lexer_for_filename(path.name)
    except ClassNotFound:
        lexer = TextLexer()
    light, dark = (HtmlFormatter(style=style, linespans="L") for style in ("tango", "monokai"))
    # Pygments writes L-12; GitHub's anchors, which the pages use, are L12.
    body = highlight(text, lexer, light).replace('<span id="L-', '<span id="L')
    page = _PAGE.format(
        name=html.escape(name),
        home=relpath("index.html", str(PurePosixPath(FOLDER, name).parent)),
        light=light.get_style_defs(),
        dark=dark.get_style_defs(),
        text=body,
    )
    target.write_text(page, encoding="utf-8")
    return f"{FOLDER}/{name}.html"


def setup(app: Sphinx) -> ExtensionMetadata:
    """Listens for pages, and adds the transform."""
    app.connect("source-read", read_page)
    app.add_transform(FileLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
