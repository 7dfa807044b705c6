"""Parts of a gradient by denoising step, against the whole gradient and against exact expectations."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from support.runs import new_run, prepared, rollout
from torch import Tensor, nn

from dlmrl_kit.algorithm.algorithm import GradientEstimator, Swaps
from dlmrl_kit.audit.estimator import moments
from dlmrl_kit.audit.measure import Ground
from dlmrl_kit.audit.on_problem import OnProblem
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.audit.sizes import shrunk
from dlmrl_kit.experiments.step_gradients import GradientMoments, StepGradients, chance_ratio
from dlmrl_kit.training.gradient import Gradient, Totals

thorough = pytest.mark.thorough


def flat(parameters: list[nn.Parameter]) -> Tensor:
    """The gradients as one vector, which are cleared."""
    found = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    for p in parameters:
        p.grad = None
    return found


@pytest.mark.parametrize(
    "name",
    [
        "egspo_sa",
        *(pytest.param(name, marks=thorough) for name in ("espo", "dmpo", "rspo", "grpo_steps", "agrpo", "justgrpo")),
        *(pytest.param(name, marks=thorough) for name in ("dultra", "d1", "d2_stepmerge", "stable_drl", "spg")),
    ],
)
def test_the_parts_of_all_steps_are_the_gradient(tmp_path: Path, name: str) -> None:
    run = new_run(tmp_path, name, ["Trainer.micro_batch_size = 4"])
    update = run.update
    batch = prepared(update, rollout(run))
    batch.pop("later_passes", None)
    Gradient([run.algorithm.loss], update.log_probs).accumulate(batch.copy(), Totals())
    whole = flat(update.parameters)
    assert whole.norm() > 1e-6
    parts = StepGradients(run.algorithm.loss, update.log_probs, batch)
    parts.backward()
    torch.testing.assert_close(flat(update.parameters), whole, atol=1e-6 * float(whole.norm()), rtol=1e-4)
    found = []
    for step in range(batch["step", "valid"].shape[1]):
        parts.backward(step)
        found.append(flat(update.parameters))
    torch.testing.assert_close(torch.stack(found).sum(0), whole, atol=1e-6 * float(whole.norm()), rtol=1e-4)
    starts = {int(s) for s in batch["selected", "step"][batch["selected", "weight"] != 0]}
    assert {step for step, part in enumerate(found) if part.norm() > 0} <= starts


@pytest.mark.parametrize("loss", ["StepPPO", pytest.param("SequencePPO", marks=thorough)])
def test_expected_parts_are_those_that_the_audit_computes(tmp_path: Path, loss: str) -> None:
    """Every pair of trajectories of a small problem is a batch; their probabilities make expectations of the parts."""
    algorithm = new_run(tmp_path, "grpo_steps", uses=[f"loss={loss}"]).algorithm
    problem = Problem(vocab=2, length=2, seed=3)
    estimator, _ = shrunk(GradientEstimator(**(algorithm.fillings | Swaps(regulariser=[], filter=[]))), problem)
    ground = Ground(problem, estimator.sampler, 2, 1, 0).prepare()
    small = OnProblem(estimator, problem)
    listed, services = ground.services(small)
    known = moments(small, services, listed, 2)
    assert known.step_mean is not None
    mean, second = torch.zeros_like(known.step_mean), torch.zeros(len(known.step_mean), dtype=torch.float64)
    for one, other in itertools.product(range(len(listed)), repeat=2):
        batch = listed[[one, other]].copy()
        share = float(batch["probability"].prod())
        for stage in small.after_reward:
            batch = services.call(stage.component, batch, stage.keys)
        parts = StepGradients(estimator.loss, small.log_probs, small.fixed(batch))
        for step in range(len(mean)):
            parts.backward(step)
            gradient = -flat(small.parameters.all)
            mean[step] += share * gradient
            second[step] += share * float(gradient @ gradient)
    assert mean.norm() > 1e-3
    torch.testing.assert_close(mean, known.step_mean, atol=1e-12, rtol=1e-9)
    assert known.step_second is not None
    torch.testing.assert_close(second, known.step_second, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("batches", [2, 3])
def test_signal_and_noise_are_right_on_average(batches: int) -> None:
    """Over all samples of a law of three gradients, none of whose samples have a negative estimate of the signal."""
    law = torch.tensor([[2.0, 1.0, 0.5], [1.0, 2.0, 0.0], [3.0, 0.5, 1.0]], dtype=torch.float64)
    mean = law.mean(0)
    squares, noises, norms = [], [], []
    for drawn in itertools.product(law, repeat=batches):
        parameters = [nn.Parameter(torch.zeros(2, dtype=torch.float64)), nn.Parameter(torch.zeros(1).double())]
        found = GradientMoments(parameters)
        for gradient in drawn:
            parameters[0].grad, parameters[1].grad = gradient[:2].clone(), gradient[2:].clone()
            found.take()
            assert all(p.grad is None for p in parameters)
        squares.append(found.signal**2)
        noises.append(found.noise**2)
        norms.append(found.norm**2)
    assert min(squares) > 0
    number = len(squares)
    assert math.fsum(squares) / number == pytest.approx(float(mean @ mean))
    assert math.fsum(noises) / number == pytest.approx(float((law - mean).square().sum() / 3))
    assert math.fsum(norms) / number == pytest.approx(float(law.square().sum() / 3))


def test_no_gradient_is_no_signal() -> None:
    parameter = nn.Parameter(torch.ones(3))
    found = GradientMoments([parameter])
    found.take()
    found.take()
    assert (found.norm, found.signal, found.noise, found.ratio) == (0, 0, 0, None)


@pytest.mark.parametrize(("batches", "size"), [(3, 1), (16, 1), (16, 4)])
def test_chance_exceeds_its_bound_in_five_of_a_hundred(batches: int, size: int) -> None:
    draws = torch.randn(40_000, batches, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total, second = draws.sum(1).square().sum(-1), draws.square().sum((1, 2))
    signal = ((total - second) / (batches * (batches - 1))).clamp(min=0)
    noise = (second - total / batches) / (batches - 1)
    share = float(((signal / noise).sqrt() > chance_ratio(batches)).double().mean())
    assert share == pytest.approx(0.05, abs=0.004) if size == 1 else share < 0.05
