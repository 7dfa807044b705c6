"""Plugins: good ones work, broken ones are named and skipped, and the kit works on whatever is installed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import virtual_environments
from support.broken_plugins import ENTRIES, KEPT, PARTS, REASONS, SOURCES, distribution
from support.paths import ROOT
from typer.testing import CliRunner

from dlmrl_kit.cli.app import app
from dlmrl_kit.recipe import plugins
from dlmrl_kit.recipe.builtin import load_builtin

TINY = [
    *("--use", "policy=CharacterLlama", "--use", "logger=MetricsCSV"),
    *("--set", "CharacterLlama.hidden_size=16", "--set", "CharacterLlama.num_layers=1"),
    *("--set", "Sudoku4x4.num_train=8", "--set", "Sudoku4x4.num_heldout=8", "--set", "Sudoku4x4.num_pretrain=8"),
    *("--set", "Trainer.updates=2", "--set", "Trainer.prompts_per_update=2", "--set", "Trainer.group_size=2"),
    *("--set", "Trainer.eval_size=4", "--set", "Trainer.minibatches=1"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every plugin of this file is installed, each as a distribution of its own."""
    folder = tmp_path_factory.mktemp("site")
    for name in ENTRIES:
        distribution(folder, name, {name: ENTRIES[name]}, SOURCES.get(name, {}))
    (folder / "nameless-0.dist-info").mkdir()
    (folder / "nameless-0.dist-info" / "entry_points.txt").write_text(
        f"[{plugins.ENTRY_POINT_GROUP}]\nnameless = silent\n"
    )
    return folder


@dataclass
class Ran:
    code: int
    out: str
    err: str


DRIVER = """
import json, sys
import dlmrl_kit, dlmrl_kit.cli.app, dlmrl_kit.recipe.load, dlmrl_kit.core.registry, dlmrl_kit.recipe.plugins
early = sorted(set(sys.modules) & set(json.loads(sys.argv[2])))
from typer.testing import CliRunner
import torch
torch.set_num_threads(1)
results = []
for arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(dlmrl_kit.cli.app.app, arguments)
    error = "" if result.exception is None or isinstance(result.exception, SystemExit) else repr(result.exception)
    results.append([result.exit_code, result.stdout, result.stderr + error])
import gin
from dlmrl_kit.recipe import plugins
from dlmrl_kit.core import registry
print(json.dumps({
    "early": early,
    "results": results,
    "report": plugins.plugin_report(),
    "registered": sorted(c.gin_name for c in registry.registered()),
    "gin": sorted(name for name, _ in gin.config._REGISTRY.items()),
    "modules": sorted(name for name in sys.modules if "." not in name),
}))
"""


def drive(commands: list[list[str]], path: list[Path], python: str = sys.executable, **env: str) -> dict[str, Any]:
    """Runs commands of the CLI in one fresh process, with folders on the path; returns what ``DRIVER`` prints."""
    environment = {k: v for k, v in os.environ.items() if k != plugins.OFF_SWITCH} | env
    environment |= {
        "PYTHONPATH": os.pathsep.join([*map(str, path), os.environ.get("PYTHONPATH", "")]),
        "COLUMNS": "400",
    }
    arguments = [python, "-c", DRIVER, json.dumps(commands), json.dumps([*SOURCES, "dlmrl_example", "torch", "gin"])]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    found["results"] = [Ran(*result) for result in found["results"]]
    return found


COMMANDS = {
    "list": ["list"],
    "list selector": ["list", "selector"],
    "show": ["show", "GoodSteps"],
    "check": ["check", "egspo"],
    "check json": ["check", "egspo", "--json", "--use", "selector=GoodSteps"],
    "ambiguous": ["check", "egspo", "--use", "selector=SameName"],
    "spelt": ["check", "egspo", "--use", "selector=zeta.selector.SameName"],
    "only alpha": ["check", "egspo", "--use", "selector=OnlyAlpha"],
    "gone": ["check", "egspo", "--use", "selector=FirstHalf"],
    "constructor keys": ["check", "egspo", "--use", "selector=ConstructorKeys"],
}


