"""The gradient that an update applies is autograd's of the documented loss, its scale included, for every recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.gradient_scale import check_scale, in_double_precision, minibatch_of
from support.kit_recipes import kit_recipes

from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.normalisers.means import FixedLength, FixedStepLength, PerStep, PerToken
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.regularisers.base import Regulariser
from dlmrl_kit.regularisers.kl import TokenKLK3
from dlmrl_kit.regularisers.value_loss import ValueLoss
from dlmrl_kit.training.loop import Run

MORE = {
    "lightning_rl": ["SuccessNLL.success = 0.3"],
    "tracerl": ["SuccessRange.low = 0.0", "SuccessRange.high = 1.0"],
    "tracerl_value": ["SuccessRange.low = 0.0", "SuccessRange.high = 1.0"],
    "unigrpo": ["SuccessRange.low = 0.0", "SuccessRange.high = 1.0"],
}
FREE = {"dipo": ["filter=none"], "lightning_rl": ["filter=none"]}


def run_of(folder: Path, name: str, sets: list[str]) -> Run:
    return in_double_precision(folder, name, [*MORE.get(name, []), *sets], FREE.get(name, []))


@pytest.mark.parametrize("name", kit_recipes())
def test_an_update_applies_the_gradient_of_the_documented_loss(name: str, tmp_path: Path) -> None:
    check_scale(run_of(tmp_path, name, []))


@pytest.mark.parametrize("normaliser", ["PerToken", "PerStep", "FixedLength", "FixedStepLength"])
def test_with_every_normaliser_also_where_samples_are_cut(normaliser: str, tmp_path: Path) -> None:
    sets = [f"TokenPPO.normaliser = @{normaliser}()", "Trainer.micro_batch_tokens = 40"]
    check_scale(run_of(tmp_path, "tracerl", sets))


REGULARISED = [name for name in kit_recipes() if load_recipe(name).build_algorithm().regularisers]


@pytest.mark.parametrize("name", REGULARISED)
def test_policy_and_kl_share_their_denominator(name: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, name, [])
    kls = [t for t in run.algorithm.regularisers if isinstance(t, Regulariser) and not isinstance(t, ValueLoss)]
    batch = run.update.log_probs.live(minibatch_of(run))
    for term in kls:
        assert float(term.count(batch)) == pytest.approx(float(run.algorithm.loss.count(batch)), rel=1e-12), term


@pytest.mark.parametrize("make", [PerToken, PerStep, FixedLength, FixedStepLength])
@pytest.mark.parametrize("term", [TokenKLK3, ValueLoss])
def test_a_regulariser_takes_the_denominator_of_the_loss_unless_it_is_given_one(
    make: Callable[[], Any], term: Callable[..., Any]
) -> None:
    loss = TokenPPO(normaliser=make())
    shared = term().beside(loss)
    assert shared.average is loss.average
    assert shared.segmentwise == loss.segmentwise
    own = term(normaliser=FixedLength(3))
    assert own.beside(loss) is own
