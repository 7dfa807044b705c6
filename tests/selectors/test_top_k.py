"""The steps of largest absolute advantage."""

from __future__ import annotations

import math

import pytest
import torch
from support.drafts import step_data
from support.runs import build

from dlmrl_kit.advantages.intermediate_reward import IntermediateReward
from dlmrl_kit.advantages.selected import SelectedAdvantage
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.selectors.top_k import TopAbsoluteAdvantage

# ------------------------------------------------------------------------------------------------ selection


@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_top_absolute_advantage_equals_the_sort(k: int) -> None:
    data = IntermediateReward()(step_data(3))
    advantage, valid = data["step", "advantage"], data["step", "valid"]
    data["step", "advantage"] = advantage.masked_fill(~valid, math.nan)
    found = SelectedAdvantage()(TopAbsoluteAdvantage(k)(data))
    assert found["selected", "weight"].dtype == torch.float64
    for b in range(9):
        n = int(valid[b].sum())
        best = sorted(sorted(range(n), key=lambda t: (-abs(advantage[b, t].item()), t))[:k])
        width = min(k, valid.shape[1])
        pad = width - len(best)
        assert found["selected", "step"][b].tolist() == best + [0] * pad
        assert found["selected", "weight"][b].tolist() == [1.0] * len(best) + [0.0] * pad
        assert found["selected", "advantage"][b].tolist() == [advantage[b, t].item() for t in best] + [0.0] * pad
    for part in data[:4], data[4:]:  # however the batch is cut
        again = TopAbsoluteAdvantage(k)(part.select("step"))["selected", "step"]
        rows = slice(0, 4) if len(part) == 4 else slice(4, 9)
        assert torch.equal(again, found["selected", "step"][rows])


# ------------------------------------------------------------------------------------------------ the recipe


def test_the_selector_needs_an_advantage_of_all_steps() -> None:
    with pytest.raises(RecipeError, match=r"TopAbsoluteAdvantage reads \('step', 'advantage'\).*IntermediateReward"):
        build("egspo", uses=["selector=TopAbsoluteAdvantage"])
