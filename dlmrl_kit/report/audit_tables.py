"""An audit as tables for the terminal: the verdict, one row per problem, per cause, per regulariser."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dlmrl_kit.audit.measure import Measured
from dlmrl_kit.audit.regularisers import RegulariserAudit
from dlmrl_kit.audit.report import Attribution, AuditReport


def page(report: AuditReport) -> RenderableType:
    """Everything a person needs to judge the recipe."""
    parts: list[RenderableType] = [Text(f"{report.recipe}: {report.verdict}", style="bold"), _problems(report)]
    if report.attribution:
        parts.append(_causes(report.attribution))
    if report.regularisers:
        parts.append(_regularisers(report.regularisers))
    parts += [Text(f"note: {note}", style="dim") for note in report.notes]
    return Group(*parts)


def _problems(report: AuditReport) -> Table:
    title = Text(f"E[gradient] against grad J, {report.sampler}, groups of {report.group_size}")
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("problem")
    names = ("relative bias", "scale", "after scale", "cosine", "variance", "of each step", "x forwards")
    for name in names:
        table.add_column(name, justify="right", max_width=16 if name == "of each step" else None)
    for measured in report.measured:
        table.add_row(*_row(measured))
    return table


def _row(m: Measured) -> list[str]:
    p = m.problem
    blocks = f", blocks of {p.block_length}" if p.block_length else ""
    prompts = f", {p.prompts} prompts" if p.prompts > 1 else ""
    eos = ", eos" if p.eos else ""
    name = f"V={p.vocab} L={p.length}, {p.tokens_per_step}/step{blocks}{prompts}{eos}, {p.policy}, {p.reward}"
    bias = number(m.relative_bias)
    if m.interval is not None:
        bias += f" [{number(m.interval[0])}, {number(m.interval[1])}], {m.groups} groups drawn"
    steps = "" if m.step_variance is None else " ".join(f"{value:.1g}" for value in m.step_variance)
    return [
        name,
        bias,
        number(m.scale, 4),
        number(m.relative_bias_after_scale),
        number(m.cosine, 4),
        number(m.variance),
        steps,
        number(m.cost),
    ]


def _causes(causes: list[Attribution]) -> Table:
    title = "Causes: relative bias of each one alone among exact components, and of the recipe without it"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for name in ("component", "cause"):
        table.add_column(name)
    for name in ("alone", "after scale", "without", "after scale"):
        table.add_column(name, justify="right")
    for cause in causes:
        spreads = (cause.alone, cause.alone_after_scale, cause.without, cause.without_after_scale)
        words = f"{cause.cause} ({cause.note})" if cause.note else cause.cause
        table.add_row(cause.component, words, *(number(spread.mean) for spread in spreads))
    return table


def _regularisers(audits: dict[str, RegulariserAudit]) -> Table:
    title = "Regularisers, no part of the above: bias against the gradient of KL(policy || reference)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("regulariser")
    for name in ("of grad J", "relative bias"):
        table.add_column(name, justify="right")
    table.add_column("its expected gradient is")
    for name, audit in audits.items():
        table.add_row(name, number(audit.size), number(audit.relative_bias), audit.words)
    return table


def number(value: float | None, digits: int = 2) -> str:
    """Short text of a number; rounding errors as ``< 1e-8``."""
    if value is None:
        return "-"
    if digits == 2 and abs(value) < 1e-8:
        return "< 1e-8"
    if digits == 2 and abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.4f}" if digits == 4 else f"{value:.2g}"
