"""docs/torchrl-environment.md runs as written."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.paths import ROOT

PAGE = ROOT / "docs" / "torchrl-environment.md"


@pytest.mark.thorough
def test_the_page_runs_as_written() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
