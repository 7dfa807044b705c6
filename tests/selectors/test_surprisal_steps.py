"""Surprising steps: probabilities against a loop, the segments they stand for, and how often each is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from support.runs import build, new_run, prepared, rollout
from support.seeds import seeded
from support.selector_batches import COMMITTED, STEP, WEIGHT, trajectory
from tensordict import TensorDict

from dlmrl_kit.selectors.surprisal_steps import SurprisalSteps

ROWS = [[-0.5, -4.0, -0.1, -2.0], [-3.0], [-1.0, -1.0]]


def with_log_probs(rows: list[list[float]], times: int = 1) -> TensorDict:
    """Trajectories whose steps have these log-probabilities of all their tokens; NaN past the end."""
    data = trajectory(rows * times, spare=1, dtype=torch.float64)
    for name in ("token_log_prob", "model_log_prob"):
        data["step", name] = data["step", "entropy"].clone()
    return seeded(data)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("distribution", ["behaviour", "model"])
def test_probabilities_equal_a_loop(temperature: float, distribution: str) -> None:
    data = with_log_probs(ROWS)
    name = "token_log_prob" if distribution == "behaviour" else "model_log_prob"
    data["step", "model_log_prob"] = data["step", "model_log_prob"] / 2
    selector = SurprisalSteps(2, temperature, distribution)  # type: ignore[arg-type]
    q = selector.probabilities(data)
    for i, row in enumerate(ROWS):
        mass = []
        for t in range(len(row)):
            mean = data["step", name][i, t].item() / data[COMMITTED][i, t].item()
            mass.append(math.exp(-mean / temperature))
        expected = [m / sum(mass) for m in mass] + [0.0] * (q.shape[1] - len(row))
        assert q[i].tolist() == pytest.approx(expected, rel=1e-12)


def test_draws_have_these_frequencies_and_weight_one_over_k() -> None:
    times = 2000
    data = with_log_probs(ROWS[:1], times)
    selector = SurprisalSteps(3)
    found = selector(data, keys=[("selected", "end")])
    assert found[WEIGHT].tolist() == [[1 / 3] * 3] * times
    assert found["selected", "end"].tolist() == [[4] * 3] * times
    share = torch.bincount(found[STEP].flatten(), minlength=4)[:4] / found[STEP].numel()
    q = selector.probabilities(data)[0, :4]
    assert (share - q).abs().max() < 4 * math.sqrt(0.25 / found[STEP].numel())
    assert (found[STEP].diff(dim=-1) >= 0).all()


def test_outcomes_are_all_draws() -> None:
    data = with_log_probs(ROWS)
    selector = SurprisalSteps(2)
    q = selector.probabilities(data)
    total = torch.zeros(len(ROWS), dtype=torch.float64)
    for step, weight, probability in selector.outcomes(data):
        total += probability
        assert weight.tolist() == [[0.5, 0.5]] * len(ROWS)
        first, second = (q.gather(1, step[:, j : j + 1]).squeeze(1) for j in (0, 1))
        ways = torch.where(step[:, 0] == step[:, 1], 1, 2)
        used = probability > 0
        torch.testing.assert_close(probability[used], (ways * first * second)[used])
    torch.testing.assert_close(total, torch.ones_like(total))


def test_each_draw_scores_all_final_tokens_that_are_still_masked(tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = new_run(tmp_path, "rldf")
    batch = prepared(run.update, rollout(run))
    found = batch["selected", "token_mask"]
    for b, k in (batch[WEIGHT] > 0).nonzero().tolist():
        open_ = batch["commit_step"][b] >= batch[STEP][b, k]
        ended = (batch["completion_ids"][b] == run.policy.eos_id).long()
        counted = (ended.cumsum(-1) - ended == 0) & (batch["commit_step"][b] < batch["step", "valid"].shape[1])
        assert torch.equal(found[b, k], open_ & counted)


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("k", 0), ("distribution", "'other'")])
def test_parameters_out_of_range(name: str, value: object) -> None:
    with pytest.raises(Exception, match=rf"SurprisalSteps\.{name} must be .*got"):
        build("rldf", sets=[f"SurprisalSteps.{name} = {value}"])
