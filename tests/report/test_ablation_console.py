"""What an ablation looks like in a terminal."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from support.fake_runs import design, fake

from dlmrl_kit.experiments import ablate
from dlmrl_kit.report.ablation_console import RichAblationObserver


@fake
def test_the_display_on_a_terminal(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, highlight=False)
    ablate(design(seeds=1), tmp_path, parallel=1, observer=RichAblationObserver(console))
    shown = screen.getvalue()
    assert "base/seed-0: finished, accuracy 40.0% -> 40.0%" in shown
    assert "3/3" in shown
