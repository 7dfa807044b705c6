"""What loss and regularisers know of single denoising steps: sums that add up to the metrics, whatever the cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.runs import new_run, perturb, prepared, recipe, rollout

from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.training import train
from dlmrl_kit.training.gradient import Totals
from dlmrl_kit.training.update_lines import STEPS, read_lines

thorough = pytest.mark.thorough
RATIOS = ("ratio", "clip_fraction", "approx_kl")
TERMS = {
    "StepPPO": ("egspo_sa", ["regulariser=KLK1+TokenKLK3"]),
    "TokenPPO": ("egspo_sa", ["loss=TokenPPO"]),
    "ConfidenceTokenPPO": ("egspo_sa", ["loss=ConfidenceTokenPPO"]),
    "TokenAdvantagePPO": ("tracerl_value", []),
    "LinearisedBound": ("bgpo", []),
}


@pytest.mark.parametrize("label", ["StepPPO", *(pytest.param(name, marks=thorough) for name in list(TERMS)[1:])])
def test_sums_by_step_add_up_to_the_metrics(tmp_path: Path, label: str) -> None:
    name, uses = TERMS[label]
    keeps_all = ["SuccessRange.low = 0.0", "SuccessRange.high = 1.0"] if label == "TokenAdvantagePPO" else []
    run = new_run(tmp_path, name, uses=uses, sets=["Trainer.micro_batch_size = 4", *keeps_all])
    trajectory = prepared(run.update, rollout(run))
    perturb(run.policy)
    totals = Totals()
    run.update.gradient.accumulate(trajectory.copy(), totals)
    means = totals.means()
    assert means["ratio_max"] > 1.01
    for metric in RATIOS:
        values, numbers = totals.by_step[metric]
        assert float(values.sum() / numbers.sum()) == pytest.approx(means[metric], rel=1e-5, abs=1e-7), metric
    used = trajectory["selected", "weight"] != 0
    counted = torch.zeros(trajectory["step", "valid"].shape[1], dtype=torch.float64)
    units = trajectory["selected", "token_mask"].sum(-1) if label.endswith("TokenPPO") else torch.ones_like(used).long()
    if label != "TokenAdvantagePPO":
        counted.index_add_(0, trajectory["selected", "step"][used], units[used].double())
        assert torch.equal(totals.by_step["ratio"][1], counted)


def test_each_step_has_its_own_numbers(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    trajectory = prepared(run.update, rollout(run))
    perturb(run.policy)
    totals = Totals()
    run.update.gradient.accumulate(trajectory.copy(), totals)
    scored = trajectory.copy()
    with torch.no_grad():
        run.algorithm.likelihood(scored, policy=run.policy, sampler=run.algorithm.sampler)
    new, old, ref = (scored["selected", f"{which}log_prob"] for which in ("", "old_", "ref_"))
    used, step = scored["selected", "weight"] != 0, scored["selected", "step"]
    for number in range(scored["step", "valid"].shape[1]):
        mine = used & (step == number)
        sums = {name: values[:, number].tolist() for name, values in totals.by_step.items()}
        assert sums["ratio"] == pytest.approx([float((new - old).exp()[mine].sum()), int(mine.sum())], rel=1e-5)
        k3 = (ref - new).exp() - 1 - (ref - new)
        assert sums["kl"] == pytest.approx([float(k3[mine].sum()), int(mine.sum())], rel=1e-4, abs=1e-6)


def test_a_run_keeps_them_over_all_its_optimiser_steps(tmp_path: Path) -> None:
    train(recipe(sets=["Trainer.updates = 2", "Trainer.inner_iterations = 3"]), tmp_path / "run")
    metrics = read_metrics(tmp_path / "run")
    for entry in read_lines(tmp_path / "run" / STEPS):
        shares = entry["selected"]  # all samples have all steps, so these are in proportion to the numbers
        for name in RATIOS:
            known = [(value, share) for value, share in zip(entry[name], shares, strict=True) if value is not None]
            assert [value is None for value in entry[name]] == [share == 0 for share in shares]
            mean = sum(value * share for value, share in known) / sum(share for _, share in known)
            assert mean == pytest.approx(dict(metrics[name])[entry["update"]], rel=2e-3, abs=1e-6)


@thorough
@pytest.mark.parametrize("name", ["espo", "gdpo", "spg"])
def test_whole_completions_have_none(tmp_path: Path, name: str) -> None:
    run = new_run(tmp_path, name)
    totals = Totals()
    run.update.gradient.accumulate(prepared(run.update, rollout(run)), totals)
    assert not set(RATIOS) & set(totals.by_step)
