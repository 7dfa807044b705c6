"""A run knows which package its components came from, and says so once that is gone or another version."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from support.broken_plugins import selector
from support.command_line import BINDINGS, dlmrl, train
from support.installed_plugins import Install

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.version import VERSION
from dlmrl_kit.recipe import plugins
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.recipe.plugins import PluginWarning
from dlmrl_kit.recipe.provenance import KEY, check, provenance_of

SOURCES = {"__init__.py": selector("Fine")}
FINE = "acme.selector.Fine"
CAME = f"run.json: {FINE} came from acme-dist 1.2, "
GONE = f"{CAME}which is not installed any more: pip install acme-dist==1.2"


def record(folder: Path, version: str = "1.2") -> Path:
    """A file as a run keeps it."""
    path = folder / "run.json"
    path.write_text(json.dumps({KEY: {FINE: {"package": "acme-dist", "version": version}}}))
    return path


@pytest.mark.thorough
def test_a_run_names_the_packages_and_says_that_one_is_gone(install: Install, tmp_path: Path) -> None:
    install("acme", SOURCES)
    run = tmp_path / "run"
    bindings = [binding for binding in BINDINGS if "Selector" not in binding]
    train(run, "egspo", *bindings, uses=("selector=Fine",))
    found = json.loads((run / "run.json").read_text())[KEY]
    assert found[FINE] == {"package": "acme-dist", "version": "1.2"}
    assert found["dlmrl_kit.task.Sudoku4x4"] == {"package": "dlmrl-kit", "version": VERSION}
    assert {name.rsplit(".", 1)[1] for name in found} >= {"Fine", "LowConfidence", "Trainer", "StepPPO"}
    install("acme", SOURCES, version="2.0")
    evaluated = dlmrl("eval", str(run), "--size", "2")
    assert evaluated.exit_code == 0
    resumed = dlmrl("train", "--resume", str(run), "--set", "Trainer.updates=3")
    assert resumed.exit_code == 2
    assert "package acme-dist was 1.2, now 2.0 (it brought Fine: pip install acme-dist==1.2)" in resumed.stderr
    install("acme", {})
    for command in (
        ["eval", str(run)],
        ["train", "--resume", str(run)],
        ["sample", str(run), "x"],
        ["check", str(run / "recipe.gin")],
        ["trace", str(run)],
    ):
        result = dlmrl(*command)
        assert result.exit_code == 2
        assert GONE in result.stderr, command
        assert result.stderr.count("\n") == 1


def test_an_ablation_says_it_too(install: Install, tmp_path: Path) -> None:
    install("acme", SOURCES)
    origins = provenance_of(load_recipe("egspo", uses=["selector=Fine"]).blocks[1:])
    (tmp_path / "ablation.json").write_text(json.dumps({KEY: origins}))
    install("acme", {})
    result = dlmrl("ablate", "egspo", "--swap", "selector=Fine", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert GONE.replace("run.json", "ablation.json") in result.stderr


def test_another_version_is_a_warning_and_the_same_is_none(install: Install, tmp_path: Path) -> None:
    install("acme", SOURCES, version="2.0")
    with pytest.warns(PluginWarning, match=f"{CAME}and is of acme-dist 2.0 now: .* pip install acme-dist==1.2"):
        check(record(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error", PluginWarning)
        check(record(tmp_path, "2.0"))


@pytest.mark.parametrize(
    ("sources", "off", "message"),
    [
        ({"__init__.py": selector("Other")}, False, "and acme-dist 1.2 does not bring it"),
        (
            {"__init__.py": "raise ValueError('no luck')"},
            False,
            "does not bring it; plugin 'acme' .*no luck",
        ),
        (SOURCES, True, "acme-dist 1.2 does not bring it; plugins are turned off"),
    ],
)
def test_a_component_that_its_package_does_not_bring(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: dict[str, str], off: bool, message: str
) -> None:
    path = record(tmp_path)
    if off:
        install("acme", SOURCES)
        install("acme", {"__init__.py": "x = 1"})
        monkeypatch.setenv(plugins.OFF_SWITCH, "1")
    else:
        install("acme", sources)
    with pytest.raises(RecipeError, match=message):
        check(path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"components": 3}', '{"components": {"a": 3}}', '{"components": {}}'])
def test_a_damaged_record_is_left_to_others(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    check(tmp_path / "run.json")
