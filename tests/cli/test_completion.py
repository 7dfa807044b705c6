"""What the shell completes, as the shell asks for it."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from dlmrl_kit.cli.app import app


def completed(words: str) -> list[str]:
    """Asks as bash does, with the cursor behind the last word."""
    asked = {"_DLMRL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    return CliRunner().invoke(app, [], prog_name="dlmrl", env=asked).stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dlmrl docto", ["doctor"]),
        ("dlmrl train egspo_sa_llada_c", ["egspo_sa_llada_code", "egspo_sa_llada_countdown"]),
        ("dlmrl show EntropyT", ["EntropyTopK"]),
        ("dlmrl show base/egspo_sa_l", ["base/egspo_sa_lora"]),
        ("dlmrl list step", ["step_schedule"]),
        ("dlmrl check egspo --use selec", ["selector="]),
        ("dlmrl check egspo --use selector=Unif", ["selector=UniformSteps"]),
        ("dlmrl train --set UniformSteps.", ["UniformSteps.k="]),
        ("dlmrl train --set UniformSt", ["UniformSteps."]),
        ("dlmrl list nothing", []),
    ],
)
def test_completion(words: str, expected: list[str]) -> None:
    assert completed(words) == expected
