"""The model card of a run: recipe, task, held-out metrics before and after, and the verdict of an audit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dlmrl_kit.core.results import EvalResult, RunResult
from dlmrl_kit.core.version import VERSION

AUDIT = "audit.json"
"""File in the run folder whose verdict goes into the card: the output of ``dlmrl audit RECIPE --json``."""


USAGE = """```python
from dlmrl_kit.training.opening import open_decoder

opened = open_decoder("PATH")  # the model, and the sampler that it was trained with
((text,),) = opened.policy.generate("a prompt", opened.sampler.at_temperature(0.0))
```"""
"""How a text is completed, greedily."""


def model_card(result: RunResult, *, recipe: str, task: str, base: str, adapter: bool, decoding: str) -> str:
    """Returns the card in Markdown, with the header that the hub reads.

    Args:
        result: of the run; ``recipe.gin`` and ``audit.json`` in its folder go into the card.
        recipe: name of the recipe.
        task: label of the task.
        base: path or hub id of the checkpoint that was trained; "" if there was none.
        adapter: whether the card is for the adapter, not for the whole model.
        decoding: how to decode without the kit, in Markdown.
    """
    stored, audit = result.folder / "recipe.gin", read_audit(result.folder)
    parts = [
        _header(base, adapter),
        f"# {recipe}: {base or 'a denoiser from scratch'}",
        f"A masked diffusion language model, trained with reinforcement learning by dlmrl_kit {VERSION}: recipe "
        f"`{recipe}`, task {task}, {result.updates} updates in {result.seconds:.0f} s."
        + (f" This folder holds the LoRA adapter alone, for `{base}`." if adapter else ""),
        "## Held-out examples before and after",
        _metrics(result.before, result.after),
        "Decoding: " + ", ".join(f"{name} {value}" for name, value in result.after.decoding.items()) + ".",
        "## Audit of the gradient estimator",
        str(audit["verdict"]) if audit else f"Not audited (no {AUDIT} in the run's folder).",
        "## How to use it",
        "It writes by filling in masks, in any order. The `generate()` of transformers writes from left to right and "
        'must not be used with it. From a shell: `dlmrl sample PATH "a prompt"`, or `dlmrl chat PATH`. In Python:',
        USAGE,
        decoding,
    ]
    if stored.is_file():
        parts += ["## Recipe", f"```\n{stored.read_text(encoding='utf-8').strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def read_audit(folder: Path) -> Mapping[str, object] | None:
    """Reads the audit in a run folder; returns None if there is none, or none that can be read."""
    try:
        found = json.loads((folder / AUDIT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, Mapping) and "verdict" in found else None


def _header(base: str, adapter: bool) -> str:
    lines = ["---", f"library_name: {'peft' if adapter else 'transformers'}"]
    if base.count("/") == 1 and not Path(base).exists():  # the hub takes ids of its own only
        lines.append(f"base_model: {json.dumps(base)}")
    return "\n".join([*lines, "tags:", "- dlmrl_kit", "- diffusion-language-model", "---"])


def _metrics(before: EvalResult, after: EvalResult) -> str:
    low, high = after.interval()
    rows: list[tuple[str, float | None, float]] = [
        ("accuracy", before.accuracy, after.accuracy),
        ("reward", before.reward, after.reward),
    ]
    rows += [(name, before.components.get(name), value) for name, value in after.components.items()]
    lines = [f"| {name} | {_number(old)} | {_number(new)} |" for name, old, new in rows]
    table = "\n".join(["| metric | before | after |", "| --- | --- | --- |", *lines])
    measured = f"{after.size} examples; 95% interval of the accuracy after training: {low:.3f} to {high:.3f}."
    return "\n\n".join(filter(None, (table, measured, after.caution())))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
