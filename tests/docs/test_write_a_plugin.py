"""docs/write-a-plugin.md is followed as it is written: its files are saved, its commands run outside the checkout."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from support import virtual_environments
from support.paths import ROOT

from dlmrl_kit.core.registry import KINDS
from dlmrl_kit.recipe import plugins

PAGE = (ROOT / "docs" / "write-a-plugin.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = "# file: "
DRIVER = """
import json, sys
from typer.testing import CliRunner
import pytest, torch
from dlmrl_kit.cli.app import app
torch.set_num_threads(1)
results = []
for program, *arguments in json.loads(sys.argv[1]):
    if program == "pytest":
        results.append([int(pytest.main([*arguments, "-q", "-p", "no:cacheprovider"])), ""])
        continue
    result = CliRunner().invoke(app, arguments)
    error = "" if result.exception is None or isinstance(result.exception, SystemExit) else repr(result.exception)
    results.append([result.exit_code, result.output + error])
print("RESULTS", json.dumps(results))
"""


def commands() -> list[tuple[list[str], list[str]]]:
    """The command lines of the page in order, each with the lines that it is said to print."""
    found: list[tuple[list[str], list[str]]] = []
    for language, text in BLOCK.findall(PAGE):
        for line in text.splitlines() if language == "console" else []:
            if line.startswith("$ "):
                found.append((shlex.split(line[2:]), []))
            elif line != "...":
                found[-1][1].append(line)
    return found


@pytest.mark.thorough
def test_the_page_gives_what_it_says(tmp_path: Path) -> None:
    python = virtual_environments.create(tmp_path / "environment")
    work = tmp_path / "work"
    for language, text in BLOCK.findall(PAGE):
        if language in ("python", "toml", "gin"):
            first, _ = text.split("\n", 1)
            assert first.startswith(FILE), f"a block that nothing executes: {first}"
            path = work / first.removeprefix(FILE)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    new, (install, said), *rest = commands()
    assert new[0][:3] == ["dlmrl", "plugin", "new"]
    rest.insert(0, new)
    assert install[:2] == ["pip", "install"]
    assert said == []
    virtual_environments.install(python, *install[2:], cwd=work)
    environment = {k: v for k, v in os.environ.items() if k not in (plugins.OFF_SWITCH, "PYTHONPATH")}
    done = subprocess.run(
        [python, "-c", DRIVER, json.dumps([command for command, _ in rest])],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=work,
        env=environment | {"COLUMNS": "160"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout.rsplit("RESULTS ", 1)[1])
    for (command, expected), (code, output) in zip(rest, results, strict=True):
        squeezed = " ".join(output.split())
        refused = [line for line in expected if line.startswith("error: ... ")]
        assert code == (2 if refused else 0), (command, output, done.stdout, done.stderr)
        for line in expected:
            assert " ".join(line.removeprefix("error: ... ").split()) in squeezed, (command, output)
    for made in ("model/model.safetensors", "curve.png", "metrics.csv"):
        assert (work / "runs" / "mine" / made).is_file()


def test_every_base_class_of_the_page_is_there() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(dlmrl_kit[\w.]+)`(?:, `(\w+)`)? \| (.*) \|$", PAGE, re.MULTILINE)
    assert {kind for kind, *_ in rows} == {*KINDS}
    for kind, path, other, methods in rows:
        assert kind in KINDS
        module, name = path.rsplit(".", 1)
        found = __import__(module, fromlist=[name])
        known = {n for cls in (getattr(found, n) for n in (name, other) if n) for n in dir(cls)}
        assert set(re.findall(r"`(\w+)`", methods)) <= known


@pytest.mark.parametrize("word", [plugins.ENTRY_POINT_GROUP, plugins.OFF_SWITCH])
def test_the_page_names_the_entry_points_and_the_switch(word: str) -> None:
    assert word in PAGE
