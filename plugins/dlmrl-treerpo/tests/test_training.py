"""The recipe of trees trains: whole trees, documented gradients, and the same numbers wherever they are computed."""

from __future__ import annotations

import math
from dataclasses import replace

import dlmrl_kit as dk
import torch
from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.recipe.of_algorithm import recipe_of
from dlmrl_kit.rollout.services import UpdateServices, training_indices
from dlmrl_kit.training import resume, start, train
from support.collectors import same
from support.collectors import updates as collected
from support.documented_losses import FORMULAS
from support.gradient_scale import check_scale, in_double_precision
from support.runs import build, collect, metric_rows, new_run, outcome, prepared, recipe, stopped
from support.several import compare, updates
from tensordict import TensorDict

from dlmrl_treerpo.nodes import TREE_NODE
from dlmrl_treerpo.tree import Tree

SIZES = ["Tree.branching = 2", "Trainer.group_size = 4"]
LENGTHS = (1, 7, 2, 5, 1, 3)


def test_two_updates(tmp_path):
    sets = [*SIZES, "Trainer.minibatches = 2", "Trainer.inner_iterations = 2"]
    run = new_run(tmp_path, "d_treerpo", [*sets, "Sudoku4x4.format_weight = 1.0", "Trainer.learning_rate = 0.001"])
    assert run.update.gradient.whole_groups
    for update in range(2):
        trajectory = collect(run, update).kept
        assert trajectory["progress"].tolist() == [update / 4] * 8
        assert (trajectory["selected", "weight"].sum(), trajectory["selected", "weight"].shape[1]) == (2 * (2 + 4), 2)
        generator = torch.Generator().manual_seed(update)  # the tiny denoiser is seldom right
        trajectory["reward"] = torch.rand(8, generator=generator)
        trajectory.del_(("selected", "advantage"))
        run.algorithm.advantage(trajectory)
        metrics = run.update.learn(prepared(run.update, trajectory), update)
        assert metrics["skipped"] == 0
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["self_distillation"] > 0
        assert (metrics["loss_self_distillation"] > 0) == (update > 0)  # lambda starts at 0
        assert metrics["kl"] >= 0


def test_an_update_applies_the_gradient_of_the_documented_loss(tmp_path, monkeypatch):
    def distillation(term, batch):
        """Whole groups are one batch, so its own formula; test_self_distillation.py holds it against three loops."""
        total, _ = term.total(batch)
        return term.coefficient(batch["progress"]).amax() * total / term.count(batch).clamp(min=1)

    monkeypatch.setitem(FORMULAS, "SelfDistillation", distillation)
    constant = ["SelfDistillation.coefficient = 0.5", "SelfDistillation.tau = 1.0", "Trainer.inner_iterations = 1"]
    check_scale(in_double_precision(tmp_path, "d_treerpo", [*SIZES, *constant], []))


def test_three_processes_take_the_updates_of_one(pool):
    sets = [*SIZES, "Trainer.prompts_per_update = 5", "Trainer.minibatches = 2"]
    metrics = compare(pool.run(updates, ("d_treerpo", sets, [])), 1e-9)
    assert max(update["grad_norm"] for update in metrics) > 1e-4


def test_a_copy_of_the_policy_grows_the_same_trees(tmp_path):
    sets = [*SIZES, "Trainer.rollout_batch_size = 4"]
    wanted = collected(tmp_path, "d_treerpo", sets)
    assert wanted[0][0]["grad_norm"] > 0
    assert same(collected(tmp_path, "d_treerpo", sets, ["collector=Here"]), wanted)


def test_a_run_is_what_it_is_in_turn_and_resumed(tmp_path, monkeypatch):
    """Likelihoods that are computed while rewards are, and a kill, change nothing."""
    sets = [*SIZES, "Trainer.rollout_batch_size = 4", "Trainer.updates = 2", "Trainer.eval_every = 0"]
    small = recipe("d_treerpo", sets)
    train(small, tmp_path / "ahead")
    assert metric_rows(tmp_path / "ahead")
    stopped(lambda: train(small, tmp_path / "killed"), 1)
    resume(tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "ahead")
    monkeypatch.setattr(start, "make_plan", lambda algorithm: replace(make_plan(algorithm), likelihood_early=False))
    train(small, tmp_path / "in turn")
    assert outcome(tmp_path / "in turn") == outcome(tmp_path / "ahead")


def test_trees_stay_whole_in_pieces_of_a_rollout(tmp_path):
    """Prompts have different lengths, so that pieces are cut in another order than the batch's."""
    sampler = Tree(16, 4, height=2, branching=2)
    run = new_run(tmp_path, sets=["Trainer.group_size = 4"], swaps=Swaps(sampler=sampler))
    prompt = TensorDict({"prompt_ids": torch.full((6, 7), 4), "group": torch.arange(6)}, [6])
    prompt["prompt_mask"] = torch.arange(7) >= 7 - torch.tensor(LENGTHS)[:, None]
    prompt = prompt[torch.arange(6).repeat_interleave(4)].set("seed", sample_seeds(24, "cpu", 0))
    services = UpdateServices(run.policy, sampler, run.update.scorer, chunk=8)
    with torch.no_grad():
        found, _ = run.update.sample(prompt, services)
    assert torch.equal(found["group"], prompt["group"])
    assert found[TREE_NODE].tolist() == [[0, 0], [0, 1], [1, 2], [1, 3]] * 6
    half = sampler.max_steps // 2
    early = (found["commit_step"] < half) * (found["completion_ids"] + 1)
    assert torch.equal(early[0::4], early[1::4])  # siblings share their first steps
    assert torch.equal(early[2::4], early[3::4])
    assert not torch.equal(early[0::4], early[2::4])


def test_by_hand_in_python_as_in_a_run(tmp_path):
    run = new_run(tmp_path / "run", "d_treerpo", SIZES)
    expected = collect(run).kept
    indices = training_indices(7, 2, 0, run.algorithm.trainer.seed)
    found = dk.rollout(build("d_treerpo", SIZES), policy=run.policy, indices=indices)
    assert len(found) == len(expected)
    assert {*found.keys(True, True)} == {*expected.keys(True, True)}


def test_the_recipe_of_what_the_recipe_builds_says_the_same(tmp_path):
    found = recipe_of(load_recipe("d_treerpo").build())
    (tmp_path / "again.gin").write_text(found.text())
    assert load_recipe(tmp_path / "again.gin").text(header=False) == found.text(header=False)
