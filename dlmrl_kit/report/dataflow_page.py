"""What ``dlmrl check`` prints: the components of an algorithm in the order they run, and what comes between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import Plan, make_plan
from dlmrl_kit.algorithm.stages import Stage
from dlmrl_kit.core.keys import Key, key_text
from dlmrl_kit.report.tables import plain_table, words


@dataclass(frozen=True)
class DataflowRow:
    """A component at its place in an update: its slot, its name, and the trajectory keys it reads and writes there."""

    slot: str
    component: str
    reads: list[str]
    writes: list[str]


def dataflow_page(algorithm: Algorithm) -> RenderableType:
    """Returns a table of an algorithm's components in the order they run, and where old and reference values are from.

    Raises:
        RecipeError: the components do not fit together.
    """
    plan = make_plan(algorithm)
    table = plain_table(words("slot", whole=True), words("component"), words("reads"), words("writes"))
    for row in _rows(algorithm, plan):
        component = Text(row.component, style="bold")
        table.add_row(row.slot, component, "\n".join(row.reads), "\n".join(row.writes), end_section=True)
    lines = [f"{key_text(key)}: {_origin(source, bool(plan.scored_again))}" for key, source in plan.old.items()]
    lines += [f"{key_text(key)} of the reference policy: once per rollout" for key in plan.reference]
    lines += [f"{key_text(key)} of the reference policy: in every micro-batch" for key in plan.live_reference]
    return Group(table, *(Text(line) for line in lines))


def dataflow_json(algorithm: Algorithm) -> list[dict[str, object]]:
    """Returns the table of ``dataflow_page`` for ``json``: for each component the fields of its ``DataflowRow``.

    Raises:
        RecipeError: the components do not fit together.
    """
    return [asdict(row) for row in _rows(algorithm, make_plan(algorithm))]


def _rows(algorithm: Algorithm, plan: Plan) -> list[DataflowRow]:
    stages = [*plan.rollout, plan.likelihood, *plan.values]
    rows = [DataflowRow(s.slot, s.name, _texts(s.reads), _texts(s.writes)) for s in stages]
    terms = [Stage("loss", algorithm.loss), *(Stage("regulariser", term) for term in algorithm.regularisers)]
    # What terms write are scalars of the batch, and no part of a trajectory.
    return rows + [DataflowRow(term.slot, term.name, _texts(term.reads), []) for term in terms]


def _texts(keys: Iterable[Key]) -> list[str]:
    return [key_text(key) for key in keys]


def _origin(source: Key | None, corrected: bool) -> str:
    if source is None:
        return "from the likelihood, once per rollout before its first update"
    known = f"the sampler's {key_text(source)}"
    return known if not corrected else f"{known} under the policy, from the correction's forwards"
