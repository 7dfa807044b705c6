"""``python -m dlmrl_kit.report.algorithms_page docs/algorithms.md``: writes the tables of a page on all recipes.

Text between ``<!-- components -->`` and ``<!-- end -->`` becomes the table algorithm x component, text between
``<!-- audit -->`` and ``<!-- end -->`` a table of what the audit says of each gradient and what an update costs.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.audit import audit_recipe
from dlmrl_kit.audit.attribution import Spread
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.experiments.forwards import count_forwards
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.recipe.load import load_recipe, recipe_files, recipes_dir
from dlmrl_kit.recipe.moved import MOVED
from dlmrl_kit.report.tables import short_number

PROBLEMS = 2
"""Small problems per recipe in the table of audits."""

_BLOCK = re.compile(r"(<!-- (components|audit) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def training_recipes() -> list[str]:
    """Returns the names of the recipes that train the shipped denoiser, sorted; the kit's, and what moved into plugins.

    The recipes for large models use the same components.
    """
    ours = [name for name, path in recipe_files().items() if path.parent == recipes_dir() or name in MOVED]
    return [name for name in ours if _trains_shipped(load_recipe(name).build())]


def _trains_shipped(built: object) -> bool:
    policy = built.policy if isinstance(built, Algorithm) else None
    return isinstance(policy, Pretrained) and policy.path.startswith("shipped:")


def component_table(names: Iterable[str], page: Path) -> str:
    """Returns the table algorithm x component in Markdown, for the slots that tell algorithms apart.

    Args:
        names: of the recipes.
        page: the file that the table is for; links to recipes and components are relative to it.
    """
    rows = []
    for name in names:
        slots = _slots(load_recipe(name).build_algorithm())
        cells = (", ".join(_component_link(component, page) for component in filling) for filling in slots.values())
        rows.append([f"[{name}]({_relative(recipe_files()[name], page)})", *cells])
    return _markdown(["recipe", *slots], rows)


def _slots(algorithm: Algorithm) -> dict[str, list[Component]]:
    """Returns the components in the slots that tell algorithms apart; every slot is there, whatever fills it."""
    return {
        "sampler": [algorithm.sampler],
        "filter": [*algorithm.filters],
        "selector": [algorithm.selector],
        "advantage": [algorithm.advantage],
        "likelihood": [algorithm.likelihood],
        "value": [*algorithm.values],
        "loss": [algorithm.loss],
        "regulariser": [*algorithm.regularisers],
    }


def _component_link(component: Component, page: Path) -> str:
    cls = type(component)
    return f"[{cls.__name__}]({_relative(Path(inspect.getfile(cls)), page)})"


def _relative(path: Path, page: Path) -> str:
    return os.path.relpath(path, page.parent)


def audit_table(names: Iterable[str]) -> str:
    """Returns what the audit says of each recipe's gradient, and model forwards per sample and update, in Markdown."""
    headings = ["recipe", "relative bias", "after scale", "scale", "variance x forwards"]
    return _markdown([*headings, "rollout", "update", "verdict"], [_audit_row(name) for name in names])


def _audit_row(name: str) -> list[str]:
    forwards = count_forwards(name)
    costs = [f"{forwards.rollout:.3g}", f"{forwards.update:.3g}"]
    try:
        report = audit_recipe(name, problems=PROBLEMS, attribution=False)
    except UserError as error:
        return [name, "-", "-", "-", "-", *costs, str(error)]
    measured = report.measured
    spreads = (
        Spread.of(m.relative_bias for m in measured),
        Spread.of(m.relative_bias_after_scale for m in measured),
        Spread.of(m.scale for m in measured),
        Spread.of(m.cost for m in measured),
    )
    return [name, *(short_number(spread.mean) for spread in spreads), *costs, report.sentence]


def _markdown(headings: list[str], rows: Iterable[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (headings, *rows)]
    return "\n".join([lines[0], "|---" * len(headings) + "|", *lines[1:]])


def with_new_tables(text: str, page: Path) -> str:
    """Returns the text of a page with its tables as they are now.

    Args:
        text: of the page.
        page: its file, which links are relative to.
    """
    tables: dict[str, Callable[[], str]] = {
        "components": lambda: component_table(training_recipes(), page),
        "audit": lambda: audit_table(training_recipes()),
    }
    return _BLOCK.sub(lambda block: f"{block[1]}{tables[block[2]]()}\n{block[4]}", text)


if __name__ == "__main__":
    for given in sys.argv[1:]:
        target = Path(given)
        target.write_text(with_new_tables(target.read_text(), target))
