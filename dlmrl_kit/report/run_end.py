"""What a run says when it has ended: how it went, where everything is, and what to try next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from dlmrl_kit.core.results import PretrainResult, RunResult
from dlmrl_kit.recipe.load import recipe_names
from dlmrl_kit.report.console import duration


def training_outcome(result: RunResult) -> str:
    """Returns a line on how long training took, and whether updates were skipped."""
    skipped = f", {result.skipped} skipped (not finite)" if result.skipped else ""
    return f"{result.updates} updates done in {duration(result.seconds)}{skipped}"


def pretraining_outcome(result: PretrainResult) -> list[str]:
    """Returns lines on how long pre-training took, its last loss, and the accuracy of the model."""
    return [
        f"{result.steps} steps done in {duration(result.seconds)}, loss {result.loss:.4f}",
        f"accuracy on held-out examples: greedy {result.accuracy:.1%}; at temperature 1 {result.sampled_accuracy:.1%}, "
        f"pass@8 {result.pass_at_8:.1%}",
    ]


def outputs(result: RunResult | PretrainResult) -> list[str]:
    """Returns a line for each thing that the run has written, with its path."""
    files = {
        "model": result.model,
        "curve": result.folder / "curve.png",
        "metrics": result.folder / "metrics.csv",
        "recipe": result.folder / "recipe.gin",
    }
    found = {"run folder": result.folder, **{name: path for name, path in files.items() if path.exists()}}
    return [f"{name:<12} {path}" for name, path in found.items()]


def commands_after_training(result: RunResult, recipe: str) -> list[str]:
    """Returns commands that lead on from a training run of ``recipe`` (a name, or the stem of a file's)."""
    folder = shlex.quote(str(result.folder))
    stored = result.folder / "recipe.gin"
    again = recipe if recipe in recipe_names() else shlex.quote(str(stored))
    return [
        f"dlmrl eval {folder} --temperature 1 --samples 8  # pass@k, with sampled completions",
        f"dlmrl train {again} --use selector={_other_selector(stored)}  # change one word",
        "dlmrl show EntropyTopK  # what a component does, and from which paper",
        "dlmrl list  # all components and recipes",
    ]


def commands_after_pretraining(result: PretrainResult) -> list[str]:
    """Returns commands that lead on from a pre-training run."""
    model = str(result.model)
    start = shlex.quote(f"Pretrained.path={json.dumps(model)}")
    return [
        f"dlmrl eval {shlex.quote(model)}  # accuracy with other decoding settings",
        f"dlmrl train --set {start}  # reinforcement learning from here",
    ]


def _other_selector(recipe: Path) -> str:
    uniform = recipe.is_file() and "@UniformSteps(" in recipe.read_text(encoding="utf-8")
    return "EntropyTopK" if uniform else "UniformSteps"
