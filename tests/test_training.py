"""The update: micro-batches, the loss itself, the check before the first update, old and reference, bad gradients."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor
from training_helpers import build, model_path, new_run, outcome, recipe, rollout, sgd, weights

from dlmrl_kit.algorithm import dataflow
from dlmrl_kit.core.errors import CheckpointError, RecipeError, TrainingError, UserError
from dlmrl_kit.core.registry import components
from dlmrl_kit.core.trajectory import gather_steps
from dlmrl_kit.likelihoods.step_log_prob import StepLogProb
from dlmrl_kit.likelihoods.step_token_log_prob import StepTokenLogProb
from dlmrl_kit.losses.ppo import StepPPO
from dlmrl_kit.policies.base import Policy
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.rollout.services import Rollout
from dlmrl_kit.trainers.trainer import SCHEDULES
from dlmrl_kit.training import resume, train
from dlmrl_kit.training.checkpoint import checkpoints
from dlmrl_kit.training.loop import Run
from dlmrl_kit.training.optimiser import build_optimiser
from dlmrl_kit.training.start import find_device
from dlmrl_kit.training.update import Totals, Updater

ADVANTAGE, WEIGHT = ("selected", "advantage"), ("selected", "weight")
OTHERS = ("EntropyBoundRenoising", "PreferencePairs")  # no masks, no policy: tests of their own
SAMPLERS = [c.name for c in components("sampler") if c.package == "dlmrl_kit" and c.name not in OTHERS]


def perturb(policy: Policy, seed: int = 0, scale: float = 0.03) -> None:
    """Moves the weights, as updates would: ratios leave 1 and the KL 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in policy.trainable():
            p.add_(scale * torch.randn(p.shape, generator=generator))


# ------------------------------------------------------------------------------------------- micro-batches

TERMS: dict[str, tuple[str, list[str]]] = {
    "StepPPO+KLK3": ("egspo_sa", []),
    "Reinforce": ("reinforce_exact", []),
    "Reinforce, uneven": ("ada_egspo", ["sampler=ConfidenceThreshold", "loss=Reinforce", "regulariser=KLK1"]),
    "StepPPO, uneven": ("ada_egspo", ["sampler=ConfidenceThreshold", "regulariser=KLK2+KLK3"]),
    "TokenPPO, uneven": ("ada_egspo", ["sampler=ConfidenceThreshold", "loss=TokenPPO", "regulariser=EntropyBonus"]),
    "KLExact": ("egspo_sa", ["regulariser=KLExact+EntropyBonus"]),
    "EntropyBonus": ("egspo", ["regulariser=EntropyBonus", "likelihood=StepLogProb"]),
    "EntropyImportance": ("egspo", ["selector=EntropyImportance"]),
}


@pytest.mark.parametrize("label", TERMS)
def test_micro_batches_change_nothing(label: str, tmp_path: Path) -> None:
    name, uses = TERMS[label]
    uneven = ["ConfidenceThreshold.threshold = 0.35"] if "uneven" in label else []
    sets = [*uneven, "Trainer.minibatches = 1", "Trainer.inner_iterations = 2", "Trainer.max_grad_norm = 1000.0"]
    results: list[tuple[Tensor, dict[str, float]]] = []
    for size in (1, 3, 6):
        run = new_run(tmp_path, name, uses=uses, sets=[*sets, f"Trainer.micro_batch_size = {size}"])
        updater, before = sgd(run, 0.003), weights(run.policy)
        trajectory = updater.prepare(rollout(run))
        metrics = updater.update(trajectory, 0)  # the ratios of the second iteration are no longer 1
        results.append((weights(run.policy), metrics))
        assert (results[-1][0] - before).abs().max() > 1e-3
        assert metrics.get("ratio_max", 2) > 1.01
        assert metrics.keys() >= {"loss", "grad_norm", "loss_objective", "learning_rate", "skipped"}
    if uneven:
        used = (trajectory[WEIGHT] > 0).sum(-1)
        assert used.min() < used.max(), "rows must differ in their number of steps"
    for found, metrics in results[:-1]:
        torch.testing.assert_close(found, results[-1][0], rtol=0, atol=1e-5)
        assert metrics == pytest.approx(results[-1][1], rel=1e-5, abs=1e-6)


