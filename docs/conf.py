"""Settings of the documentation site: ``python -m sphinx docs build/site``.

The pages are the Markdown files of this folder, as they read on GitHub. What they lack there is added by ``building``:
the order of the sidebar, pages for components and for the Python API, and pages for files that lie outside this folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]
os.environ["DLMRL_KIT_NO_PLUGINS"] = "1"  # the pages are about the kit's own components

from pygments.lexers import PythonLexer  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

from dlmrl_kit.core.version import VERSION  # noqa: E402

project = "dlmrl_kit"
author = "The dlmrl_kit developers"
project_copyright = author
version = release = VERSION

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "building.contents",
    "building.reference",
    "building.repository",
    "building.component_links",
    "building.mathml",
]
exclude_patterns = ["building"]
smartquotes_action = "D"  # dashes alone: quotes stay as they are written

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_url_schemes = ["http", "https", "mailto", "repository"]  # the last is of building.repository
nb_execution_mode = "off"  # notebooks are kept with their outputs, and executed by tests/docs/test_python.py
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # they have no widgets, and nothing is loaded from a network

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
maximum_signature_line_length = 90
# Types in signatures are named as in the code, and most of them belong to torch and tensordict: no page here.
nitpick_ignore_regex = [("py:.*", ".*")]

html_theme = "furo"
html_title = f"dlmrl_kit {VERSION}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "tango"
pygments_dark_style = "monokai"


def setup(app: Sphinx) -> None:
    """Highlights recipes as Python, which gin's syntax is a part of."""
    app.add_lexer("gin", PythonLexer)
