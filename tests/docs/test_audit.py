"""docs/audit.md: the output it shows is current, and its Python runs."""

from __future__ import annotations

import re

import pytest
from support.paths import ROOT

from dlmrl_kit.cli.audit_page import with_new_outputs


@pytest.mark.thorough
def test_the_documented_output_is_current() -> None:
    text = (ROOT / "docs" / "audit.md").read_text()
    assert with_new_outputs(text) == text


@pytest.mark.thorough
def test_the_documented_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "audit.md").read_text()
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, "audit.md", "exec"), {})
    assert capsys.readouterr().out.startswith("biased")
