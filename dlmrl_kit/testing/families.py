"""Conformance checks for families of checkpoints: is a tiny checkpoint in the published layout what it should be?

A ``FamilyCase`` writes such a checkpoint and says what it computes, by code that shares nothing with the family: the
published description in plain torch, or transformers' own forward pass. ``parametrize_with_family_checks`` makes a
pytest case of each family and check; the families of the kit and those of plugins are held to the same list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from dlmrl_kit.testing import family_adapters, family_files, family_numbers
from dlmrl_kit.testing.core import ConformanceError, attempt
from dlmrl_kit.testing.family_case import FamilyCase

if TYPE_CHECKING:
    import pytest

FamilyCheckFunction: TypeAlias = Callable[[str, FamilyCase], None]
"""Takes the case's name, for messages, and the case; raises a ``ConformanceError``."""


@dataclass(frozen=True)
class FamilyCheck:
    """A check of a family; call it with a case. ``str(check)`` is its name."""

    function: FamilyCheckFunction

    def __call__(self, case: FamilyCase) -> None:
        """Checks the case.

        Raises:
            ConformanceError: it does not pass.
        """
        fix = "look at that line; the check asks for no more than training does"
        with torch.random.fork_rng(devices=[]), attempt(case.name, f"checked by {self}", fix):
            torch.manual_seed(0)
            self.function(case.name, case)

    def __str__(self) -> str:
        return self.function.__name__


def family_checks() -> list[FamilyCheck]:
    """Returns the checks that every family is held to."""
    return [FamilyCheck(f) for f in (*family_numbers.CHECKS, *family_files.CHECKS, *family_adapters.CHECKS)]


def check_family(case: FamilyCase) -> None:
    """Runs every check of a family.

    Raises:
        ConformanceError: one or more failed; the message says of each what to change.
    """
    found: dict[str, list[str]] = {}
    for check in family_checks():
        try:
            check(case)
        except ConformanceError as error:
            found.setdefault(str(error), []).append(str(check))
    if found:
        raise ConformanceError("\n\n".join(f"{', '.join(names)}:\n  {text}" for text, names in found.items()))


def parametrize_with_family_checks(
    cases: Iterable[FamilyCase],
    marks: Callable[[FamilyCase, FamilyCheck], Iterable[pytest.MarkDecorator]] = lambda case, check: (),
) -> pytest.MarkDecorator:
    """Returns a pytest decorator: one case per family and check, with the id ``name-check``.

    Use it on a test that takes ``case`` and ``check`` and calls ``check(case)``.

    Args:
        cases: the families.
        marks: gives the marks of a case, such as that of slow tests.
    """
    import pytest

    pairs = [(case, check) for case in cases for check in family_checks()]
    params = [pytest.param(case, check, id=f"{case}-{check}", marks=list(marks(case, check))) for case, check in pairs]
    return pytest.mark.parametrize(("case", "check"), params)
