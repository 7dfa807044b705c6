"""docs/audit.md: the output it shows is current, and its Python runs."""

from __future__ import annotations

import re

import pytest
from support.paths import ROOT


def test_the_documented_output_is_current() -> None:
    from dlmrl_kit.audit.__main__ import regenerated

    text = (ROOT / "docs" / "audit.md").read_text()
    assert regenerated(text) == text


def test_the_documented_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "audit.md").read_text()
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, "audit.md", "exec"), {})
    assert capsys.readouterr().out.startswith("biased")
