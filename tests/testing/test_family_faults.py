"""Families that are wrong fail the check that is for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.family_cases import CASES
from torch import Tensor

from dlmrl_kit.policies.added_families import add_family, added_families, keep_families
from dlmrl_kit.policies.families.base import Family
from dlmrl_kit.policies.families.dream import Dream
from dlmrl_kit.policies.families.llada import LLaDA
from dlmrl_kit.policies.families.llada2 import LLaDA2
from dlmrl_kit.policies.layout import Layout
from dlmrl_kit.policies.routers import BlockCausalExpertsPolicy
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.testing import ConformanceError
from dlmrl_kit.testing.families import FamilyCheck, check_family, family_checks


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    before = added_families()
    yield
    keep_families(before)


class Unshifted(Dream):
    def model_config(self, *given: Any) -> Any:
        settings = super().model_config(*given)
        settings.shift_logits = False
        return settings


class Causal(LLaDA):
    def model_config(self, *given: Any) -> Any:
        settings = super().model_config(*given)
        settings.is_causal = True
        return settings


class SeesPadding(TransformersPolicy):
    def hidden_at(self, input_ids: Tensor, attention_mask: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return super().hidden_at(input_ids, torch.ones_like(attention_mask), row, column)


class Padded(LLaDA):
    policy_class = SeesPadding


class Forgetful(Dream):
    def layout(self, folder: str, config: Any) -> Layout | None:
        return None


class Endless(LLaDA):
    def ends(self, *given: Any) -> tuple[int, ...]:
        return (5,)


class Lenient(LLaDA):
    unused = (r".",)


class EveryHead(TransformersPolicy):
    def hidden_at(self, input_ids: Tensor, attention_mask: Tensor, row: Tensor, column: Tensor) -> Tensor:
        states = self.hidden(input_ids, attention_mask)
        self.head(states)
        return states[row, column]


class Wasteful(LLaDA):
    policy_class = EveryHead


class NeverFinished(BlockCausalExpertsPolicy):
    """Caches the keys of blocks that are still being denoised."""

    def hidden_at(self, input_ids: Tensor, attention_mask: Tensor, row: Tensor, column: Tensor) -> Tensor:
        if self._cache is not None and not torch.is_grad_enabled():
            self._cache.block_size = 1
        return super().hidden_at(input_ids, attention_mask, row, column)


class Stale(LLaDA2):
    policy_class = NeverFinished


@pytest.mark.parametrize(
    ("family", "check", "message"),
    [
        (Unshifted, "logits", "gives other logits"),
        (Causal, "logits", "gives other logits"),
        (Padded, "left_padding", "gives other logits under padding"),
        (Forgetful, "round_trip", r"does not write \S+ as it came|saves another"),
        (Endless, "recognised", r"has eos_ids = \(5, 18, 21\), not \(18, 21\)"),
        (Lenient, "every_tensor_counts", "loads a checkpoint of which should be said: 1 tensors are left over"),
        (Wasteful, "asked_positions", "runs its head on"),
        (Stale, "exact_cache", "gives other log-probabilities in a rollout"),
    ],
)
def test_a_fault_fails_the_check_that_is_for_it(family: type[Family], check: str, message: str) -> None:
    case = next(c for c in CASES if issubclass(family, c.family))
    found = next(c for c in family_checks() if str(c) == f"check_{check}")
    found(case)
    add_family(family())
    with pytest.raises(ConformanceError, match=message):
        found(replace(case, family=family))


def test_a_family_of_a_plugin_is_asked_first_and_all_faults_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from dlmrl_kit.testing import families

    monkeypatch.setattr(families, "family_checks", lambda: family_checks()[:3])
    case = next(c for c in CASES if c.name == "llada")
    check_family(case)
    add_family(Causal())
    with pytest.raises(ConformanceError, match=r"check_recognised:\n.*another family\n.*\n\ncheck_logits"):
        check_family(case)


def test_checks_say_what_they_are_for() -> None:
    assert all(isinstance(check, FamilyCheck) and check.function.__doc__ for check in family_checks())
    assert len({str(check) for check in family_checks()}) == len(family_checks())