def test_two_terms_with_a_metric_of_the_same_name_keep_their_own(tmp_path: Path) -> None:
    run = new_run(tmp_path, uses=["regulariser=KLK1+KLK2+KLK3"])
    trajectory = run.updater.prepare(rollout(run))
    perturb(run.policy)
    totals = Totals()
    loss = run.updater._backward(trajectory, totals)
    means, scored = totals.means(), trajectory.copy()
    with torch.no_grad():
        run.algorithm.likelihood(scored, policy=run.policy, sampler=run.algorithm.sampler)
    for label, regulariser in zip(("kl", "kl/2", "kl/3"), run.algorithm.regularisers, strict=True):
        assert means[label] == pytest.approx(regulariser(scored)["kl"].item(), rel=1e-5)
    parts = ("loss_objective", "loss_kl", "loss_kl/2", "loss_kl/3")
    assert loss == pytest.approx(sum(means[part] for part in parts), rel=1e-5)
    assert len({round(means[label], 6) for label in ("kl", "kl/2", "kl/3")}) == 3


def test_maxima_are_maxima_and_means_are_weighted() -> None:
    one, other = Totals(), Totals()
    one.add("ratio_max", 2.0, 0.5)
    one.add("ratio_max", 3.0, 0.5)
    one.add("ratio", 1.0, 0.25)
    one.add("ratio", 2.0, 0.75)
    one.add("empty", 5.0, 0.0)
    assert one.means() == {"ratio_max": 3.0, "ratio": 1.75}
    other.add("ratio_max", 2.5)
    other.add("ratio", 3.25, 1.0)
    one.merge(other)
    assert one.means() == {"ratio_max": 3.0, "ratio": 2.5}


# ------------------------------------------------------------------------------------------- the loss itself


def loop_log_probs(policy: Policy, run: Run, trajectory: TensorDictBase, temperature: float) -> dict[Any, Tensor]:
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
    trajectory = run.updater.prepare(rollout(run))
    exact = copy.deepcopy(run.policy).double()
    with torch.no_grad():
        old = loop_log_probs(exact, run, trajectory, temperature)
    perturb(run.policy)
    totals = Totals()
    loss = run.updater._backward(trajectory, totals)

    exact = copy.deepcopy(run.policy).double().requires_grad_()
    new = loop_log_probs(exact, run, trajectory, temperature)
    rows = trajectory.shape[0]
    expected, clipped, kl = torch.zeros((), dtype=torch.float64), 0, 0.0
    for slot, log_prob in new.items():
        advantage, weight = trajectory[ADVANTAGE][slot].item(), trajectory[WEIGHT][slot].item()
        ratio = (log_prob - old[slot]).exp()
        free, bound = ratio * advantage, ratio.clamp(0.9, 1.5) * advantage
        clipped += bool(free > bound)
        k3 = (old[slot] - log_prob).exp() - 1 + log_prob - old[slot]
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


# ------------------------------------------------------------------------------------------- minibatches


@pytest.mark.parametrize("parts", [1, 2, 4, 5, 6])
def test_a_rollout_is_cut_into_as_many_minibatches_as_asked(parts: int, tmp_path: Path) -> None:
    sets = [f"Trainer.minibatches = {parts}", "Trainer.inner_iterations = 2"]
    run = new_run(tmp_path, sets=sets)
    trajectory = rollout(run)
    trajectory["row"] = torch.arange(6)

    def rows(update: int) -> list[list[int]]:
        return [piece["row"].tolist() for piece in run.updater.minibatches(trajectory, update)]

    found = rows(0)
    assert len(found) == 2 * parts
    assert run.trainer.optimiser_steps == run.trainer.updates * 2 * parts
    for iteration in (found[:parts], found[parts:]):
        assert sorted(itertools.chain(*iteration)) == list(range(6))
        assert max(map(len, iteration)) - min(map(len, iteration)) <= 1
    assert rows(0) == found
    orders = [tuple(itertools.chain(*rows(update))) for update in range(4)]
    assert len({order[:6] for order in orders} | {orders[0][6:]}) == 5


