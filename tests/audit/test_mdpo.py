"""MDPO is audited by samples."""

from __future__ import annotations

from support.runs import build

from dlmrl_kit.audit import Problem, audit_algorithm


def test_its_audit_is_sampled() -> None:
    """Draws that are thrown away are no part of a listed trajectory."""
    report = audit_algorithm(build("mdpo"), problems=[Problem()], attribution=False, batches=20)
    assert not report.exact
    assert any("draft_ids" in note for note in report.notes)
