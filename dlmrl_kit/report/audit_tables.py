"""An audit as tables for the terminal: the verdict, one row per problem, per cause, per regulariser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from dlmrl_kit.audit.attribution import Attribution
from dlmrl_kit.audit.measure import Measured
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.audit.regularisers import RegulariserAudit
from dlmrl_kit.audit.report import AuditReport
from dlmrl_kit.report.tables import four_decimals, numbers, plain_table, short_number, words


def audit_result(report: AuditReport) -> RenderableType:
    """Returns everything that a person needs to judge a recipe's gradient, the verdict first."""
    parts: list[RenderableType] = [Text(f"{report.recipe}: {report.sentence}", style="bold")]
    if report.scope is not None:
        parts.append(Text(f"This covers {report.scope.covers}."))
        if report.scope.left_out:
            parts.append(Text(f"Left out: {'; '.join(report.scope.left_out)}."))
    parts.append(_problems(report))
    if report.attribution:
        parts.append(_causes(report.attribution))
    if report.regularisers:
        parts.append(_regularisers(report.regularisers))
    return Group(*parts, *(Text(f"note: {note}", style="dim") for note in report.notes))


def _problems(report: AuditReport) -> Table:
    batch = (
        f"{report.prompts_per_update} prompts per update" if report.prompts_per_update > 1 else "1 prompt per update"
    )
    table = _table(
        f"E[gradient] against grad J, {report.sampler}, groups of {report.group_size}, {batch}",
        words("problem"),
        *(_numbers(heading) for heading in ("relative bias", "scale", "after scale", "cosine", "variance")),
        numbers("of each step", whole=False, max_width=16),
        _numbers("x forwards"),
    )
    for measured in report.measured:
        bias = short_number(measured.relative_bias)
        if measured.relative_bias is None:
            bias = f"grad J = 0, |E g| = {short_number(measured.mean_norm)}"
        if measured.interval is not None:
            low, high = (short_number(end) for end in measured.interval)
            bias += f" [{low}, {high}], {measured.groups} groups drawn"
        table.add_row(
            _described(measured.problem),
            Text(bias),
            four_decimals(measured.scale),
            short_number(measured.relative_bias_after_scale),
            four_decimals(measured.cosine),
            short_number(measured.variance),
            _step_variance(measured),
            short_number(measured.cost),
        )
    return table


def _described(problem: Problem) -> Text:
    blocks = f", blocks of {problem.block_length}" if problem.block_length else ""
    prompts = f", {problem.prompts} prompts" if problem.prompts > 1 else ""
    eos = ", eos" if problem.eos else ""
    sizes = f"V={problem.vocab} L={problem.length}, {problem.tokens_per_step}/step{blocks}{prompts}{eos}"
    return Text(f"{sizes}, {problem.policy}, {problem.reward}")


def _step_variance(measured: Measured) -> str:
    return "" if measured.step_variance is None else " ".join(f"{value:.1g}" for value in measured.step_variance)


def _causes(causes: Iterable[Attribution]) -> Table:
    table = _table(
        "Causes: relative bias of each one alone among exact components, and of the recipe without it",
        words("component"),
        words("cause"),
        *(_numbers(heading) for heading in ("alone", "after scale", "without", "after scale")),
    )
    for cause in causes:
        spreads = (cause.alone, cause.alone_after_scale, cause.without, cause.without_after_scale)
        text = f"{cause.cause} ({cause.note})" if cause.note else cause.cause
        table.add_row(cause.component, Text(text), *(short_number(spread.mean) for spread in spreads))
    return table


def _regularisers(audits: Mapping[str, RegulariserAudit]) -> Table:
    table = _table(
        "Regularisers, no part of the above: bias against the gradient of KL(policy || reference)",
        words("regulariser"),
        _numbers("of grad J"),
        _numbers("relative bias"),
        words("its expected gradient is"),
    )
    for name, audit in audits.items():
        table.add_row(name, short_number(audit.size), short_number(audit.relative_bias), Text(audit.words))
    return table


def _numbers(heading: str) -> Column:
    return numbers(heading, whole=False)


def _table(title: str, *columns: Column) -> Table:
    return plain_table(*columns, title=title, box=SIMPLE)
