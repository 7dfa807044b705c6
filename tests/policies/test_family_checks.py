"""Every family of the kit passes the checks that plugin families are held to."""

from __future__ import annotations

from support.family_cases import CASES

from dlmrl_kit.testing.families import FamilyCheck, parametrize_with_family_checks
from dlmrl_kit.testing.family_case import FamilyCase


@parametrize_with_family_checks(CASES)
def test_family(case: FamilyCase, check: FamilyCheck) -> None:
    check(case)
