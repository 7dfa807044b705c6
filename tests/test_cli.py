"""The ``dlmrl`` command: real commands, exit codes, messages, and what it may not import."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import dlmrl_kit
from dlmrl_kit.cli.app import app
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.report.run_console import RichObserver

TINY = [
    *(
        "--use",
        "policy=CharacterLlama",
        "--set",
        "CharacterLlama.hidden_size=16",
        "--set",
        "CharacterLlama.num_layers=1",
    ),
    *("--set", "Sudoku4x4.num_train=32", "--set", "Sudoku4x4.num_heldout=16", "--set", "Sudoku4x4.num_pretrain=32"),
    *("--set", "Trainer.updates=6", "--set", "Trainer.prompts_per_update=2", "--set", "Trainer.group_size=4"),
    *("--set", "Trainer.eval_size=8", "--set", "Trainer.eval_every=2", "--set", "Trainer.checkpoint_every=2"),
    *("--use", "logger=MetricsCSV"),
]
"""Options that make any training recipe of the kit run in about two seconds."""


def dlmrl(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = dlmrl("train", *TINY, "--seed", "3", "--out", str(folder))
    assert result.exit_code == 0, result.output
    return folder


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
    started = time.monotonic()
    result = python(code)
    seconds = time.monotonic() - started
    assert result.stderr == "[]", result.stderr
    assert "train" in result.stdout
    assert seconds < 10  # 0.25 s on an idle machine; importing torch alone takes 2.5 s


@pytest.mark.parametrize(
    "command", ["train", "eval", "pretrain", "ablate", "audit", "profile", "list", "show", "check"]
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


def test_train_ends_with_table_paths_and_next_commands(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    result = dlmrl("train", "egspo", *TINY, "--out", str(folder))
    assert result.exit_code == 0, result.output
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", result.stdout)
    for expected in ("egspo: 6 updates into", "update 6/6", "heldout accuracy before training", "accuracy [95% CI]"):
        assert expected in result.stdout
    for name in ("model", "curve.png", "metrics.csv", "recipe.gin"):
        assert (folder / name).exists()
        assert str(folder / name) in result.stdout
    assert f"dlmrl eval '{folder}'" in result.stdout
    assert "note: dropped Pretrained.path" in result.stderr
    assert set(read_metrics(folder)) >= {"reward", "entropy", "loss", "eval/accuracy", "tokens_per_second"}


def test_default_folder_carries_recipe_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = []
    monkeypatch.setattr("dlmrl_kit.training.train", lambda recipe, folder, *, observer: folders.append(folder))
    assert dlmrl("train", "egspo").exit_code == 0
    assert re.fullmatch(r"runs/egspo-\d{8}-\d{6}", str(folders[0]))


def test_seed_is_a_binding(run: Path) -> None:
    assert "Trainer.seed = 3\n" in (run / "recipe.gin").read_text()


def test_train_refuses_an_occupied_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, hint in ((run, f"dlmrl train --resume {run}"), (tmp_path, "choose another --out")):
        result = dlmrl("train", *TINY, "--out", str(folder))
        assert result.exit_code == 2
        assert f"{folder} is not empty" in result.stderr
        assert hint in result.stderr
    result = dlmrl("train", *TINY, "--out", str(tmp_path / "file" / "run"))
    assert result.exit_code == 2
    assert "no folder that can be written to" in result.stderr


def without_times(folder: Path) -> str:
    lines = (folder / "metrics.csv").read_text().splitlines()
    return "\n".join(line for line in lines if "seconds" not in line and "tokens_per_second" not in line)


@pytest.mark.parametrize("last_update", [1, 3])
def test_interrupted_run_resumes_to_the_same_metrics(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_update: int
) -> None:
    def interrupt(_: RichObserver, update: int, metrics: dict[str, float]) -> None:
        if update == last_update:
            raise KeyboardInterrupt

    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(RichObserver, "on_update", interrupt)
        result = dlmrl("train", *TINY, "--seed", "3", "--out", str(folder))
    assert result.exit_code == 1
    assert result.stderr.endswith(f"interrupted; go on with: dlmrl train --resume {folder}\n")
    result = dlmrl("train", "--resume", str(folder))
    assert result.exit_code == 0, result.output
    assert without_times(folder) == without_times(run)


def test_interrupt_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dlmrl_kit.training.train", interrupt)
    result = dlmrl("train", "--out", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert result.stderr.endswith("interrupted before anything was written\n")


def test_eval_table(run: Path) -> None:
    result = dlmrl("eval", str(run), "--size", "4")
    assert result.exit_code == 0, result.output
    assert "4 puzzles of heldout; greedy, sampler LowConfidence" in result.stdout
    assert "accuracy [95% CI]" in result.stdout
    assert result.stdout.count(":  ") >= 4  # the samples, whose prompts end in a colon


def test_eval_json_is_all_there_is_on_stdout(run: Path) -> None:
    options = ("--size", "4", "--temperature", "0.7", "--samples", "2", "--split", "train", "--json")
    result = dlmrl("eval", str(run), *options, "--set", "LowConfidence.tokens_per_step=4")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert (data["split"], data["size"]) == ("train", 4)
    assert data["decoding"]["temperature"] == 0.7
    assert data["decoding"]["tokens_per_step"] == 4
    assert set(data["pass_at_k"]) == {"1", "2"}


def test_eval_of_a_model_with_a_recipe(run: Path) -> None:
    result = dlmrl("eval", str(run / "model"), "--recipe", "egspo", "--size", "2", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["size"] == 2


def test_eval_mistakes(run: Path) -> None:
    for options, message in (
        (("--samples", "4"), "temperature above 0"),
        (("--split", "test"), "unknown split 'test'"),
    ):
        result = dlmrl("eval", str(run), *options)
        assert result.exit_code == 2
        assert message in result.stderr


def test_pretrain_goes_on_in_its_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "denoiser"
    options = [
        *("--set", "MaskedDiffusion.steps=3", "--set", "MaskedDiffusion.eval_size=4", "--out", str(folder)),
        *("--set", "CharacterLlama.hidden_size=16", "--set", "CharacterLlama.num_heads=2"),
        *(
            "--set",
            "CharacterLlama.num_layers=1",
            "--set",
            "Sudoku4x4.num_pretrain=16",
            "--set",
            "Sudoku4x4.num_heldout=4",
        ),
    ]
    for _ in range(2):
        result = dlmrl("pretrain", *options)
        assert result.exit_code == 0, result.output
        assert "3 steps done" in result.stdout
        assert str(folder / "model") in result.stdout
    result = dlmrl("pretrain", *options, "--set", "MaskedDiffusion.batch_size=2")
    assert result.exit_code == 2
    assert "another recipe" in result.stderr


def test_list() -> None:
    everything = dlmrl("list").stdout
    for name in ("EntropyTopK", "MetricsCSV", "Sudoku4x4", "egspo_sa"):
        assert name in everything
    selectors = dlmrl("list", "selector").stdout
    assert "UniformSteps" in selectors
    assert "dlmrl_kit" in selectors
    assert "Sudoku4x4" not in selectors
    assert dlmrl("list", "selectors").stdout == selectors
    recipes = dlmrl("list", "recipes").stdout
    assert "egspo_sa" in recipes
    assert "EntropyTopK" not in recipes


def test_show_component() -> None:
    result = dlmrl("show", "StepTokenLogProb")
    assert result.exit_code == 0
    for expected in (
        "likelihood, package dlmrl_kit",
        "paper    arXiv 2603.12554",
        "gradient unbiased",
        "--use likelihood=StepTokenLogProb",
        "step_token_log_prob.py",
    ):
        assert expected in result.stdout
    assert re.search(r"sampling_temperature +bool +True", result.stdout)
    assert re.search(r"reads +prompt_ids +int64 \[B, P\]", result.stdout)
    assert re.search(r"writes +selected\.log_prob", result.stdout)
    assert re.search(r"on demand +selected\.token_mask", result.stdout)


def test_show_explains_parameters_documented_in_the_base_class() -> None:
    result = dlmrl("show", "dlmrl_kit.sampler.LowConfidence")
    assert "completion_length: L, number of positions to fill" in result.stdout
    assert re.search(r"completion_length +int +required", result.stdout)


def test_show_every_component() -> None:
    from dlmrl_kit.core.registry import components

    for component in components():
        result = dlmrl("show", component.gin_name)
        assert result.exit_code == 0, (component.gin_name, result.output)


def test_show_recipe_is_its_file() -> None:
    source = Path(dlmrl_kit.__file__).parents[1] / "recipes" / "egspo.gin"
    result = dlmrl("show", "egspo")
    assert result.stdout == source.read_text(encoding="utf-8")


def test_check_text(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.gin"
    recipe.write_text("include 'egspo_sa.gin'\nEntropyTopK.k = 3\n")
    result = dlmrl("check", str(recipe), "--use", "selector=UniformSteps", "--set", "UniformSteps.k=2")
    assert result.exit_code == 0, result.output
    order = re.findall(r"^ (sampler|reward|selector|advantage|likelihood|loss|regulariser) ", result.stdout, re.M)
    assert order[0] == "sampler"
    assert order.index("selector") < order.index("advantage") < order.index("likelihood") < order.index("loss")
    assert "UniformSteps.k = 2\n" in result.stdout
    assert "mine: ok" in result.stderr
    assert "note: dropped EntropyTopK.k = 3" in result.stderr


def test_check_json(tmp_path: Path) -> None:
    result = dlmrl("check", "egspo", "--json")
    data = json.loads(result.stdout)
    stages = {stage["component"]: stage for stage in data["stages"]}
    assert "step.entropy" in stages["EntropyTopK"]["reads"]
    assert "selected.step" in stages["EntropyTopK"]["writes"]
    copy = tmp_path / "copy.gin"
    copy.write_text(data["text"])
    again = json.loads(dlmrl("check", str(copy), "--json").stdout)
    assert again["stages"] == data["stages"]


def test_check_pretraining_recipe() -> None:
    result = dlmrl("check", "pretrain_sudoku4x4")
    assert result.exit_code == 0, result.output
    assert "MaskedDiffusion.steps" in result.stdout


def test_imports_need_permission(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.gin"
    recipe.write_text("import json\ninclude 'egspo.gin'\n")
    assert "--allow-imports" in dlmrl("check", str(recipe)).stderr
    assert dlmrl("check", str(recipe), "--allow-imports").exit_code == 0
