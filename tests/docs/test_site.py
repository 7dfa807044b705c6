"""The documentation site: it builds without a warning, lacks no public name, and needs no network."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from filelock import FileLock
from selenium.webdriver.support.wait import WebDriverWait
from support.browsers import browser as browser
from support.paths import ROOT

import dlmrl_kit as dk
from dlmrl_kit.core.registry import KINDS, Kind
from dlmrl_kit.recipe.catalogue import components

PAGES = [
    "index.html",
    "algorithms.html",
    "glossary.html",
    "mathematics.html",
    "notebooks/quickstart.html",
    "reference/python.html",
    "reference/selectors/EntropyTopK.html",
    "files/dlmrl_kit/selectors/top_k.py.html",
]
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("video", "src")}
"""Elements and attributes by which a page loads something when it is shown."""
TEXT = "return document.body.innerText"

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once, also where several processes run the tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    with FileLock(f"{folder}.lock"):
        if not (folder / "index.html").exists():
            command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "docs", str(folder)]
            built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert built.returncode == 0, built.stdout + built.stderr
    return folder


class Page(HTMLParser):
    """What a page links to, what it loads, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name"):
                self.anchors.add(value or "")
            elif (tag, name) in LOADED:
                self.loads.append(value or "")
            elif (tag, name) == ("a", "href"):
                self.links.append(value or "")


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def kit_kinds() -> list[Kind]:
    return [kind for kind in KINDS.values() if kind.package == "dlmrl_kit"]


def public_names() -> Iterator[str]:
    yield from (f"dlmrl_kit.{name}" for name in dk.__all__ if not name.startswith("_"))
    for kind in kit_kinds():
        module = importlib.import_module(f"dlmrl_kit.{kind.folder}")
        yield from (f"{module.__name__}.{name}" for name in module.__all__)


def test_every_public_name_is_described(pages: dict[Path, Page]) -> None:
    described = set().union(*(page.anchors for page in pages.values()))
    kinds = {f"module-dlmrl_kit.{kind.folder}" for kind in kit_kinds()}
    assert kinds <= described
    missing = set(public_names()) - described - {name.removeprefix("module-") for name in kinds}
    assert not missing


def test_every_component_has_a_page_with_its_facts(site: Path) -> None:
    for entry in components():
        if entry.package == "dlmrl_kit":
            page = site / "reference" / KINDS[entry.kind].folder / f"{entry.name}.html"
            text = re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))
            assert f"--use {entry.kind}={entry.name}" in text
            for parameter in entry.parameters:
                assert parameter.name in text, f"{entry.name}.{parameter.name}"
            keys = entry.keys()
            for key in () if keys is None else (*keys.reads, *keys.writes):
                assert (key if isinstance(key, str) else ".".join(key)) in text


def test_a_name_without_a_page_or_a_docstring_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    coverage = importlib.import_module("building.coverage")
    names = list(coverage.public_names())
    assert set(public_names()) <= set(names)
    assert coverage.undocumented(names, names) == []
    assert coverage.undocumented(names, set(names) - {"dlmrl_kit.train"}) == ["dlmrl_kit.train"]
    monkeypatch.setattr(dk.train, "__doc__", None)
    assert coverage.undocumented(names, names) == ["dlmrl_kit.train"]


@pytest.mark.parametrize(
    "text",
    ["|o_b| is a length", "x_ and y__", "a *b, c* d and *args", "`z`", r"\boxed{a} \frac", "G. and G: G.", "<b>[1]_"],
)
def test_docstrings_are_shown_as_they_are_written(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    docstrings = importlib.import_module("building.docstrings")
    document = publish_doctree(docstrings.escaped(f"Before.\n\n{text}"), settings_overrides={"report_level": 5})
    shown = [paragraph.astext() for paragraph in document.findall(nodes.paragraph)]
    assert shown == ["Before.", text.replace("*b, c*", "b, c")]
    assert not list(document.findall(nodes.system_message))


def test_no_page_loads_anything_from_a_network(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert not [
            load for load in page.loads if urlsplit(load).scheme not in ("", "data") or load.startswith("//")
        ], path
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"url\(\s*['\"]?(?:https?:)?//|@import\s+['\"](?:https?:)?//", text), path


def test_links_lead_somewhere(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            if not target.exists() or (place and target in pages and place not in pages[target].anchors):
                broken.append((path.name, link))
    assert not broken


def test_formulas_are_mathml(site: Path) -> None:
    page = (site / "mathematics.html").read_text(encoding="utf-8")
    formulas = re.findall(r"^\$\$", (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert page.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == len(formulas) > 0


def test_it_is_read_without_a_network_and_on_a_phone(site: Path, browser: Any) -> None:
    browser.get_log("performance")
    for width in (1280, 390):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False},
        )
        for page in PAGES:
            browser.get((site / page).as_uri())
            WebDriverWait(browser, 20).until(lambda shown: len(shown.execute_script(TEXT)) > 300)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, page
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    messages = [entry["message"] for entry in browser.get_log("performance")]
    asked = [url for message in messages for url in re.findall(r'"url":"(\w+):', message) if "requestWill" in message]
    assert asked
    assert set(asked) <= {"file", "data"}
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_search_finds_a_component(site: Path, browser: Any) -> None:
    browser.get((site / "search.html").as_uri() + "?q=EntropyTopK")
    finds = "return document.querySelector('#search-results')?.innerText ?? ''"
    wanted = "dlmrl_kit.selectors.EntropyTopK"
    WebDriverWait(browser, 20).until(lambda shown: wanted in shown.execute_script(finds))
