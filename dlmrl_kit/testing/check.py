"""A conformance check: a function of a component's name and the component, called with a copy that is attached."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from dlmrl_kit.core.component import Component
from dlmrl_kit.testing.core import attempt
from dlmrl_kit.testing.world import world

CheckFunction: TypeAlias = Callable[[str, Any], None]
"""Takes the component's name, for messages, and a component of the kind that the function is for."""


@dataclass(frozen=True)
class Check:
    """A conformance check; call it with a component. ``str(check)`` is its name.

    Args:
        function: raises a ``ConformanceError`` where the component does not pass.
    """

    function: CheckFunction

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.function.__name__

    @property
    def summary(self) -> str:
        """What is checked: the first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().split("\n", 1)[0]

    def __call__(self, component: object) -> None:
        """Checks a copy of the component.

        Raises:
            ConformanceError: it does not pass.
        """
        try:
            subject = copy.deepcopy(component)
        except Exception:  # check_copies reports it; the other checks still tell something
            subject = component
        name = type(component).__name__
        if isinstance(subject, Component):
            attach(name, subject)
        with attempt(name, f"checked by {self.name}", "look at that line; the check asks for no more than a run does"):
            self.function(name, subject)

    def __str__(self) -> str:
        return self.name


def attach(name: str, subject: Component) -> None:
    """Lets a component create the modules that it trains, as a run does when its policy is loaded."""
    fix = "create modules in attach(policy), from its sizes (policy.vocab_size, ...); do nothing else there"
    with torch.random.fork_rng(devices=[]), attempt(name, "attached to a policy", fix):
        torch.manual_seed(0)
        subject.attach(world().policy)
