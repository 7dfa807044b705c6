"""New plugins pass their own tests as they are, whatever kinds they have; the report card finds planted faults."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import dlmrl
from support.paths import ROOT

from dlmrl_kit.algorithm.bases import BASE_CLASSES
from dlmrl_kit.core import registry
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.recipe import plugins
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.recipe.plugins import Plugin
from dlmrl_kit.scaffold.package import class_name, kinds, write_package
from dlmrl_kit.scaffold.report_card import report_card
from dlmrl_kit.testing import checks_for
from dlmrl_kit.testing.subject import build

SLOW = {"check_claim"}
"""Checks that take seconds each: the thorough run has them, in a package of its own."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A package with a component of every kind, imported as an installed one is; what it registers ends with it."""
    folder = tmp_path_factory.mktemp("new") / "every"
    write_package("acme_every", kinds(), folder)
    components()
    before = set(registry.registered())
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(folder / "src"))
        importlib.import_module("acme_every.components")
        yield folder
    for entry in set(registry.registered()) - before:
        registry.unregister(entry)
    for name in [name for name in sys.modules if name.split(".")[0] == "acme_every"]:
        del sys.modules[name]


def test_there_is_a_template_for_every_kind_that_is_no_loop() -> None:
    assert set(kinds()) == set(BASE_CLASSES) - {"trainer", "pretrainer"}


@pytest.mark.thorough
@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("kind", kinds())
def test_the_component_conforms(kind: str) -> None:
    entry = next(e for e in registry.registered(kind) if e.name == class_name("acme_every", kind))
    subject = build(entry.cls)
    for check in checks_for(subject):
        if check.name not in SLOW:
            check(subject)


@pytest.mark.parametrize("kind", kinds())
def test_its_recipe_builds(package: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = package / "src" / "acme_every" / "recipes"
    monkeypatch.chdir(recipes)
    recipe = load_recipe(recipes / f"acme_every_{kind}.gin")
    assert class_name("acme_every", kind) in recipe.text()
    recipe.build()


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options",
    [
        ("--kind", "selector,reward"),
        ("--kind", "regulariser,step_schedule,task"),
        ("--new-kind", "reward_bonus", "--kind", "filter"),
    ],
)
def test_a_new_package_passes_its_own_tests(tmp_path: Path, options: tuple[str, ...]) -> None:
    made = dlmrl("plugin", "new", "acme_steps", *options, "--out", str(tmp_path / "acme"))
    assert made.exit_code == 0, made.output
    ran = run("pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path / "acme")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"\d+ passed", ran.stdout)
    strict = [sys.executable, "-m", "ruff", "check", "--isolated", "--config", "line-length = 120", "."]
    assert subprocess.run(strict, cwd=tmp_path / "acme", check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Acme",), "is no name of a package"),
        (("acme-steps",), "is no name of a package"),
        (("../acme",), "is no name of a package"),
        (("class",), "is no name of a package"),
        (("dlmrl_kit",), "cannot be called"),
        (("a" * 41,), "at most 40 characters"),
        (("acme", "--kind", "selecter"), "did you mean 'selector'"),
        (("acme", "--kind", "trainer"), "no template for the kind 'trainer'"),
        (("acme", "--kind", "loss,loss"), "name each kind once: --kind loss"),
        (("acme", "--kind", ""), "no template for the kind ''"),
        (("acme", "--new-kind", "selector"), "no plugin can declare the kind 'selector'"),
        (("acme", "--new-kind", "Reward Bonus"), "should be a word in small letters"),
        (("acme", "--new-kind", "../bonus"), "should be a word in small letters"),
        (("acme", "--out", "/proc/acme"), "cannot write /proc/acme"),
    ],
)
def test_what_cannot_be_written_is_refused(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = dlmrl("plugin", "new", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    with pytest.raises(UserError, match="exists already; choose another --out"):
        write_package("acme", ["selector"], tmp_path / "acme")


@pytest.mark.thorough
def test_the_report_card_of_the_example_plugin_and_of_a_broken_one(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    subprocess.run([*install, str(ROOT / "plugins" / "dlmrl-example")], check=True, timeout=200)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from dlmrl_kit.cli.app import app; app(['plugin', 'check', 'example'])"
    )
    good = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert good.returncode == 0, good.stdout + good.stderr
    assert re.search(r"^ok     StratifiedEntropy: check_claim$", good.stdout, re.M)
    assert re.search(r"^all \d+ passed$", good.stdout, re.M)
    source = site / "dlmrl_example" / "shrunk_leave_one_out.py"
    text = source.read_text()
    source.write_text(text + "\n\nShrunkLeaveOneOut.estimate = lambda self, returns, group: returns.float()\n")
    recipe = site / "dlmrl_example" / "recipes" / "example.gin"
    recipe.write_text(recipe.read_text() + "\nEntropyTopK.kk = 3\n")
    bad = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert re.search(r"^FAILED ShrunkLeaveOneOut: check_", bad.stdout, re.M)
    assert re.search(r"^FAILED example.gin: is a recipe", bad.stdout, re.M)
    assert not re.search(r"^FAILED StratifiedEntropy", bad.stdout, re.M)


@pytest.mark.parametrize(
    ("requires", "fault"),
    [
        (None, "leave out dlmrl-kit"),
        (["torch"], "leave out dlmrl-kit"),
        (["dlmrl-kit>=99"], "it is for dlmrl-kit>=99"),
        (["dlmrl_kit>=0.1,<1"], ""),
    ],
)
def test_versions_are_checked(
    requires: list[str] | None, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if requires is not None:
        about = tmp_path / "acme_none-1.dist-info"
        about.mkdir()
        lines = ["Metadata-Version: 2.1", "Name: acme-none", "Version: 1", *(f"Requires-Dist: {r}" for r in requires)]
        (about / "METADATA").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))
    plugin = Plugin("acme", "acme_none", "acme-none", "1", problem="it is not there")
    monkeypatch.setattr("dlmrl_kit.scaffold.report_card.load_plugins", lambda: (plugin,))
    imported, versions = list(report_card("acme-none"))
    assert imported.fault == "it is not there"
    assert fault in versions.fault
    assert bool(versions.fault) == bool(fault)


def test_an_unknown_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.OFF_SWITCH, "1")
    result = dlmrl("plugin", "check", "acme")
    assert result.exit_code == 2
    assert "no plugin named 'acme'; no plugin is installed" in result.stderr
