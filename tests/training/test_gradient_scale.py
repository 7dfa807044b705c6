"""The gradient that an update applies is autograd's of the documented loss, its scale included, for every recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.documented_losses import documented
from support.runs import new_run, perturb, prepared, rollout
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.normalisers.means import FixedLength, FixedStepLength, PerStep, PerToken
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.regularisers.base import Regulariser
from dlmrl_kit.regularisers.kl import TokenKLK3
from dlmrl_kit.regularisers.value_loss import ValueLoss
from dlmrl_kit.report.algorithms_page import training_recipes
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.update import Update

SETS = [
    "Trainer.micro_batch_size = 2",
    "Trainer.minibatches = 1",
    "Trainer.max_grad_norm = 1e12",
    "Trainer.prompts_per_update = 3",
]
MORE = {
    "d_treerpo": ["Trainer.inner_iterations = 1", "SelfDistillation.coefficient = 0.5", "SelfDistillation.tau = 1.0"],
    "lightning_rl": ["SuccessNLL.success = 0.3"],
    "tracerl": ["SuccessRange.low = 0.0", "SuccessRange.high = 1.0"],
    "tracerl_value": ["SuccessRange.low = 0.0", "SuccessRange.high = 1.0"],
    "unigrpo": ["SuccessRange.low = 0.0", "SuccessRange.high = 1.0"],
}
FREE = {"dipo": ["filter=none"], "lightning_rl": ["filter=none"]}


class Recording(torch.optim.SGD):
    """Keeps the gradients that it is asked to apply, and applies none."""

    applied: list[Tensor]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.applied = [p.grad.clone() for p in self.param_groups[0]["params"] if p.grad is not None]


def in_double_precision(folder: Path, name: str, sets: list[str]) -> Run:
    run = new_run(folder, name, uses=FREE.get(name, []), sets=[*SETS, *MORE.get(name, []), *sets])
    run.policy.double()
    for component in run.algorithm.components:
        component.double()
    return run


def minibatch_of(run: Run) -> TensorDictBase:
    """The one minibatch of an update, off-policy, so that ratios, clips and the KL to either policy all count."""
    trajectory = rollout(run)
    if "advantage" in trajectory:
        noise = torch.randn(len(trajectory), generator=torch.Generator().manual_seed(1))
        trajectory.set("advantage", noise.to(trajectory["advantage"]))
    batch = next(iter(run.update.minibatches(prepared(run.update, trajectory), 0)))
    perturb(run.policy, scale=0.02)
    return batch


def applied(run: Run, batch: TensorDictBase) -> list[Tensor]:
    """What the optimiser is given when an update learns from the minibatch, in micro-batches of two samples."""
    optimiser = Recording(run.update.parameters, lr=1.0)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)
    update = Update(run.algorithm, run.update.plan, run.policy, optimiser, scheduler)
    update.minibatches = lambda *_: iter([batch.copy()])  # type: ignore[method-assign]
    update.learn(batch, 0)
    return optimiser.applied


def by_autograd(run: Run, batch: TensorDictBase) -> list[Tensor]:
    loss = documented(run.algorithm.terms, run.update.log_probs.live(batch.copy()))
    found = torch.autograd.grad(loss, run.update.parameters, allow_unused=True)
    return [g for g in found if g is not None]


def check_scale(run: Run) -> None:
    batch = minibatch_of(run)
    assert len(batch) > 2
    found, expected = applied(run, batch), by_autograd(run, batch)
    whole = torch.cat([g.flatten() for g in expected])
    assert whole.norm() > 1e-6
    assert len(found) == len(expected)
    error = torch.cat([g.flatten() for g in found]) - whole
    assert (error.norm() / whole.norm()).item() < 1e-5


@pytest.mark.parametrize("name", training_recipes())
def test_an_update_applies_the_gradient_of_the_documented_loss(name: str, tmp_path: Path) -> None:
    check_scale(in_double_precision(tmp_path, name, []))


@pytest.mark.parametrize("normaliser", ["PerToken", "PerStep", "FixedLength", "FixedStepLength"])
def test_with_every_normaliser_also_where_samples_are_cut(normaliser: str, tmp_path: Path) -> None:
    sets = [f"TokenPPO.normaliser = @{normaliser}()", "Trainer.micro_batch_tokens = 40"]
    check_scale(in_double_precision(tmp_path, "tracerl", sets))


REGULARISED = [name for name in training_recipes() if load_recipe(name).build_algorithm().regularisers]


@pytest.mark.parametrize("name", REGULARISED)
def test_policy_and_kl_share_their_denominator(name: str, tmp_path: Path) -> None:
    run = in_double_precision(tmp_path, name, [])
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
