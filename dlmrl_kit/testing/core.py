"""What all conformance checks share: the error they raise, and how exceptions of a component become that error."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import NoReturn


class ConformanceError(AssertionError):
    """A component does not keep what the kit relies on; the message says what to change."""


def fail(name: str, problem: str, fix: str) -> NoReturn:
    """Raises a ``ConformanceError``: what the component does, and what to change."""
    raise ConformanceError(f"{name} {problem}\n  To fix it: {fix}")


@contextlib.contextmanager
def attempt(name: str, doing: str, fix: str) -> Iterator[None]:
    """Turns whatever is raised inside into a ``ConformanceError`` that says where it came from."""
    try:
        yield
    except ConformanceError:
        raise
    except Exception as error:  # a component may raise anything
        where = _where(error)
        text = " ".join(str(error.args[0] if error.args else error).split())
        problem = f"raises {type(error).__name__} when {doing}: {text}{where}"
        raise ConformanceError(f"{name} {problem}\n  To fix it: {fix}") from error


def _where(error: BaseException) -> str:
    """Returns where the author should look: the innermost line of theirs, or of the kit's if there is none."""
    foreign = ("/tensordict/", "/torch/", "/torchrl/", "/dlmrl_kit/testing/", "/dlmrl_kit/core/contract.py")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not any(part in f.filename for part in foreign)]
    theirs = [f for f in frames if "/dlmrl_kit/" not in f.filename] or frames
    return f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
