"""Mixed precision and checkpoints in half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.runs import model_path, new_run, old_difference, prepared, rollout, weights

from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.saving import save_transformers


@pytest.mark.parametrize("uses", [[], ["loss=TokenPPO", "regulariser=KLExact+EntropyBonus"]], ids=["steps", "tokens"])
def test_mixed_precision_keeps_weights_and_moments_in_float32(uses: list[str], tmp_path: Path) -> None:
    run = new_run(tmp_path, uses=uses, sets=["Trainer.precision = 'bfloat16'", "Trainer.minibatches = 1"])
    dtypes: set[torch.dtype] = set()
    run.policy.model.model.layers[0].mlp.register_forward_hook(lambda *given: dtypes.add(given[2].dtype))
    before = weights(run.policy)
    trajectory = prepared(run.update, rollout(run))
    assert old_difference(run.update, trajectory) < 0.1
    metrics = run.update.learn(trajectory, 0)
    assert dtypes == {torch.bfloat16}
    assert metrics["ratio"] == pytest.approx(1, abs=0.1)
    assert not torch.equal(weights(run.policy), before)
    moments = [value for entry in run.update.optimiser.state.values() for value in entry.values()]
    assert {value.dtype for value in [*moments, *run.policy.parameters()]} == {torch.float32}


@pytest.mark.parametrize("rank", [0, 2])
def test_a_checkpoint_in_half_precision_is_trained_in_float32(rank: int, tmp_path: Path) -> None:
    half = load_policy(model_path())
    half.model.to(torch.bfloat16)
    save_transformers(half, tmp_path / "half")
    sets = [f"Pretrained.path = '{tmp_path / 'half'}'", f"Pretrained.lora_rank = {rank}", "Trainer.minibatches = 1"]
    run = new_run(tmp_path, sets=sets)
    assert {p.dtype for _, p in run.policy.trainable()} == {torch.float32}
    trajectory = prepared(run.update, rollout(run))
    assert old_difference(run.update, trajectory) < (0.1 if rank else 1e-5)
    before = weights(run.policy)
    metrics = run.update.learn(trajectory, 0)
    assert metrics["kl"] == pytest.approx(0, abs=1e-3 if rank else 1e-8)
    assert (weights(run.policy) - before).abs().max() == pytest.approx(0.01, rel=0.01)  # Adam's first step