@pytest.fixture(scope="module")
def found(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = tmp_path_factory.mktemp("run") / "good"
    train = ["train", "egspo", "--use", "selector=GoodSteps", *TINY, "--out", str(run)]
    return drive([*COMMANDS.values(), train], [site])


def result(found: dict[str, Any], name: str) -> Ran:
    return found["results"][list(COMMANDS).index(name)]


def line(found: dict[str, Any], plugin: str) -> str:
    """What is reported of a plugin."""
    lines = [text for text in found["report"] if text.startswith(f"plugin {plugin!r} ")]
    assert len(lines) == 1, found["report"]
    return lines[0]


@pytest.mark.thorough
def test_importing_the_kit_loads_no_plugin(found: dict[str, Any]) -> None:
    assert [name for name in found["early"] if name != "gin"] == []


@pytest.mark.thorough
def test_every_broken_plugin_is_named_with_the_reason(found: dict[str, Any]) -> None:
    assert set(REASONS) == set(ENTRIES) - KEPT
    for name, reason in REASONS.items():
        text = line(found, name)
        assert text.startswith(f"plugin {name!r} ({name}-dist 1.2, module {ENTRIES[name]}) is skipped: ")
        assert reason in text
        assert "\n" not in text
    for name, (part, reason) in PARTS.items():
        own = [text for text in found["report"] if f"of plugin {name!r} " in text]
        assert len(own) == 1
        assert own[0].startswith(f"{part} of plugin {name!r} ({name}-dist 1.2, module {name}) is skipped: ")
        assert reason in own[0]
    assert "registers no component" in line(found, "nameless")
    assert f"{Path('raises') / '__init__.py'}:13)" in line(found, "raises")
    assert len(found["report"]) == len(REASONS) + len(PARTS) + 2  # nameless, and the name that two share


@pytest.mark.thorough
def test_the_report_is_on_standard_error_once(found: dict[str, Any]) -> None:
    first = result(found, "list")
    for text in found["report"]:
        assert f"PluginWarning: {text}" in first.err
        assert text not in first.out
    assert "hello from good" in first.err
    assert "hello from good" not in first.out
    assert result(found, "check json").err == ""
    assert json.loads(result(found, "check json").out)["recipe"] == "egspo"


@pytest.mark.thorough
def test_the_kit_works_with_all_of_them_installed(found: dict[str, Any]) -> None:
    for name in ("list", "list selector", "show", "check", "check json", "spelt", "only alpha"):
        assert result(found, name).code == 0, result(found, name)
    assert "selector" in result(found, "check").out
    trained = found["results"][-1]
    assert trained.code == 0, trained


@pytest.mark.thorough
def test_skipped_plugins_leave_nothing_behind(found: dict[str, Any]) -> None:
    for name in set(SOURCES) - KEPT:
        assert not [other for other in found["registered"] + found["gin"] if name in other.split(".")], name
        assert name not in found["modules"]
    assert not [name for name in found["gin"] if "half" in name.lower()]
    assert "shared_by_two.selector.Shared" in found["registered"], "imported first by a plugin that failed"
    gone = result(found, "gone")
    assert gone.code == 2
    assert "no selector named 'FirstHalf'" in gone.err
    assert "skipped, in whole or in part, are the plugins " in gone.err


@pytest.mark.thorough
def test_a_name_of_two_plugins_is_an_error_that_spells_both(found: dict[str, Any]) -> None:
    text = next(text for text in found["report"] if text.startswith("the name 'SameName'"))
    assert "alpha (alpha-dist 1.2) and by zeta (zeta-dist 1.2)" in text
    assert "@alpha.selector.SameName() or @zeta.selector.SameName()" in text
    ambiguous = result(found, "ambiguous")
    assert ambiguous.code == 2
    assert "registered by alpha and zeta; write one of alpha.selector.SameName, zeta.selector.SameName" in ambiguous.err
    assert "zeta.selector.SameName" in result(found, "spelt").out


@pytest.mark.thorough
def test_list_and_show_say_where_components_come_from(found: dict[str, Any]) -> None:
    listed = result(found, "list selector").out
    rows = {row.split()[1]: row for row in listed.splitlines() if row.strip().startswith("selector")}
    assert rows["GoodSteps"].rstrip().endswith("good (good-dist 1.2)")
    assert rows["EntropyTopK"].rstrip().endswith("dlmrl_kit")
    assert "skipped: RuntimeError: no luck" in listed
    everything = result(found, "list").out
    shared = [row for row in everything.splitlines() if " Shared " in row]
    assert shared[0].rstrip().endswith("shared_by_two (shared_by_two-dist 1.2)")
    assert [row for row in everything.splitlines() if "good-dist 1.2" in row and row.rstrip().endswith("GoodSteps")]
    assert "selector, package good (good-dist 1.2)" in result(found, "show").out


@pytest.mark.thorough
def test_malformed_keys_name_the_component(found: dict[str, Any]) -> None:
    bad = result(found, "constructor keys")
    assert bad.code == 2
    assert "constructor_keys.selector.ConstructorKeys: in_keys must be a list of keys" in bad.err
    assert "got 3 among them" in bad.err


@pytest.fixture
def fresh(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as if it had loaded no plugin yet, with those of ``site`` installed; undone afterwards."""
    load_builtin()
    before = plugins._Snapshot()
    monkeypatch.setattr(plugins._State, "started", False)
    monkeypatch.setattr(plugins._State, "plugins", ())
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv(plugins.OFF_SWITCH, raising=False)
    yield
    for name in ENTRIES:
        before.restore(plugins.Plugin(name, name, "", ""))


def test_what_is_installed_or_removed_meanwhile_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points are not read again for every recipe, but again where a folder of the path changes."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def names() -> set[str]:
        return {plugin.name for plugin in plugins.installed_plugins()} & {"good", "silent"}

    assert names() == set()
    distribution(tmp_path, "good", {"good": "good"}, SOURCES["good"])
    assert names() == {"good"}
    distribution(tmp_path, "silent", {"silent": "silent"}, SOURCES["silent"])
    assert names() == {"good", "silent"}
    shutil.rmtree(next(tmp_path.glob("good*.dist-info")))
    assert names() == {"silent"}
    monkeypatch.undo()
    assert names() == set()


@pytest.mark.usefixtures("fresh")
def test_an_environment_variable_turns_plugins_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.OFF_SWITCH, "1")
    listed = CliRunner().invoke(app, ["list", "selector"])
    assert listed.exit_code == 0
    assert "GoodSteps" not in listed.stdout
    assert f"Plugins are turned off: {plugins.OFF_SWITCH} is set." in listed.stdout
    assert listed.stderr == ""
    missing = CliRunner().invoke(app, ["check", "egspo", "--use", "selector=GoodSteps"])
    assert missing.exit_code == 2
    assert f"plugins are turned off ({plugins.OFF_SWITCH} is set)" in missing.stderr
    assert plugins.load_plugins() == ()
    assert "good" not in sys.modules


@pytest.mark.usefixtures("fresh")
def test_an_interrupted_load_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(value: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(plugins, "_import", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plugins.load_plugins()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = plugins.load_plugins()
    assert "plugin 'raises' " in " ".join(str(w.message) for w in caught if w.category is plugins.PluginWarning)
    assert {plugin.name for plugin in found if not plugin.problem} & set(ENTRIES) == KEPT
    assert plugins.load_plugins() is found


@pytest.mark.thorough
def test_the_example_plugin_installs_and_trains_its_recipe(tmp_path: Path) -> None:
    python = virtual_environments.create(tmp_path / "environment")
    virtual_environments.install(python, str(ROOT / "plugins" / "dlmrl-example"))
    printed = subprocess.run([python, "-m", "dlmrl_example"], capture_output=True, text=True, check=True)
    recipe = Path(printed.stdout.strip())
    assert recipe.is_file()
    assert ROOT not in recipe.parents
    run = tmp_path / "run"
    commands = [
        ["list"],
        ["check", str(recipe)],
        ["train", str(recipe), *TINY, "--out", str(run)],
        ["train", "--resume", str(run)],
        ["check", "egspo_sa", "--set", "OneStepDenoise.baseline=@ShrunkLeaveOneOut()"],
    ]
    found = drive(commands, [], python)
    assert [name for name in found["early"] if name != "gin"] == []
    assert [(ran.code, ran.err) for ran in found["results"] if ran.code != 0] == []
    assert found["report"] == []
    assert "dlmrl_example (dlmrl-example 0.1.0)" in found["results"][0].out
    assert "StratifiedEntropy" in found["results"][1].out
    assert (run / "model").is_dir()
    for path in ROOT.joinpath("dlmrl_kit").rglob("*.py"):
        assert "dlmrl_example" not in path.read_text()


HANGING = """
import os, sys
from dlmrl_kit.recipe import builtin, plugins
builtin.load_builtin()
plugins.SLOW_SECONDS = 0.3
for folder in sys.argv[1:]:
    if not os.fork():
        sys.path.insert(0, folder)
        plugins.load_plugins()
"""
STUCK = {
    "sleeps": "import time\ntime.sleep(1000)\n",
    "computes": "while True:\n    pass\n",
    "waits": "import threading\nthreading.Event().wait()\n",
}


@pytest.mark.thorough
def test_a_plugin_that_hangs_at_import_is_named(tmp_path: Path) -> None:
    """In a process of its own each, forked from one that has imported the kit."""
    for name, source in STUCK.items():
        (tmp_path / name).mkdir()
        distribution(tmp_path / name, name, {name: f"{name}_module"}, {f"../{name}_module.py": source})
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", HANGING, *(str(tmp_path / name) for name in STUCK)]
    options: dict[str, Any] = {"env": environment, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        assert process.stderr is not None
        lines = sorted(process.stderr.readline() for _ in STUCK)
        os.killpg(process.pid, signal.SIGKILL)
    for name, line in zip(sorted(STUCK), lines, strict=True):
        assert line.startswith(f"plugin '{name}' ({name}-dist 1.2, ")
        assert f"module {name}_module) is still being imported after 0.3 s; if it hangs, stop the command" in line
        assert "DLMRL_KIT_NO_PLUGINS=1" in line
