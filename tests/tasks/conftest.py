"""A module of scorers that misbehave, and a file of examples."""

from __future__ import annotations

import json

import pytest
from support.bad_scorers import functions

__all__ = ["functions"]


@pytest.fixture(scope="module")
def numbers_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "numbers.jsonl"
    lines = [json.dumps({"prompt": f"{n}+{n}=", "answer": str(2 * n), "limit": 4, "n": n}) for n in range(50)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)
