"""What all conformance checks share: the error they raise, and a check as a named function."""

from __future__ import annotations

import contextlib
import copy
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn


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
    """Where the author should look: the innermost line of theirs, or of the kit's components if there is none."""
    foreign = ("/tensordict/", "/torch/", "/torchrl/", "/dlmrl_kit/testing/", "/dlmrl_kit/core/contract.py")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not any(part in f.filename for part in foreign)]
    theirs = [f for f in frames if "/dlmrl_kit/" not in f.filename] or frames
    return f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""


def _attach(name: str, subject: Any) -> None:
    """Lets a component create the modules that it trains, as a run does when its policy is loaded."""
    if not hasattr(subject, "attach"):
        return
    import torch

    from dlmrl_kit.core.component import Component
    from dlmrl_kit.testing.world import world

    if type(subject).attach is Component.attach:
        return

    fix = "create modules in attach(policy), from its sizes (policy.vocab_size, ...); do nothing else there"
    with torch.random.fork_rng(devices=[]), attempt(name, "attached to a policy", fix):
        torch.manual_seed(0)
        subject.attach(world().policy)


CheckFunction = Callable[[str, Any], None]


@dataclass(frozen=True)
class Check:
    """A conformance check; call it with a component.

    ``function``: takes the component's name (for messages) and the component. ``str(check)`` is its name.
    """

    function: CheckFunction

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.function.__name__

    @property
    def summary(self) -> str:
        """What is checked: first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().split("\n", 1)[0]

    def __call__(self, component: Any) -> None:
        """Checks a copy of the component.

        Raises:
            ConformanceError: it does not pass.
        """
        try:
            subject = copy.deepcopy(component)
        except Exception:  # check_copies reports it; the other checks still tell something
            subject = component
        name = type(component).__name__
        _attach(name, subject)
        self.function(name, subject)

    def __str__(self) -> str:
        return self.name
