"""Components that are called by hand say what they miss, and who writes it."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from dlmrl_kit.advantages import GroupMean
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.errors import MissingKeyError, UserError
from dlmrl_kit.losses import StepPPO
from dlmrl_kit.rollout.rewards import FinalReward, SelectedReward
from dlmrl_kit.samplers import LowConfidence
from dlmrl_kit.selectors import EntropyTopK


def having(component: Component, *missing: object) -> TensorDict:
    return TensorDict({key: torch.ones(2, 3, dtype=torch.long) for key in component.in_keys if key not in missing}, [2])


@pytest.mark.parametrize(
    ("component", "key", "says"),
    [
        (
            SelectedReward(),
            ("step", "greedy_ids"),
            r"not asked for: call what writes it \(MaskSampler, .*keys=\[\('step'",
        ),
        (
            EntropyTopK(2, distribution="model"),
            ("step", "model_entropy"),
            r"MaskSampler.*keys=\[\('step', 'model_entropy'",
        ),
        (StepPPO(), ("selected", "old_log_prob"), r"is \('selected', 'log_prob'\) as the likelihood wrote it before"),
        (StepPPO(), ("selected", "advantage"), r"GroupAdvantage.*keys=\[\('selected', 'advantage'\)\]"),
        (FinalReward(), "example", "no component before it has written it"),
    ],
)
def test_a_key_that_is_missing_is_named_with_who_writes_it(component: Component, key: object, says: str) -> None:
    services = {"score": lambda ids, example: torch.zeros(len(ids))} if "score" in component.requires else {}
    with pytest.raises(MissingKeyError, match=says) as caught:
        component(having(component, key), **services)
    assert str(caught.value).startswith(f"{type(component).__name__} reads {key!r}, ")
    assert isinstance(caught.value, UserError)


def test_what_an_asked_key_needs_is_missing_too() -> None:
    trajectory = TensorDict({"reward": torch.zeros(2), "group": torch.zeros(2, dtype=torch.long)}, [2])
    with pytest.raises(MissingKeyError, match=r"GroupMean reads \('selected', 'weight'\)"):
        GroupMean()(trajectory, keys=[("selected", "advantage")])


def test_a_service_that_is_not_given_is_named() -> None:
    with pytest.raises(TypeError, match=r"LowConfidence needs policy= \(the current denoiser"):
        LowConfidence(4)(having(LowConfidence(4)))


def test_other_key_errors_stay_what_they_are() -> None:
    class Loses(Component):
        in_keys = ()

        def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
            return {"a": tensordict}["b"]

    with pytest.raises(KeyError, match="b") as caught:
        Loses()(TensorDict({}, [2]))
    assert not isinstance(caught.value, MissingKeyError)
