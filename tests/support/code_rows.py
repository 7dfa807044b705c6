"""Rows in the published formats of code tasks, each of another function; and completions as models write them."""

from __future__ import annotations

from typing import Any


def human_eval_row(n: int) -> dict[str, Any]:
    return {
        "task_id": f"HumanEval/{n}",
        "prompt": f"import math\n\ndef helper(x):\n    return x + {n}\n\n"
        f'def add{n}(x: int) -> int:\n    """ Add {n}. """\n',
        "entry_point": f"add{n}",
        "canonical_solution": f"    return x + {n}\n",
        "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert True, 'always'\n"
        f"    assert candidate(1) == {n + 1}\n    assert candidate(5) == helper(5), 'by the helper'\n",
    }


def mbpp_row(n: int) -> dict[str, Any]:
    return {
        "source_file": "x.ipynb",
        "task_id": n,
        "prompt": f"Write a function to add {n}.",
        "code": f"def add{n}(x):\r\n    return x + {n}",
        "test_imports": ["import math"],
        "test_list": [f"assert add{n}(1) == {n + 1}", f"assert math.isclose(add{n}(0.5), {n + 0.5})"],
    }


def kodcode_row(n: int) -> dict[str, Any]:
    return {
        "version": "v1.0",
        "style": "instruct",
        "subset": "Prefill",
        "question_id": f"Prefill_{n}_I",
        "question": f"Write a function that adds {n} to a number and refuses text.",
        "solution": f"def add(x):\n    if isinstance(x, str):\n        raise TypeError('text')\n    return x + {n}",
        "test": "import pytest\nfrom solution import add\n\n"
        f"def test_add():\n    assert add(1) == {n + 1}\n    assert add(0.5) == pytest.approx({n + 0.5})\n\n"
        "def test_text():\n    with pytest.raises(TypeError):\n        add('a')\n",
        "test_info": [
            {"docstring": "", "function_declaration": "def add(x):", "function_name": "add", "parameter_list": "(x)"}
        ],
    }


def answered(program: str) -> str:
    """A completion behind ``<reasoning>`` with the program where it should be."""
    return f"easy\n</reasoning>\n<answer>\n```python\n{program}\n```\n</answer>\n"
