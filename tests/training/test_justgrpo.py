"""JustGRPO's loss as its release computes it, token by token, and what the recipe's gradient is beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.runs import new_run, prepared, rollout
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.training.loop import Run

SETS = [
    "Trainer.prompts_per_update = 3",
    "Trainer.group_size = 4",
    "Trainer.minibatches = 1",
    "Sampler.tokens_per_step = 1",
    "Sampler.temperature = 1.0",
]


def released(run: Run, batch: TensorDictBase) -> Tensor:
    """The release's loss (logprob_loss in grpo.py): L passes, each over the token at t, future positions masked.

    The sum over all tokens is divided by L and by the number of samples whose advantage is not 0. The release trains
    what follows the end of text too, which this leaves out, and knows no forbidden tokens.
    """
    policy, ids = run.policy, batch["completion_ids"]
    advantage, total = batch["advantage"], torch.zeros((), dtype=torch.float64)
    length = ids.shape[1]
    for t in range(length):
        state = torch.where(torch.arange(length) < t, ids, policy.mask_id)
        asked = torch.zeros_like(batch["prompt_mask"][:, :1]).repeat(1, batch["prompt_mask"].shape[1] + length)
        asked[:, batch["prompt_mask"].shape[1] + t] = True
        mask = torch.cat([batch["prompt_mask"], torch.ones_like(state, dtype=torch.bool)], dim=1)
        logits = policy(torch.cat([batch["prompt_ids"], state], dim=1), mask, asked)
        logits = logits.index_fill(-1, torch.tensor(policy.forbidden_ids), -torch.inf)
        log_prob = logits.log_softmax(-1).gather(-1, ids[:, t : t + 1]).squeeze(-1)
        ratio = (log_prob - log_prob.detach()).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        drawn = batch["commit_step"][:, t] < batch["step", "valid"].shape[1]
        total = total - torch.where(drawn, surrogate, 0.0).sum()
    return total / length / (advantage != 0).sum()


@pytest.mark.parametrize("equal_groups", [0, 1])
def test_the_gradient_is_the_length_times_the_share_of_unequal_samples_times_the_released(
    equal_groups: int, tmp_path: Path
) -> None:
    run = new_run(tmp_path, "justgrpo", sets=SETS)
    run.policy.double()
    trajectory = rollout(run)
    batch = next(iter(run.update.minibatches(prepared(run.update, trajectory), 0)))
    noise = torch.randn(len(batch), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group = torch.unique(batch["group"], return_inverse=True)[1]
    batch["advantage"] = noise.masked_fill(group < equal_groups, 0.0)
    batch["selected", "advantage"] = batch["advantage"][:, None].expand_as(batch["selected", "weight"]).clone()
    live = run.update.log_probs.live(batch.copy())
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, run.update.parameters)])
        for loss in (run.algorithm.loss(live)["loss_objective"], released(run, batch))
    ]
    size, unequal = len(batch), int((batch["advantage"] != 0).sum())
    length = batch["completion_ids"].shape[1]
    assert unequal == size - 4 * equal_groups
    assert gradients[0].norm() > 1e-3
    error = gradients[0] - length * unequal / size * gradients[1]
    assert float(error.norm() / gradients[0].norm()) < 1e-6  # rotary positions are in float32
