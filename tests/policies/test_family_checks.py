"""Every family of the kit passes the checks that plugin families are held to; a broken one fails, and says of what."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from support.checkpoints import MASKED
from support.family_cases import CASES

from dlmrl_kit.testing.families import FamilyCheck, parametrize_with_family_checks
from dlmrl_kit.testing.family_case import FamilyCase

OF_EVERY_KIND = ("recognised", "logits", "left_padding", "asked_positions", "round_trip")
"""Checks of masked language models that depend on their kind most."""


def marks(case: FamilyCase, check: FamilyCheck) -> Iterable[pytest.MarkDecorator]:
    """The default run takes every check of the families, and of variants and kinds what differs most."""
    name = str(check).removeprefix("check_")
    rest = case.name in MASKED[1:] and name not in OF_EVERY_KIND
    slow = name == "every_tensor_counts" and case.name not in ("llada", "llada2", "sdar_moe", "dream", "bert")
    again = (
        case.name in ("llada grouped", "llada2 variant", "qwen2", "qwen3", "qwen3_moe") and name not in OF_EVERY_KIND
    )
    large = case.name == "diffusion_gemma" and name == "adapter"  # and test_encoder_and_decoder_share_the_adapter
    return [pytest.mark.thorough] if rest or slow or again or large else []


@parametrize_with_family_checks(CASES, marks)
def test_family(case: FamilyCase, check: FamilyCheck) -> None:
    check(case)