def test_schedules_end_with_the_run(tmp_path: Path) -> None:
    sets = ["Trainer.minibatches = 4", "Trainer.updates = 3", "Trainer.schedule = 'cosine'", "Trainer.warmup_steps = 2"]
    run = new_run(tmp_path / "run", sets=sets, uses=["logger=none"])
    used: list[float] = []
    run.updater.optimiser.register_step_pre_hook(lambda optimiser, *_: used.append(optimiser.param_groups[0]["lr"]))
    (tmp_path / "run").mkdir()
    run.run()
    expected = [s / 2 if s < 2 else (1 + math.cos(math.pi * (s - 2) / 10)) / 2 for s in range(12)]
    assert used == pytest.approx([0.01 * share for share in expected])
    assert run.updater.optimiser.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_runs(name: str) -> None:
    p = torch.nn.Parameter(torch.ones(2, 2))
    warmup = 0 if name == "constant" else 2
    optimiser, scheduler = build_optimiser(
        [p], learning_rate=0.1, betas=(0.9, 0.99), weight_decay=0, schedule=name, warmup_steps=warmup, total_steps=8
    )
    rates = []
    for _ in range(8):
        rates.append(scheduler.get_last_lr()[0])
        p.grad = torch.ones(2, 2)
        optimiser.step()
        scheduler.step()
    assert rates[:3] == pytest.approx([0.1] * 3 if name == "constant" else [0.0, 0.05, 0.1])
    assert max(rates) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("schedule = 'reduce_lr_on_plateau'", "schedule must be one of constant, constant_with_warmup, linear"),
        ("schedule = 'cosine_with_min_lr'", "schedule must be one of"),
        (
            "warmup_steps = 3",
            r"warmup_steps must be 0 with schedule 'constant' \(or take constant_with_warmup\), got 3",
        ),
        ("minibatches = 7", "minibatches must be at most the 6 samples of a rollout"),
        ("precision = 'float16'", "precision must be"),
    ],
)
def test_settings_that_cannot_run_are_refused_before_anything_runs(binding: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"Trainer.{message}"):
        build(sets=[f"Trainer.{binding}"])


def test_weight_decay_is_for_matrices_only() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimiser, _ = build_optimiser(
        [matrix, vector],
        learning_rate=0.1,
        betas=(0.9, 0.99),
        weight_decay=0.5,
        schedule="constant",
        warmup_steps=0,
        total_steps=1,
    )
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimiser.step()
    assert torch.equal(matrix, torch.full((2, 2), 0.95))
    assert torch.equal(vector, torch.ones(2))


# ------------------------------------------------------------------------------------------- before the first update

LIKELIHOODS = [
    ("StepLogProb", []),
    ("StepTokenLogProb", ["StepTokenLogProb.sampling_temperature = True"]),
    ("StepTokenLogProb", ["StepTokenLogProb.sampling_temperature = False"]),
]


