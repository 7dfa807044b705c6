"""The loss of an update is the one of the formula."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import new_run, perturb, prepared, rollout
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.training.gradient import Totals
from dlmrl_kit.training.loop import Run

ADVANTAGE, WEIGHT = ("selected", "advantage"), ("selected", "weight")


def loop_log_probs(
    policy: TransformersPolicy, run: Run, trajectory: TensorDictBase, temperature: float
) -> dict[Any, Tensor]:
    """log pi of the committed tokens of each selected step (b, k), one unpadded sequence at a time, in float64."""
    found = {}
    for b, k in (trajectory[WEIGHT] > 0).nonzero().tolist():
        t = int(trajectory["selected", "step"][b, k])
        tokens, commit = trajectory["completion_ids"][b].tolist(), trajectory["commit_step"][b].tolist()
        state = [policy.mask_id if c >= t else token for token, c in zip(tokens, commit, strict=True)]
        prompt = trajectory["prompt_ids"][b][trajectory["prompt_mask"][b]].tolist()
        logits = policy.model(input_ids=torch.tensor([prompt + state]), use_cache=False).logits[0, len(prompt) :]
        total = logits.new_zeros(())
        for position in [i for i, c in enumerate(commit) if c == t]:
            row = logits[position].clone()
            row[list(policy.forbidden_ids)] = -torch.inf
            total = total + (row / temperature).log_softmax(-1)[tokens[position]]
        found[b, k] = total
    return found


@pytest.mark.parametrize(
    ("name", "uses", "temperature"),
    [
        ("egspo_sa", [], 1.0),
        ("egspo_sa", ["sampler=EntropyOrder", "likelihood=StepLogProb", "selector=EntropyImportance"], 0.9),
    ],
)
def test_the_loss_is_the_one_of_the_formula(name: str, uses: list[str], temperature: float, tmp_path: Path) -> None:
    sets = ["KLK3.coefficient = 0.3", "StepPPO.clip_low = 0.1", "Trainer.micro_batch_size = 4"]
    run = new_run(tmp_path, name, uses=uses, sets=sets)
    trajectory = prepared(run.update, rollout(run))
    exact = copy.deepcopy(run.policy).double()
    with torch.no_grad():
        old = loop_log_probs(exact, run, trajectory, temperature)
    perturb(run.policy)
    totals = Totals()
    loss = run.update.gradient.accumulate(trajectory, totals)

    exact = copy.deepcopy(run.policy).double().requires_grad_()
    new = loop_log_probs(exact, run, trajectory, temperature)
    rows = trajectory.shape[0]
    expected, clipped, kl = torch.zeros((), dtype=torch.float64), 0, 0.0
    for step, log_prob in new.items():
        advantage, weight = trajectory[ADVANTAGE][step].item(), trajectory[WEIGHT][step].item()
        ratio = (log_prob - old[step]).exp()
        free, bound = ratio * advantage, ratio.clamp(0.9, 1.5) * advantage
        clipped += bool(free > bound)
        k3 = (old[step] - log_prob).exp() - 1 + log_prob - old[step]
        kl += weight * k3.item() / rows
        expected = expected + weight * (-torch.minimum(free, bound) + 0.3 * k3) / rows
    expected.backward()
    assert 0 < clipped < len(new)
    assert kl > 0.01
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    means = totals.means()
    assert means["clip_fraction"] == pytest.approx(clipped / len(new))
    assert means["kl"] == pytest.approx(kl, rel=1e-4)
    for (label, p), (_, q) in zip(run.policy.trainable(), exact.trainable(), strict=True):
        rounding = 1e-5 * q.grad.abs().max().item()  # of float32 sums whose terms are as large as the largest entry
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=rounding, msg=label)
