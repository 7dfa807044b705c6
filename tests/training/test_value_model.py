"""Runs with a value model: resumed, and trained in pieces at their own rate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import collect, new_run, outcome, prepared, recipe
from torch import Tensor

from dlmrl_kit.training.gradient import Gradient, LogProbs, Totals
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.runs import resume, train

EASY = ["Trainer.updates = 2", "SuccessRange.low = 0.0", "SuccessRange.high = 1.0", "Trainer.learning_rate = 0.001"]


@pytest.mark.parametrize("name", ["tracerl", "tracerl_value"])
def test_a_killed_run_resumes_bit_for_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(recipe(name, EASY), tmp_path / "whole")
    update = Run.step

    def killed(self: Run, number: int) -> None:
        if number == 1:
            raise KeyboardInterrupt
        update(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(name, EASY), tmp_path / "killed")
    resumed = resume(tmp_path / "killed")
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "killed")
    stored = [result.model / "components.safetensors" for result in (whole, resumed)]
    assert [path.exists() for path in stored] == [name == "tracerl_value"] * 2
    if name == "tracerl_value":
        assert stored[0].read_bytes() == stored[1].read_bytes()
        assert load_file(stored[0])["component:TokenValue.head.weight"].abs().max() > 0


def test_values_are_trained_with_their_own_rate_in_pieces_too(tmp_path: Path) -> None:
    """Pieces of a few segments give the same gradients of policy and head as whole samples."""
    run = new_run(tmp_path / "run", "tracerl_value", [*EASY, "TokenValue.learning_rate = 0.25"])
    (head,) = [p for name, p in run.parameters.items() if name.startswith("component:")]
    rates = {group["lr"] for group in run.update.optimiser.param_groups for p in group["params"] if p is head}
    assert rates == {0.25}
    trajectory = collect(run, 0).kept
    prepared(run.update, trajectory)

    def gradient(budget: int | None) -> Tensor:
        size = run.trainer.micro_batch_size
        log_probs = LogProbs(
            run.algorithm, run.update.plan, run.policy, micro_batch_size=size, micro_batch_tokens=budget
        )
        run.update.optimiser.zero_grad()
        Gradient(run.algorithm.terms, log_probs).accumulate(trajectory, Totals())
        return torch.cat([p.grad.flatten() for p in run.parameters.values() if p.grad is not None])

    whole, cut = gradient(None), gradient(1)
    assert head.grad is not None
    assert head.grad.abs().max() > 0
    assert torch.allclose(whole, cut, atol=1e-6)
