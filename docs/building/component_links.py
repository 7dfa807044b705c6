"""Names of components and interfaces in code, ``EntropyTopK``, become links to where they are described."""

from __future__ import annotations

import functools
import importlib
from pathlib import PurePosixPath
from posixpath import relpath

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.typing import ExtensionMetadata

from building.component_pages import page_of
from building.kit import kit_components, kit_kinds


class ComponentLinks(SphinxTransform):
    """Links names in code."""

    default_priority = 500

    def apply(self) -> None:
        """Links those of a page, but for its own and for what is a link already."""
        here = PurePosixPath(self.env.docname)
        for code in list(self.document.findall(nodes.literal)):
            page, place = _places().get(code.astext().removeprefix("@").removesuffix("()"), ("", ""))
            if page not in ("", self.env.docname) and not _in_link(code):
                uri = relpath(f"{page}.html", str(here.parent)) + place
                link = nodes.reference("", "", refuri=uri, internal=True)
                code.replace_self(link)
                link += code


@functools.cache
def _places() -> dict[str, tuple[str, str]]:
    """Returns page and anchor of each name."""
    modules = [f"dlmrl_kit.{kind.folder}" for kind in kit_kinds()]
    interfaces = {
        name: (f"reference/{module.rpartition('.')[2]}", f"#{module}.{name}")
        for module in modules
        for name in importlib.import_module(module).__all__
    }
    return interfaces | {entry.name: (page_of(entry), "") for entry in kit_components()}


def _in_link(node: nodes.Node) -> bool:
    return node.parent is not None and (
        isinstance(node.parent, (nodes.reference, nodes.title)) or _in_link(node.parent)
    )


def setup(app: Sphinx) -> ExtensionMetadata:
    """Adds the transform."""
    app.add_transform(ComponentLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
