"""The code that a run depends on: what a module imports from beside it, packages whole, nothing that is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlmrl_kit.core.dependencies import code_of
from dlmrl_kit.tasks.reward_files import source_files

FILES = {
    "one.py": "import beside\nfrom package.inner import x\ndef score(c, e):\n    import lazy\n",
    "package/__init__.py": "from shared import y\n",
    "package/inner.py": "import beside\nfrom . import more\n",
    "package/more.py": "import again\n",
    "spaces/inner/module.py": "import far\n",
    "beside.py": "import one\n",
    "lazy.py": "import json, numpy, not_there\n",
    "shared.py": "",
    "again.py": "no Python (",
    "far.py": "",
    "apart.py": "",
}
PACKAGE = {"package/__init__.py", "package/inner.py", "package/more.py", "shared.py", "again.py"}
ALL = PACKAGE | {"one.py", "beside.py", "lazy.py"}
CODE = {
    "one": ("one.py", ALL),
    "beside": ("beside.py", ALL),
    "package": ("package/__init__.py", ALL),
    "package.more": ("package/more.py", ALL),
    "spaces.inner.module": ("spaces/inner/module.py", {"spaces/inner/module.py", "far.py"}),
    "apart": ("apart.py", {"apart.py"}),
}
"""By module: its file, and all that it depends on. The package imports what imports ``one``."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize("module", CODE)
def test_what_a_module_imports_from_beside_it_counts(module: str, folder: Path) -> None:
    file, expected = CODE[module]
    wanted = {folder / name for name in expected}
    assert code_of(module, folder / file) == wanted
    assert set(source_files(f"{module}:score", str(folder))) == wanted


def test_an_import_that_is_added_or_removed_counts_at_once(folder: Path) -> None:
    apart = folder / "apart.py"
    for text, wanted in (
        ("import far\n", {"apart.py", "far.py"}),
        ("import one\n", ALL | {"apart.py"}),
        ("", {"apart.py"}),
    ):
        apart.write_text(text)
        assert code_of("apart", apart) == {folder / name for name in wanted}


def test_of_what_is_installed_the_imports_do_not_count(folder: Path) -> None:
    installed = folder / "lib" / "site-packages"
    installed.mkdir(parents=True)
    for name in ("one.py", "beside.py"):
        (folder / name).rename(installed / name)
    assert code_of("one", installed / "one.py") == {installed / "one.py"}
    assert source_files("one:score", str(installed)) == (installed / "one.py",)
    assert len(source_files("random:choice", None)) == 1