@pytest.mark.parametrize(("likelihood", "sets"), LIKELIHOODS, ids=["exact", "tempered", "model"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_ratios_start_at_one(sampler: str, likelihood: str, sets: list[str], tmp_path: Path) -> None:
    shape = [] if sampler == "ConfidenceThreshold" else ["Sampler.tokens_per_step = 3", "Sampler.block_length = 8"]
    sets = [*sets, *shape, "Sampler.top_p = 0.9", "Trainer.minibatches = 1", "Trainer.micro_batch_size = 4"]
    run = new_run(tmp_path, uses=[f"sampler={sampler}", f"likelihood={likelihood}"], sets=sets)
    trajectory = run.updater.prepare(rollout(run))
    assert run.updater.check_old(trajectory) < 1e-5
    metrics = run.updater.update(trajectory, 0)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert metrics["clip_fraction"] == 0
    assert metrics["kl"] == pytest.approx(0, abs=1e-8)
    assert metrics["grad_norm"] > 0


def test_token_ratios_start_at_one(tmp_path: Path) -> None:
    run = new_run(tmp_path, uses=["loss=TokenPPO"], sets=["Trainer.minibatches = 1"])
    trajectory = run.updater.prepare(rollout(run))
    assert set(run.updater.plan.old) == {("selected", "old_token_log_prob")}
    assert run.updater.check_old(trajectory) < 1e-5
    metrics = run.updater.update(trajectory, 0)
    assert (metrics["ratio"], metrics["ratio_max"]) == (pytest.approx(1, abs=1e-5), pytest.approx(1, abs=1e-5))


@pytest.mark.parametrize("sampler", ["LowConfidence", "PlackettLuceOrder", "ConfidenceThreshold"])
def test_prompts_of_different_lengths_change_nothing(sampler: str, tmp_path: Path) -> None:
    """Rollout and update see a puzzle with other ones beside it; its numbers are the same, up to rounding."""
    uses = ["task=Countdown", "policy=CharacterLlama", f"sampler={sampler}", "likelihood=StepLogProb"]
    sets = ["Sampler.completion_length = 6", "CharacterLlama.hidden_size = 16", "CharacterLlama.num_layers = 1"]
    sets += ["Countdown.num_train = 4", "Countdown.max_numbers = 5", "Countdown.num_heldout = 4"]
    run = new_run(tmp_path, uses=uses, sets=[*sets, "Trainer.prompts_per_update = 4", "Trainer.group_size = 1"])
    trajectory = rollout(run)
    lengths = trajectory["prompt_mask"].sum(-1)
    assert lengths.min() < lengths.max()
    run.updater.prepare(trajectory)
    assert run.updater.check_old(trajectory) < 1e-5
    for row in range(4):
        alone = trajectory[row : row + 1].clone()
        width = int(lengths[row])
        alone = alone.exclude("prompt_ids", "prompt_mask")
        alone["prompt_ids"] = trajectory["prompt_ids"][row : row + 1, -width:]
        alone["prompt_mask"] = trajectory["prompt_mask"][row : row + 1, -width:]
        assert run.updater.check_old(alone) < 1e-5


class AnotherTemperature(StepTokenLogProb):
    """Scores at temperature 1.1 what was recorded at temperature 1."""

    factor = 1.1

    def estimate(self, steps: Any, policy: Any, sampler: Any) -> dict[Any, Tensor]:
        return {key: value * self.factor for key, value in super().estimate(steps, policy, sampler).items()}


class NotANumber(AnotherTemperature):
    """Gives NaN, of which no comparison holds."""

    factor = math.nan


@pytest.mark.parametrize("likelihood", [AnotherTemperature, NotANumber])
def test_a_likelihood_that_does_not_fit_the_sampler_is_named(
    likelihood: type[StepTokenLogProb], tmp_path: Path
) -> None:
    run = new_run(tmp_path)
    run.algorithm.likelihood = likelihood(sampling_temperature=False)
    trajectory = run.updater.prepare(rollout(run))
    with pytest.raises(TrainingError, match=f"{likelihood.__name__} does not compute what LowConfidence recorded as"):
        run.updater.check_old(trajectory)


def test_a_run_whose_log_probs_disagree_stops_before_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = StepTokenLogProb.estimate
    monkeypatch.setattr(StepTokenLogProb, "estimate", lambda *given: {k: v * 1.1 for k, v in original(*given).items()})
    folder = tmp_path / "run"
    with pytest.raises(TrainingError, match="disagree before the first update"):
        train(recipe(), folder)
    assert checkpoints(folder) == []
    assert not (folder / "model").exists()
    with pytest.raises(TrainingError, match="disagree before the first update"):
        resume(folder)


def with_dropout(policy: Policy) -> None:
    for module in policy.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    policy.model.train()


def with_a_leak_between_samples(policy: Policy) -> None:
    features = policy.features
    policy.features = lambda *given: (found := features(*given)) + found.mean(0)  # type: ignore[method-assign]


def with_logits_that_change(policy: Policy) -> None:
    perturb(policy)


@pytest.mark.parametrize("spoil", [with_dropout, with_a_leak_between_samples, with_logits_that_change])
@pytest.mark.parametrize("likelihood", ["StepLogProb", "StepTokenLogProb"])
def test_a_policy_that_is_not_a_function_of_the_state_is_found(
    spoil: Callable[[Policy], None], likelihood: str, tmp_path: Path
) -> None:
    run = new_run(tmp_path, uses=[f"likelihood={likelihood}"], sets=["Trainer.rollout_batch_size = 4"])
    if spoil is not with_logits_that_change:
        spoil(run.policy)
    trajectory = run.updater.prepare(rollout(run))
    if spoil is with_logits_that_change:
        spoil(run.policy)
    with pytest.raises(TrainingError, match=f"{likelihood} does not compute what LowConfidence recorded"):
        run.updater.check_old(trajectory)


def test_one_step_in_a_hundred_may_disagree(tmp_path: Path) -> None:
    sets = ["Trainer.prompts_per_update = 9", "Sudoku4x4.num_train = 9"]  # 9 * 3 samples of 4 steps: 108
    run = new_run(tmp_path, uses=["selector=AllSteps"], sets=sets)
    trajectory = run.updater.prepare(rollout(run))
    old = trajectory["selected", "old_log_prob"]
    old[0, 0] += 0.5
    assert run.updater.check_old(trajectory) == pytest.approx(0.5, abs=1e-4)
    old[1, 1] -= 0.5
    with pytest.raises(TrainingError, match=r"2% of the selected steps differ by more than 0.001 \(largest 0.5\)"):
        run.updater.check_old(trajectory)


def test_a_first_micro_batch_without_any_step_passes(tmp_path: Path) -> None:
    run = new_run(tmp_path, sets=["Trainer.micro_batch_size = 1"])
    trajectory = rollout(run)
    trajectory[WEIGHT][0] = 0
    assert run.updater.check_old(run.updater.prepare(trajectory)) == 0.0


# ------------------------------------------------------------------------------------------- old and reference


def forwards(policy: Policy) -> list[bool]:
    """A list that grows by one at each forward pass of the policy: whether it had gradients."""
    seen: list[bool] = []
    features = policy.features

    def counting(*given: Any) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return features(*given)

    policy.features = counting  # type: ignore[method-assign]
    return seen


class Recomputed(StepLogProb):
    """Claims that the sampler records nothing."""

    @property
    def recorded(self) -> dict[Any, Any]:
        return {}


def test_recorded_log_probs_cost_no_forward_pass(tmp_path: Path) -> None:
    run = new_run(tmp_path, uses=["likelihood=StepLogProb", "regulariser=none"])
    trajectory = rollout(run)
    seen = forwards(run.policy)
    run.updater.prepare(trajectory)
    assert seen == []
    step = trajectory["selected", "step"]
    assert torch.equal(trajectory["selected", "old_log_prob"], gather_steps(trajectory["step", "log_prob"], step))


def test_log_probs_that_no_sampler_records_are_recomputed(tmp_path: Path) -> None:
    sets = ["Trainer.micro_batch_size = 4"]
    run = new_run(tmp_path, uses=["likelihood=StepLogProb", "regulariser=none"], sets=sets)
    run.algorithm.likelihood = Recomputed()
    run.updater.plan = dataflow.plan(run.algorithm)
    assert run.updater.plan.old == {("selected", "old_log_prob"): None}
    trajectory = rollout(run)
    seen = forwards(run.policy)
    run.updater.prepare(trajectory)
    assert seen == [False, False]  # two micro-batches, without gradients
    recorded = gather_steps(trajectory["step", "log_prob"], trajectory["selected", "step"])
    torch.testing.assert_close(trajectory["selected", "old_log_prob"], recorded, rtol=0, atol=1e-5)
    perturb(run.policy)
    again = run.updater.prepare(trajectory.exclude(("selected", "old_log_prob")))
    assert (again["selected", "old_log_prob"] - recorded).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("uses", "in_prepare", "in_update"),
    [
        (["regulariser=none"], [], [True, True]),
        (["regulariser=EntropyBonus"], [], [True, True]),
        (["regulariser=KLK3"], [False, False], [True, True]),
        (["regulariser=KLExact"], [], [False, True, False, True]),
        (["regulariser=KLExact+KLK1"], [False, False], [False, True, False, True]),
    ],
    ids=lambda value: value[0] if value and isinstance(value[0], str) else "",
)
def test_the_reference_runs_only_where_it_is_read(
    uses: list[str], in_prepare: list[bool], in_update: list[bool], tmp_path: Path
) -> None:
    run = new_run(tmp_path, uses=uses, sets=["Trainer.micro_batch_size = 3", "Trainer.minibatches = 1"])
    needed = bool(in_prepare) or False in in_update
    assert run.updater.plan.needs_reference == needed
    assert (run.policy._reference is not None) == needed
    trajectory = rollout(run)
    seen = forwards(run.policy)
    run.updater.prepare(trajectory)
    assert seen == in_prepare
    seen.clear()
    metrics = run.updater.update(trajectory, 0)
    assert seen == in_update
    assert metrics.get("kl", 0.0) == pytest.approx(0, abs=1e-7)


def test_the_reference_stays_where_training_started(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    base = Policy.from_pretrained(model_path())
    perturb(run.policy)
    trajectory = run.updater.prepare(rollout(run))
    expected = trajectory.copy()
    with torch.no_grad():
        run.algorithm.likelihood(expected, policy=base, sampler=run.algorithm.sampler)
    assert torch.equal(trajectory["selected", "ref_log_prob"], expected["selected", "log_prob"])
    assert (trajectory["selected", "ref_log_prob"] - trajectory["selected", "old_log_prob"]).abs().max() > 1e-2


def test_the_exact_kl_is_to_where_training_started(tmp_path: Path) -> None:
    run = new_run(tmp_path, uses=["regulariser=KLExact"], sets=["Trainer.micro_batch_size = 4"])
    base, sampler = Policy.from_pretrained(model_path()), run.algorithm.sampler
    trajectory = run.updater.prepare(rollout(run))
    perturb(run.policy)
    totals = Totals()
    run.updater._backward(trajectory, totals)
    scored = [trajectory.copy(), trajectory.copy()]
    with torch.no_grad():
        for found, policy in zip(scored, (run.policy, base), strict=True):
            run.algorithm.likelihood(found, policy=policy, sampler=sampler)
    log_p, log_q = (found["selected", "distribution"].double() for found in scored)
    used = trajectory["selected", "token_mask"][..., None] & (log_p > -torch.inf)
    kl = torch.where(used, log_p.exp() * (log_p - log_q), 0.0).sum() / 6
    assert kl > 0.1
    assert totals.means()["kl"] == pytest.approx(kl.item(), rel=1e-4)


def test_an_adapter_needs_no_second_copy_of_the_reference(tmp_path: Path) -> None:
    run = new_run(tmp_path, sets=["Pretrained.lora_rank = 2", "Trainer.minibatches = 1"])
    assert run.updater.plan.needs_reference
    assert run.policy._reference is None
    assert all("lora_" in name for name, _ in run.policy.trainable())
    trajectory = run.updater.prepare(rollout(run))
    assert run.updater.check_old(trajectory) < 1e-5
    assert run.updater.update(trajectory, 0)["kl"] == pytest.approx(0, abs=1e-8)
    perturb(run.policy, scale=0.3)
    trajectory = run.updater.prepare(rollout(run, 1))
    for key in ("ref_log_prob", "old_log_prob"):
        found = trajectory.copy()
        policy = Policy.from_pretrained(model_path()) if key == "ref_log_prob" else run.policy
        with torch.no_grad():
            run.algorithm.likelihood(found, policy=policy, sampler=run.algorithm.sampler)
        torch.testing.assert_close(trajectory["selected", key], found["selected", "log_prob"], rtol=0, atol=1e-5)
    assert (trajectory["selected", "ref_log_prob"] - trajectory["selected", "old_log_prob"]).abs().max() > 1e-2


@pytest.mark.parametrize("rank", [0, 2])
def test_micro_batches_without_any_step_count_nothing(rank: int, tmp_path: Path) -> None:
    sets = [f"Pretrained.lora_rank = {rank}", "Trainer.micro_batch_size = 1", "Trainer.minibatches = 1"]
    results = []
    for size in (1, 6):
        run = new_run(tmp_path, sets=[*sets, f"Trainer.micro_batch_size = {size}"])
        updater = sgd(run)
        trajectory = rollout(run)
        trajectory[WEIGHT][[0, 3]] = 0
        before = weights(run.policy)
        metrics = updater.update(updater.prepare(trajectory), 0)
        assert metrics["skipped"] == 0
        results.append((weights(run.policy), metrics))
        assert (results[-1][0] - before).abs().max() > 1e-3
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5, abs=1e-6)


# ------------------------------------------------------------------------------------------- bad gradients


def test_a_minibatch_with_a_bad_loss_is_skipped_and_nothing_else(tmp_path: Path) -> None:
    def updated(poison: bool) -> tuple[Run, dict[str, float]]:
        run = new_run(tmp_path, sets=["Trainer.schedule = 'linear'"])
        trajectory = run.updater.prepare(rollout(run))
        first, second = run.updater.minibatches(trajectory, 0)
        if poison:
            second[ADVANTAGE][0, 0] = torch.nan
        parts = [first, second] if poison else [first]
        run.updater.minibatches = lambda *_: iter(parts)  # type: ignore[method-assign]
        return run, run.updater.update(trajectory, 0)

    clean, expected = updated(poison=False)
    run, metrics = updated(poison=True)
    assert torch.equal(weights(run.policy), weights(clean.policy))
    torch.testing.assert_close(run.updater.optimiser.state_dict(), clean.updater.optimiser.state_dict(), rtol=0, atol=0)
    assert run.updater.scheduler.last_epoch == 1
    assert (run.updater.skipped, run.updater.skipped_in_a_row) == (1, 1)
    del metrics["learning_rate"], expected["learning_rate"]
    assert metrics == {**expected, "skipped": 1.0}
    assert all(math.isfinite(value) for value in metrics.values())


class BadGradient(StepPPO):
    """A finite loss with a gradient that is not."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        total, diagnostics = super().total(tensordict)
        return total + (tensordict["selected", "log_prob"] * 0).sum().sqrt(), diagnostics


def test_a_bad_gradient_of_a_good_loss_is_skipped(tmp_path: Path) -> None:
    run = new_run(tmp_path, sets=["Trainer.minibatches = 1"])
    run.algorithm.loss = BadGradient()
    updater = Updater(run.algorithm, run.policy, run.updater.optimiser, run.updater.scheduler)
    trajectory = updater.prepare(rollout(run))
    before, loss = weights(run.policy), updater._backward(trajectory, Totals())
    assert math.isfinite(loss)
    assert not all(torch.isfinite(p.grad).all() for p in updater.parameters)
    updater.optimiser.zero_grad()
    metrics = updater.update(trajectory, 0)
    assert metrics["skipped"] == 1
    assert "loss" not in metrics
    assert torch.equal(weights(run.policy), before)
    assert updater.optimiser.state_dict()["state"] == {}


def test_only_bad_minibatches_in_a_row_are_too_many(tmp_path: Path) -> None:
    run = new_run(tmp_path, sets=["Trainer.minibatches = 1", "Trainer.max_skipped = 2"])
    good = run.updater.prepare(rollout(run))
    bad = good.clone()
    bad[ADVANTAGE].fill_(torch.inf)
    seen = []
    for trajectory in (bad, good, bad, good, good, bad):
        metrics = run.updater.update(trajectory, 0)
        seen.append((metrics["skipped"], run.updater.skipped_in_a_row))
    assert seen == [(1, 1), (1, 0), (2, 1), (2, 0), (2, 0), (3, 1)]
    before = weights(run.policy)
    with pytest.raises(TrainingError, match="2 optimiser steps in a row had a non-finite loss"):
        run.updater.update(bad, 0)
    assert torch.equal(weights(run.policy), before)
    assert bool(before.isfinite().all())


def poisoned(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """From now on the rollouts of the updates in ``bad`` have NaN for advantages."""
    original = Run.collect

    def collect(self: Run, update: int, *given: Any) -> Rollout:
        rollout = original(self, update, *given)
        if update in bad:
            rollout.kept[ADVANTAGE].fill_(torch.nan)
        return rollout

    monkeypatch.setattr(Run, "collect", collect)


def test_bad_losses_in_a_row_stop_the_run_which_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = recipe(sets=["Trainer.updates = 5", "Trainer.max_skipped = 3"])  # two minibatches per update
    with monkeypatch.context() as patch:
        poisoned(patch, {2})
        assert train(small, tmp_path / "whole").skipped == 2
        poisoned(patch, {2, 3})
        with pytest.raises(TrainingError, match=r"3 optimiser steps in a row had a non-finite loss \(nan\)"):
            train(small, tmp_path / "run")
        done, newest = checkpoints(tmp_path / "run")[-1]
        assert done == 3
        assert not (tmp_path / "run" / "result.json").exists()
        before = checkpoints(tmp_path / "run")[-2][1]
        assert (newest / "weights.safetensors").read_bytes() == (before / "weights.safetensors").read_bytes()
        with pytest.raises(TrainingError, match="3 optimiser steps in a row"):
            resume(tmp_path / "run")  # two were counted before the checkpoint: the first one more ends it
    assert resume(tmp_path / "run").skipped == 2
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


# ------------------------------------------------------------------------------------------- modes, and what is refused


@pytest.mark.parametrize("uses", [[], ["loss=TokenPPO", "regulariser=KLExact+EntropyBonus"]], ids=["steps", "tokens"])
def test_mixed_precision_keeps_weights_and_moments_in_float32(uses: list[str], tmp_path: Path) -> None:
    run = new_run(tmp_path, uses=uses, sets=["Trainer.precision = 'bfloat16'", "Trainer.minibatches = 1"])
    dtypes: set[torch.dtype] = set()
    run.policy.model.model.layers[0].mlp.register_forward_hook(lambda *given: dtypes.add(given[2].dtype))
    before = weights(run.policy)
    trajectory = run.updater.prepare(rollout(run))
    assert run.updater.check_old(trajectory) < 0.1
    metrics = run.updater.update(trajectory, 0)
    assert dtypes == {torch.bfloat16}
    assert metrics["ratio"] == pytest.approx(1, abs=0.1)
    assert not torch.equal(weights(run.policy), before)
    moments = [value for entry in run.updater.optimiser.state.values() for value in entry.values()]
    assert {value.dtype for value in [*moments, *run.policy.parameters()]} == {torch.float32}


@pytest.mark.parametrize("rank", [0, 2])
def test_a_checkpoint_in_half_precision_is_trained_in_float32(rank: int, tmp_path: Path) -> None:
    half = Policy.from_pretrained(model_path())
    half.model.to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    sets = [f"Pretrained.path = '{tmp_path / 'half'}'", f"Pretrained.lora_rank = {rank}", "Trainer.minibatches = 1"]
    run = new_run(tmp_path, sets=sets)
    assert {p.dtype for _, p in run.policy.trainable()} == {torch.float32}
    trajectory = run.updater.prepare(rollout(run))
    assert run.updater.check_old(trajectory) < (0.1 if rank else 1e-5)
    before = weights(run.policy)
    metrics = run.updater.update(trajectory, 0)
    assert metrics["kl"] == pytest.approx(0, abs=1e-3 if rank else 1e-8)
    assert (weights(run.policy) - before).abs().max() == pytest.approx(0.01, rel=0.01)  # Adam's first step


def test_rollouts_in_pieces_are_rollouts(tmp_path: Path) -> None:
    whole = new_run(tmp_path).collect(0).kept
    pieces = new_run(tmp_path, sets=["Trainer.rollout_batch_size = 4"]).collect(0).kept
    keys = set(whole.keys(include_nested=True, leaves_only=True))
    assert set(pieces.keys(include_nested=True, leaves_only=True)) == keys
    for key in keys:
        assert (pieces[key].shape, pieces[key].dtype) == (whole[key].shape, whole[key].dtype), key
    for key in ("prompt_ids", "prompt_mask", "group", "example"):
        assert torch.equal(pieces[key], whole[key])

    assert len({tuple(row) for row in pieces["completion_ids"].tolist()}) > 1


def test_devices_that_are_not_there_are_named() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in ("cpu", "cuda")
    with pytest.raises(RecipeError, match=r"device = 'cqu' cannot be used here"):
        find_device("cqu")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["Pretrained.path = 'shipped:nothing'"], r"no checkpoint 'shipped:nothing' ships with dlmrl_kit; available: "),
        (["Pretrained.path = '/nowhere/at/all'"], r"cannot load a denoiser from /nowhere/at/all"),
        (["Trainer.device = 'cqu'"], "device = 'cqu' cannot be used here"),
        (["Sudoku4x4.num_train = 0"], "Sudoku4x4: the train split is empty; set num_train"),
        (["Sudoku4x4.num_heldout = 0"], "Sudoku4x4: the heldout split is empty; set num_heldout"),
    ],
)
def test_runs_that_cannot_start_leave_no_folder(sets: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(recipe(sets=sets), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_too_few_puzzles_are_the_users_to_fix(tmp_path: Path) -> None:
    sets = [
        "Countdown.num_train = 100",
        "Countdown.max_value = 2",
        "Countdown.min_target = 1",
        "Countdown.max_target = 4",
    ]
    few = recipe("egspo", uses=["task=Countdown", "policy=CharacterLlama"], sets=sets)
    with pytest.raises(RecipeError, match=r"Countdown: num_(train|heldout) is \d+, but only \d+ distinct puzzles"):
        train(few, tmp_path / "run")


def test_folders_and_recipes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.gin").write_text(recipe().text())
    with pytest.raises(CheckpointError, match=f"{folder} already holds a run: resume it with"):
        train(recipe(), folder)
    with pytest.raises(RecipeError, match="is a recipe for Pretraining, not for training: run 'dlmrl pretrain pre"):
        train(load_recipe("pretrain_sudoku4x4"), tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds no run"):
        resume(tmp_path / "other")
    assert not (tmp_path / "other").exists()
