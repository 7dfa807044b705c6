"""What loss and regularisers know of single denoising steps: sums that add up to the metrics, whatever the cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import new_run, perturb, prepared, recipe, rollout
from tensordict import TensorDict

from dlmrl_kit.core.errors import ComponentError
from dlmrl_kit.core.registry import register
from dlmrl_kit.loggers.metrics_csv import read_metrics
from dlmrl_kit.losses.ppo import StepPPO
from dlmrl_kit.regularisers.kl import KLK3
from dlmrl_kit.training import train
from dlmrl_kit.training.gradient import TAKEN, Totals
from dlmrl_kit.training.start import start_training
from dlmrl_kit.training.update import Update
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


ONES = torch.ones(2, 3)
FAULTY: dict[str, tuple[type, str, Any, str]] = {
    "no mapping": (StepPPO, "measures", [ONES], "it should be a mapping"),
    "one tensor": (StepPPO, "measures", {"ratio": ONES}, "a tuple of the sums of 'ratio' and their numbers"),
    "of samples": (StepPPO, "measures", {"ratio": (ONES[:, 0], ONES[:, 0])}, r"it should be .* \[2, 3\]"),
    "of tokens": (StepPPO, "measures", {"ratio": (ONES[..., None], ONES)}, r"it should be .* \[2, 3\]"),
    "another name": (StepPPO, "measures", {"entropy": (ONES, ONES)}, "'entropy', which is not in its out_keys"),
    "no name": (StepPPO, "measures", {3: (ONES, ONES)}, "3, which is not in its out_keys"),
    "values alone": (KLK3, "values", ONES, "a tuple of the values and which of them count"),
    "values of samples": (KLK3, "values", (ONES[:, 0], ONES[:, 0] > 0), r"it should be a tensor of bool \[2, 3\]"),
    "values of another shape": (KLK3, "values", (ONES, ONES[..., None] > 0), r"it should be .* \[2, 3, 1\]"),
    "weights for a mask": (KLK3, "values", (ONES, ONES), "it should be a tensor of bool"),
}


@pytest.mark.usefixtures("registrations_end")
@pytest.mark.parametrize("fault", FAULTY)
def test_a_plugin_that_says_something_else_of_segments_is_named(fault: str) -> None:
    base, method, result, message = FAULTY[fault]

    cls = register("loss" if base is StepPPO else "regulariser")(
        type("Faulty", (base,), {"__module__": __name__, method: lambda self, tensordict: result})
    )
    log_probs = {f"{which}log_prob": torch.zeros(2, 3) for which in ("", "old_", "ref_")}
    batch = TensorDict({"selected": {**log_probs, "weight": ONES, "advantage": ONES}}, [2])
    with pytest.raises(ComponentError, match=rf"Faulty.*{message}"):
        cls().measures(batch)


def test_names_of_the_run_are_not_those_of_a_term(tmp_path: Path) -> None:
    """A regulariser whose mean is called as a number of the run leaves that number alone."""
    names = ["entropy", "selected", "update", "reward", "loss"]
    settings = ["Trainer.updates = 1", "Trainer.inner_iterations = 2"]
    plain, own = (recipe(sets=settings).build_algorithm() for _ in range(2))
    for name in names:
        term = KLK3()
        term.mean_key, term.out_keys = name, [f"loss_{name}", name]
        own.regularisers.append(term)
    plain.regularisers += [KLK3() for _ in names]
    updates = []
    for algorithm in (plain, own):
        update = Update(algorithm, *start_training(algorithm))
        updates.append((update(0), update.by_step))
    (metrics, by_step), (with_own, steps_with_own) = updates
    for name in metrics.keys() & with_own.keys():
        assert with_own[name] == pytest.approx(metrics[name]), name
    assert {f"{name}/2" for name in names} == with_own.keys() - metrics.keys() - {f"loss_{name}" for name in names}
    for name in names:
        assert torch.equal(steps_with_own[f"{name}/2"], by_step["kl"])


def test_all_names_of_a_run_are_taken(tmp_path: Path) -> None:
    train(recipe(sets=["Trainer.updates = 1"]), tmp_path / "run")
    logged = {*read_metrics(tmp_path / "run")} | {*read_lines(tmp_path / "run" / STEPS)[0]}
    built = recipe().build_algorithm()
    of_terms = {key for term in built.terms for key in term.out_keys}
    assert not {name for name in logged - of_terms - TAKEN if "/" not in name}
    assert not of_terms & TAKEN
