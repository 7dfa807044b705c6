"""The ``dlmrl`` command: help, exit codes, messages, and what it may not import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command_line import dlmrl

import dlmrl_kit


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


HEAVY = ("torch", "tensordict", "torchrl", "transformers", "gin", "matplotlib", "numpy", "reasoning_gym")


def test_importing_the_command_imports_nothing_heavy() -> None:
    result = python(
        f"import sys, dlmrl_kit, dlmrl_kit.cli.app, dlmrl_kit.core.results\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert result.stdout == "[]\n", result.stdout + result.stderr


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = f"""
import sys
from dlmrl_kit.cli.app import app
try:
    app(["--help"])
except SystemExit as end:
    assert end.code == 0
sys.stderr.write(str([name for name in {HEAVY} if name in sys.modules]))
"""
    before = os.times()
    result = python(code)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert result.stderr == "[]", result.stderr
    assert "train" in result.stdout
    assert seconds < 1.5  # of the processor: it takes 0.3, and importing torch alone 2


@pytest.mark.parametrize(
    "command",
    [
        *("train", "eval", "trace", "sample", "chat", "pretrain", "ablate"),
        *("list", "show", "check", "audit", "steps", "profile", "doctor"),
    ],
)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = dlmrl(command, "--help")
    assert result.exit_code == 0
    assert f"Example: dlmrl {command}" in result.output


def test_version() -> None:
    result = dlmrl("--version")
    assert (result.exit_code, result.stdout) == (0, f"dlmrl_kit {dlmrl_kit.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "egspo_so"), "no recipe named 'egspo_so'; did you mean 'egspo_sa'"),
        (("train", "egspo", "--use", "selector=Uniform"), "did you mean 'UniformSteps'"),
        (("train", "egspo", "--set", "EntropyTopK.k=-3"), "EntropyTopK.k must be an integer, at least 1, got -3"),
        (("train", "egspo", "--set", "EntropyTopK.kk=3"), "kk"),
        (("train", "--resume", "/nowhere/run"), "/nowhere/run holds no run"),
        (("train", "egspo", "--seed", "1", "--resume", "/nowhere/run"), "RECIPE and --seed with --resume"),
        (("eval", "/nowhere/run"), "no run or model folder at /nowhere/run"),
        (("pretrain", "nothing"), "no recipe named 'nothing'"),
        (("pretrain", "egspo"), "egspo is a training recipe"),
        (("list", "selecter"), "unknown kind 'selecter'; did you mean 'selector'"),
        (("show", "entropytopk"), "did you mean 'EntropyTopK'"),
        (("show", "egspo_ssa"), "did you mean 'egspo_sa'"),
        (("check", "nothing.gin"), "no recipe file 'nothing.gin'"),
        (("profile", "nothing"), "no recipe named 'nothing'"),
        (("profile", "pretrain_sudoku4x4"), "pretrain_sudoku4x4 is a recipe for Pretraining: only training recipes"),
        (("profile", "--trace", "."), ". exists already; choose another --trace"),
        (("profile", "--trace", "/dev/null/trace.json"), "/dev/null is no folder that can be written to"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = dlmrl(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [(), ("train", "--nothing"), ("eval",), ("eval", "x", "--size", "0"), ("profile", "--updates", "0")]
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert dlmrl(*arguments).exit_code == 2


def test_unexpected_exceptions_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("dlmrl_kit.training.train", broken)
    result = dlmrl("train", "--out", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_imports_need_permission(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.gin"
    recipe.write_text("import json\ninclude 'egspo.gin'\n")
    assert "--allow-imports" in dlmrl("check", str(recipe)).stderr
    assert dlmrl("check", str(recipe), "--allow-imports").exit_code == 0
