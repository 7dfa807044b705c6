"""Whether an update applies the gradient of the documented loss: what its optimiser is given, against autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support.documented_losses import documented
from support.runs import new_run, perturb, prepared, rollout
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.update import Update

SETS = [
    "Trainer.micro_batch_size = 2",
    "Trainer.minibatches = 1",
    "Trainer.max_grad_norm = 1e12",
    "Trainer.prompts_per_update = 3",
]


class Recording(torch.optim.SGD):
    """Keeps the gradients that it is asked to apply, and applies none."""

    applied: list[Tensor]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.applied = [p.grad.clone() for p in self.param_groups[0]["params"] if p.grad is not None]


def in_double_precision(folder: Path, name: str, sets: list[str], uses: list[str]) -> Run:
    run = new_run(folder, name, uses=uses, sets=[*SETS, *sets])
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
