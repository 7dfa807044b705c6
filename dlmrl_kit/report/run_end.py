"""What a run says when it has ended: how it went and where everything is."""

from __future__ import annotations

from dlmrl_kit.core.results import PretrainResult, RunResult
from dlmrl_kit.report.console import duration


def training_outcome(result: RunResult) -> str:
    """Returns a line on how long training took, and whether updates were skipped."""
    skipped = f", {result.skipped} skipped (not finite)" if result.skipped else ""
    return f"{result.updates} updates done in {duration(result.seconds)}{skipped}"


def pretraining_outcome(result: PretrainResult) -> list[str]:
    """Returns lines on how long pre-training took, its last loss, the held-out loss and the accuracy of the model."""
    task = f" of {result.task}" if result.task else ""
    lines = [f"{result.steps} steps done in {duration(result.seconds)}, loss {result.loss:.4f}"]
    if result.heldout_loss is not None:
        before = "" if result.heldout_loss_before is None else f"{result.heldout_loss_before:.4f} before, "
        lines.append(f"held-out loss: {before}{result.heldout_loss:.4f} after, with the same masks")
    if result.accuracy is not None:
        lines.append(
            f"accuracy on held-out examples{task}: greedy {result.accuracy:.1%}; at temperature 1 "
            f"{result.sampled_accuracy:.1%}, pass@8 {result.pass_at_8:.1%}"
        )
    return lines


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
