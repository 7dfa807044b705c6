"""``python -m dlmrl_kit.experiments.algorithms docs/algorithms.md``: writes the tables of a page on all recipes.

Text between ``<!-- components -->`` and ``<!-- end -->`` becomes the table algorithm x component, between
``<!-- audit -->`` and ``<!-- end -->`` what the audit says of each gradient and what an update costs.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dlmrl_kit.recipe.load import load_recipe, recipe_names

SLOTS = ("sampler", "filter", "selector", "advantage", "likelihood", "value", "loss", "regulariser")
"""Slots that tell algorithms apart."""

PROBLEMS = 2
"""Small problems per recipe in the table of audits."""

_BLOCK = re.compile(r"(<!-- (components|audit) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def training_recipes() -> list[str]:
    """Names of the recipes that train the shipped denoiser; those for large models use the same components."""
    loaded = {name: load_recipe(name) for name in recipe_names()}
    return [name for name, recipe in loaded.items() if recipe.root == "Algorithm" and _is_shipped(recipe.build())]


def _is_shipped(algorithm: Any) -> bool:
    return str(getattr(algorithm.policy, "path", "")).startswith("shipped:")


def component_table(names: Iterable[str], page: Path) -> str:
    """The table algorithm x component in Markdown; each component links to its file, relative to ``page``."""
    lines = ["| recipe | " + " | ".join(SLOTS) + " |", "|---" * (len(SLOTS) + 1) + "|"]
    for name in names:
        algorithm = load_recipe(name).build()
        cells = [", ".join(_link(part, page) for part in parts) for parts in _parts(algorithm)]
        lines.append(f"| [{name}]({_relative(Path('recipes') / f'{name}.gin', page)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _parts(algorithm: Any) -> list[list[Any]]:
    lists = {"filter": algorithm.filters, "value": algorithm.values, "regulariser": algorithm.regularisers}
    return [lists[slot] if slot in lists else [getattr(algorithm, slot)] for slot in SLOTS]


def _link(part: Any, page: Path) -> str:
    return f"[{type(part).__name__}]({_relative(Path(type(part).__module__.replace('.', '/') + '.py'), page)})"


def _relative(path: Path, page: Path) -> str:
    return os.path.relpath(path, page.parent)


def audit_table(names: Iterable[str]) -> str:
    """What the audit says of each recipe's gradient, and model forwards per sample and update, in Markdown."""
    from dlmrl_kit.audit import audit_recipe
    from dlmrl_kit.core.errors import UserError
    from dlmrl_kit.experiments.forwards import count_forwards

    heads = ("recipe", "relative bias", "after scale", "scale", "variance x forwards", "rollout", "update", "verdict")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in names:
        forwards = count_forwards(name)
        try:
            report = audit_recipe(name, problems=PROBLEMS, attribution=False).to_json()
        except UserError as error:
            lines.append(f"| {name} | - | - | - | - | {forwards.rollout:.3g} | {forwards.update:.3g} | {error} |")
            continue
        numbers = [
            _number(report["relative_bias"]["mean"]),
            _number(report["relative_bias_after_scale"]["mean"]),
            _number(report["scale"]["mean"]),
            _number(report["variance"]["relative_times_forwards"]["mean"]),
            f"{forwards.rollout:.3g}",
            f"{forwards.update:.3g}",
        ]
        lines.append(f"| {name} | " + " | ".join(numbers) + f" | {report['verdict']} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 1e-8" if abs(value) < 1e-8 else f"{value:.2g}"


def regenerated(text: str, page: Path) -> str:
    """The page with its tables as they are now."""
    tables: dict[str, Callable[[], str]] = {
        "components": lambda: component_table(training_recipes(), page),
        "audit": lambda: audit_table(training_recipes()),
    }
    return _BLOCK.sub(lambda block: f"{block[1]}{tables[block[2]]()}\n{block[4]}", text)


if __name__ == "__main__":
    for given in sys.argv[1:]:
        target = Path(given)
        target.write_text(regenerated(target.read_text(), target))
