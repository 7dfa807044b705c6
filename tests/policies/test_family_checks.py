"""Every family of the kit passes the checks that plugin families are held to; a broken one fails, and says of what."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from support.checkpoints import MASKED
from support.family_cases import CASES

from dlmrl_kit.testing.families import FamilyCheck, parametrize_with_family_checks
from dlmrl_kit.testing.family_case import FamilyCase

NUMBERS = ("recognised", "logits", "left_padding")
"""Checks of what variants of a family and kinds of masked language models differ in most."""

VARIANTS = (
    *MASKED[1:],
    "llada grouped",
    "mmada",
    "a2d_qwen3",
    "stable_diffcoder",
    "llada2 variant",
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
)
REST = ("dream", "fast_dllm", "diffusion_gemma", "bert", "sdar")
"""Families without code of their own for what ``SHARED`` checks."""
SHARED = ("bfloat16", "training", "pieces", "sizes_alone", "eager_attention", "several_ends", "vocabulary")


def marks(case: FamilyCase, check: FamilyCheck) -> Iterable[pytest.MarkDecorator]:
    """The default run leaves out of the whole list what others of its kind have shown."""
    name = str(check).removeprefix("check_")
    rest = case.name in VARIANTS and name not in NUMBERS
    shared = case.name in REST and name in SHARED
    slow = name in ("every_tensor_counts", "what_was_said") and case.name not in ("llada", "llada2", "bert")
    large = name == "adapter" and case.name in ("diffusion_gemma", "fast_dllm", "sdar")
    return [pytest.mark.thorough] if rest or shared or slow or large else []


@parametrize_with_family_checks(CASES, marks)
def test_family(case: FamilyCase, check: FamilyCheck) -> None:
    check(case)
