"""Trees of samples: how they grow, their segments, sibling advantages, self-distillation, all against loops."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from core import prompts, tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tiny import recorded_calls
from torch import Tensor
from training_helpers import build, new_run

from dlmrl_kit.advantages.sibling_leave_one_out import SiblingLeaveOneOut
from dlmrl_kit.audit import Problem
from dlmrl_kit.audit.bank import true_gradient
from dlmrl_kit.audit.enumeration import enumerate_trajectories
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.trajectory import every_step, first_rows, number_in_group, partition, tree_level
from dlmrl_kit.likelihoods.step_log_prob import StepLogProb
from dlmrl_kit.likelihoods.step_merge import StepMerge
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.regularisers.self_distillation import SelfDistillation
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.tree import Tree
from dlmrl_kit.schedules.curves import Constant, Exponential, Polynomial
from dlmrl_kit.selectors.all_steps import AllSteps
from dlmrl_kit.selectors.tree_levels import TreeLevels
from dlmrl_kit.training.evaluation import evaluate

LENGTH = 6
POLICY = tiny_policy(characters="abcd", initializer_range=0.25).to(torch.float64)
NODE, STEP = ("tree", "node"), ("tree", "step")


# ------------------------------------------------------------------------------------------------ groups


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 2)), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_groups_equal_the_loops(ids: list[tuple[int, int]]) -> None:
    group, other = (torch.tensor([pair[i] for pair in ids]) for i in range(2))
    assert number_in_group(group).tolist() == [sum(g == ids[i][0] for g, _ in ids[:i]) for i in range(len(ids))]
    index = partition(group, other).tolist()
    for i, j in itertools.combinations(range(len(ids)), 2):
        assert (index[i] == index[j]) == (ids[i] == ids[j])
    assert set(index) == set(range(len(set(ids))))
    assert first_rows(torch.tensor(index)).tolist() == [index.index(n) for n in range(len(set(ids)))]


# ------------------------------------------------------------------------------------------------ the sampler


def batch(groups: list[int]) -> TensorDict:
    """A row for each entry; the prompt of a group is its own."""
    names = sorted(set(groups))
    source = prompts(POLICY, rows=len(names))
    index = torch.tensor([names.index(g) for g in groups])
    rows = source[index].clone()
    rows.set("group", torch.tensor(groups)).set("seed", torch.arange(len(groups)))
    return rows.set("progress", torch.full((len(groups),), 0.25, dtype=torch.float64))


def grow(sampler: Tree, groups: list[int], seed: int = 0, everything: bool = False) -> TensorDict:
    if everything:
        sampler.ask_for(sampler.optional_keys)
    return sampler(batch(groups), policy=POLICY, generator=torch.Generator().manual_seed(seed))


def state(data: TensorDict, row: int, t: int) -> list[int]:
    """x_t of a row."""
    commit, final = data["commit_step"][row].tolist(), data["completion_ids"][row].tolist()
    return [POLICY.mask_id if c >= t else v for c, v in zip(commit, final, strict=True)]


FULL = [3] * 8 + [1] * 8
MIXED = [3, 1, 3, 3, 8, 1, 3, 3, 8, 3, 3, 3, 3, 3]
"""Interleaved; groups of 10, 2 and 2."""


@pytest.mark.parametrize("groups", [FULL, MIXED], ids=["full", "mixed"])
@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (1, 4), (7, 2)], ids=str)
@pytest.mark.parametrize("stop_at_eos", [True, False])
def test_samples_share_what_their_nodes_share(groups: list[int], shape: tuple[int, int], stop_at_eos: bool) -> None:
    height, branching = shape
    sampler = Tree(LENGTH, temperature=1.5, stop_at_eos=stop_at_eos, height=height, branching=branching)
    data = grow(sampler, groups, everything=True)
    bounds = [level * LENGTH // height for level in range(height + 1)]
    assert data[STEP].tolist() == [bounds[:-1]] * len(groups)
    seen: dict[int, int] = {}
    for b, g in enumerate(groups):
        leaf = seen[g] = seen.get(g, -1) + 1
        assert data[NODE][b].tolist() == [leaf // branching ** (height - 1 - level) for level in range(height)]
    for b, c in itertools.combinations(range(len(groups)), 2):
        same_group = groups[b] == groups[c]
        shared = sum(same_group and data[NODE][b, d] == data[NODE][c, d] for d in range(height))
        until = bounds[shared]
        for t in range(until + 1):
            assert not same_group or state(data, b, t) == state(data, c, t)
        for name in ("log_prob", "entropy", "token_log_prob", "draft_ids", "greedy_ids", "num_committed", "valid"):
            if same_group:
                assert torch.equal(data["step", name][b, :until], data["step", name][c, :until])
    ends = {tuple(row) for row in data["completion_ids"].tolist()}
    assert len(ends) > len(groups) // 2 or height > LENGTH  # children go on independently


def test_shared_steps_are_sampled_once() -> None:
    sampler = Tree(LENGTH, stop_at_eos=False, height=3, branching=2)
    with recorded_calls(POLICY) as calls:
        grow(sampler, FULL)
    assert [len(ids) for ids, _, _ in calls] == [4, 4, 8, 8, 16, 16]


def test_rows_that_end_early_are_grown_no_further() -> None:
    sampler = Tree(LENGTH, block_length=1, temperature=2.0, height=3, branching=2)
    data = grow(sampler, FULL, seed=1)
    steps = data["step", "valid"].sum(-1)
    assert steps.min() <= 2 < steps.max()
    for b in (steps <= 2).nonzero().flatten().tolist():
        family = [c for c in range(16) if FULL[c] == FULL[b] and data[NODE][c, 0] == data[NODE][b, 0]]
        assert len(family) == 4
        assert all(torch.equal(data["completion_ids"][b], data["completion_ids"][c]) for c in family)


def test_recorded_is_recomputed() -> None:
    sampler = Tree(LENGTH, 2, 4, temperature=1.4, top_k=3, height=2, branching=3)
    data = every_step(grow(sampler, MIXED, everything=True))
    with torch.no_grad():
        again = StepLogProb()(data, policy=POLICY, sampler=sampler)["selected", "log_prob"]
    valid = data["step", "valid"]
    assert (again - data["step", "log_prob"])[valid].abs().max() < 1e-9
    assert again[valid].min() < -0.1


def test_each_sample_alone_is_drawn_as_low_confidence_draws() -> None:
    """The same action log-probabilities and choices; one leaf per prompt is one sample, from the same noise."""
    tree, plain = Tree(LENGTH, 2, height=3, branching=2), LowConfidence(LENGTH, 2)
    rows = batch(list(range(6)))
    found = [s(rows.clone(), policy=POLICY, generator=torch.Generator().manual_seed(5)) for s in (tree, plain)]
    for key in plain.written_keys():
        assert torch.equal(found[0][key], found[1][key])


def test_evaluation_and_restarts_are_independent() -> None:
    """They take any number of samples, and nothing is shared."""
    algorithm = build("d_treerpo", ["Tree.branching = 2", "Trainer.group_size = 4"])
    policy = algorithm.policy.load()
    result = evaluate(policy, algorithm.sampler, algorithm.task, size=5, temperature=1.0, samples_per_prompt=3)
    assert result.size == 5
    assert set(result.pass_at_k) == {1, 2, 3}
    sampler = Tree(LENGTH, stop_at_eos=False)
    with recorded_calls(POLICY) as calls:
        found = sampler.decode(batch([0] * 4), policy=POLICY, generator=torch.Generator().manual_seed(0))
    assert [len(ids) for ids, _, _ in calls] == [4] * LENGTH
    assert not any(key[0] == "tree" for key in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 0}, "height must be at least 1, got 0"),
        ({"branching": 1}, "branching must be at least 2, got 1"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Tree.{message}"):
        Tree(6, 2, **arguments)


def test_recipes_need_whole_trees() -> None:
    with pytest.raises(RecipeError, match=r"Tree makes 16 samples.*group_size is 3; set Trainer\.group_size = 16"):
        build("d_treerpo", ["Tree.branching = 4", "Trainer.group_size = 3"])
    sets = ["Tree.branching = 4", "Trainer.group_size = 16", "Trainer.rollout_batch_size = 24"]
    with pytest.raises(RecipeError, match=r"rollout_batch_size = 24 would cut them apart; make it a multiple of 16"):
        build("d_treerpo", sets)
    build("d_treerpo", [*sets[:2], "Trainer.rollout_batch_size = 32"])


# ------------------------------------------------------------------------------------------------ segments


def selection(data: TensorDict) -> TensorDict:
    selector = TreeLevels()
    selector.ask_for([("selected", "end")])
    return selector(data)  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(3))
def test_tree_levels_equal_the_loop(seed: int) -> None:
    sampler = Tree(LENGTH, block_length=1, temperature=2.0, height=3, branching=2)
    data = selection(grow(sampler, MIXED, seed))
    bounds, n = [0, 2, 4, 6], data["step", "valid"].sum(-1).tolist()
    total: dict[Any, float] = {}
    for b, g in enumerate(MIXED):
        slots = [(bounds[d], min(bounds[d + 1], n[b])) for d in range(3) if bounds[d] < n[b]]
        pad = data["selected", "step"].shape[1] - len(slots)
        assert data["selected", "step"][b].tolist() == [start for start, _ in slots] + [0] * pad
        assert data["selected", "end"][b, : len(slots)].tolist() == [end for _, end in slots]
        for d in range(len(slots)):
            below = [c for c in range(len(MIXED)) if MIXED[c] == g and data[NODE][c, d] == data[NODE][b, d]]
            assert data["selected", "weight"][b, d].item() == pytest.approx(1 / len(below))
            name = (g, d, int(data[NODE][b, d]))
            total[name] = total.get(name, 0.0) + data["selected", "weight"][b, d].item()
        assert not data["selected", "weight"][b, len(slots) :].any()
    assert all(weight == pytest.approx(1) for weight in total.values())  # each transition counts once
    assert min(n) < 5


def test_the_tokens_of_a_transition_are_those_that_changed() -> None:
    sampler = Tree(LENGTH, temperature=2.0, stop_at_eos=False, height=2, branching=2)
    data = selection(grow(sampler, [0] * 4 + [1] * 4, seed=1))
    likelihood = StepMerge(after_eos=True)
    likelihood.ask_for(likelihood.optional_keys)
    likelihood.prepare(data, sampler=sampler, policy=POLICY)
    found = likelihood(data, policy=POLICY, sampler=sampler)["selected"]
    for b, k in itertools.product(range(8), range(2)):
        parent, child = state(data, b, 3 * k), state(data, b, 3 * (k + 1))
        assert found["token_mask"][b, k].tolist() == [p != c for p, c in zip(parent, child, strict=True)]
        assert found["token_mask"][b, k].sum() == 3
    first = found["token_log_prob"][:, 0]
    assert torch.equal(first[0], first[1])  # the same transition, scored the same for both of its leaves
    assert torch.equal(first[2], first[3])
    assert not torch.equal(first[0], first[2])


# ------------------------------------------------------------------------------------------------ advantages


def slow_advantages(data: TensorDict) -> dict[tuple[Any, ...], float]:
    """A of every node (group, depth, number), by recursion over a tree of dictionaries."""
    height = data[NODE].shape[1]
    children: dict[Any, set[Any]] = {}
    leaves: dict[Any, list[float]] = {}
    for b in range(len(data)):
        path = [(int(data["group"][b]), d, int(data[NODE][b, d])) for d in range(height)]
        for above, node in zip([(int(data["group"][b]),), *path], path, strict=False):
            children.setdefault(above, set()).add(node)
        leaves.setdefault(path[-1], []).append(data["reward"][b].item())

    def value(node: Any) -> float:
        own = leaves.get(node) or [value(child) for child in children[node]]
        return sum(own) / len(own)

    found = {}
    for siblings in children.values():
        for node in siblings:
            others = [value(other) for other in siblings if other != node]
            found[node] = value(node) - (sum(others) / len(others) if others else 0.0)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("groups", [FULL, MIXED], ids=["full", "mixed"])
def test_sibling_leave_one_out_equals_the_recursion(groups: list[int], seed: int) -> None:
    sampler = Tree(LENGTH, temperature=2.0, height=3, branching=2)
    data = grow(sampler, groups, seed)
    data["reward"] = torch.rand(len(groups), generator=torch.Generator().manual_seed(seed)).double()
    AllSteps()(data)
    wanted = slow_advantages(data)
    found = SiblingLeaveOneOut()(data)["selected", "advantage"]
    for b, k in itertools.product(range(len(groups)), range(found.shape[1])):
        level = int(data["selected", "step"][b, k]) // 2
        node = (groups[b], level, int(data[NODE][b, level]))
        used = data["selected", "weight"][b, k] > 0
        assert found[b, k].item() == pytest.approx(wanted[node] if used else 0.0, abs=1e-9)


def test_equal_rewards_give_no_advantage() -> None:
    data = grow(Tree(LENGTH, height=2, branching=3), [0] * 9)
    data["reward"] = torch.full((9,), 0.1)
    found = SiblingLeaveOneOut()(AllSteps()(data))["selected", "advantage"]
    assert found.abs().max() < 1e-7


def test_the_level_of_a_step() -> None:
    data = TensorDict({STEP: torch.tensor([[0, 2, 2, 5]])}, [1])
    assert tree_level(data, torch.arange(7)[None]).tolist() == [[0, 0, 2, 2, 2, 3, 3]]


def trees(listed: TensorDict) -> tuple[TensorDict, Tensor]:
    """Every tree of height 2 with two children per node over trajectories of two steps, and its probability."""
    first: dict[Any, list[int]] = {}
    for i in range(len(listed)):
        commit, final = listed["commit_step"][i].tolist(), listed["completion_ids"][i].tolist()
        first.setdefault(tuple((c == 0) * (v + 1) for c, v in zip(commit, final, strict=True)), []).append(i)
    start = {name: listed["step", "log_prob"][rows[0], 0].exp().item() for name, rows in first.items()}
    rows, probability = [], []
    for pair in itertools.product(first, repeat=2):
        for leaves in itertools.product(*(first[name] for name in pair for _ in range(2))):
            rows.append(leaves)
            below = math.prod(listed["step", "log_prob"][i, 1].exp().item() for i in leaves)
            probability.append(start[pair[0]] * start[pair[1]] * below)
    index = torch.tensor(rows)
    data = listed[index.flatten()].clone()
    data["group"] = torch.arange(len(rows)).repeat_interleave(4)
    data[NODE] = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 3]]).repeat(len(rows), 1)
    data[STEP] = torch.tensor([[0, 1]]).repeat(4 * len(rows), 1)
    return data, torch.tensor(probability, dtype=torch.float64)


@pytest.mark.parametrize("problem", [Problem(length=2, seed=2), Problem(length=2, policy="network", seed=3)], ids=str)
def test_sibling_leave_one_out_is_unbiased(problem: Problem) -> None:
    """The exact expectation over all trees of the gradient of Reinforce on all steps is the gradient of J."""
    sampler, policy = LowConfidence(2, temperature=0.8), problem.denoiser
    listed = enumerate_trajectories(sampler, policy, problem.batch())
    listed["reward"] = problem.score(listed["completion_ids"], listed["example"])
    truth = true_gradient(listed, policy, sampler, 1)
    data, probability = trees(listed)
    assert len(probability) >= 9 * 2**4
    assert probability.sum().item() == pytest.approx(1)
    data = SiblingLeaveOneOut()(AllSteps()(data))
    share = (probability * len(probability)).repeat_interleave(4)
    data = StepLogProb()(data, policy=policy, sampler=sampler)

    def gradient(weight: Tensor) -> Tensor:
        weighted = data.copy().set(("selected", "weight"), weight * share[:, None])
        return -policy.flat_gradient(Reinforce()(weighted)["loss_objective"], retain=True)

    found = gradient(data["selected", "weight"])
    assert (found - truth).norm() < 1e-10 * truth.norm()
    once = gradient(data["selected", "weight"] * torch.tensor([0.5, 1.0]))  # as TreeLevels weights transitions
    assert (once - truth).norm() > 1e-3 * truth.norm()


# ------------------------------------------------------------------------------------------------ self-distillation


def distilled(seed: int = 0, groups: list[int] = FULL) -> TensorDict:
    """Transitions with random advantages and log-probabilities in float64; garbage where nothing counts."""
    sampler = Tree(LENGTH, 1, temperature=0.8, height=2, branching=4)
    data = selection(grow(sampler, groups, seed))
    likelihood = StepMerge(after_eos=True)  # otherwise the end of a leaf's text decides what counts above it
    likelihood.ask_for(likelihood.optional_keys)
    likelihood.prepare(data, sampler=sampler, policy=POLICY)
    generator = torch.Generator().manual_seed(seed)
    data["reward"] = torch.rand(len(groups), generator=generator).double()
    SiblingLeaveOneOut()(data)
    mask = data["selected", "token_mask"] & (data["selected", "weight"] > 0)[..., None]
    # the same transition has the same log-probabilities in each of its leaves
    table = -torch.rand(99, 2, 20, LENGTH, generator=generator).double()
    level = torch.arange(2)[: mask.shape[1]]
    values = table[data["group"][:, None], level, data[NODE][:, : len(level)]]
    data["selected", "token_log_prob"] = values.masked_fill(~mask, math.nan).requires_grad_()
    return data


def slow_distillation(data: TensorDict, tau: float) -> tuple[Tensor, int]:
    """The release's nested loops: parents, positions, children; sum of the KLs and their number."""
    total, number = torch.zeros((), dtype=torch.float64), 0
    weight, log_prob = data["selected", "weight"], data["selected", "token_log_prob"]
    parents: dict[Any, dict[int, int]] = {}
    for b, k in (weight > 0).nonzero().tolist():
        above = int(data[NODE][b, k - 1]) if k > 0 else -1
        parents.setdefault((int(data["group"][b]), k, above), {}).setdefault(int(data[NODE][b, k]), b)
    for (_, k, _), children in parents.items():
        good = [b for b in children.values() if data["selected", "advantage"][b, k] > 0]
        if len(children) < 2 or not good:
            continue
        mass = [math.exp(data["selected", "advantage"][b, k].item() / tau) for b in good]
        w = dict(zip(good, [m / sum(mass) for m in mass], strict=True))
        for i in range(LENGTH):
            here = [b for b in good if data["selected", "token_mask"][b, k, i]]
            if not here:
                continue
            q: dict[int, float] = {}
            where: dict[int, int] = {}
            for b in here:
                token = int(data["completion_ids"][b, i])
                q[token] = q.get(token, 0.0) + w[b] / sum(w[c] for c in here)
                where[token] = b
            # children that agree on a token have its log-probability in common: mean over them, for the gradient
            for token, share in q.items():
                same = [b for b in here if int(data["completion_ids"][b, i]) == token]
                norm = sum(w[b] for b in same)
                mean = sum((w[b] / norm * log_prob[b, k, i] for b in same), torch.zeros((), dtype=torch.float64))
                total = total + share * (math.log(share) - mean)
            number += 1
    return total, number


@pytest.mark.parametrize("groups", [[3] * 16, [3] * 16 + [1] * 16, MIXED], ids=["one", "two", "mixed"])
@pytest.mark.parametrize("seed", range(3))
def test_self_distillation_equals_the_loops(groups: list[int], seed: int) -> None:
    data = distilled(seed, groups)
    total, number = slow_distillation(data, 0.4)
    term = SelfDistillation(0.03, 0.4)
    found = term(data)
    assert number > 5
    assert term.count(data).item() == number
    assert found["self_distillation"].item() == pytest.approx(total.item() / number, abs=1e-9)
    assert found["loss_self_distillation"].item() == pytest.approx(0.03 * total.item() / number, abs=1e-9)
    new = data["selected", "token_log_prob"]
    own = torch.autograd.grad(found["loss_self_distillation"], new)[0]
    wanted = torch.autograd.grad(0.03 * total / number, new)[0]
    parent = (data["group"][:, None] * 100 + torch.arange(new.shape[1]) * 50 + data[NODE][:, : new.shape[1]]).flatten()
    for values in (own, wanted):
        assert values.isfinite().all()
    # a child's gradient is spread over its leaves in one, given to its first leaf in the other
    sums = [torch.zeros(10_000, LENGTH).double().index_add(0, parent, v.flatten(0, 1)) for v in (own, wanted)]
    assert torch.allclose(sums[0], sums[1], atol=1e-12)
    assert sums[0].any()


def test_it_is_zero_where_the_parent_predicts_the_target() -> None:
    """One good child whose tokens the parent is sure of."""
    data = distilled(0, [3] * 16)
    data["selected", "token_log_prob"] = torch.zeros_like(data["selected", "token_log_prob"])
    data["selected", "advantage"] = torch.where(data[NODE] == 0, 1.0, -1.0)
    assert SelfDistillation()(data)["self_distillation"].item() == 0


def test_parts_of_a_batch_add_up() -> None:
    data = distilled(1, [3] * 16 + [1] * 16)
    term = SelfDistillation(1.0, 0.4)
    whole, parts = term(data)["self_distillation"], [data[:16], data[16:]]
    added = sum(term(part)["self_distillation"] * term.count(part) for part in parts) / term.count(data)
    assert whole.item() == pytest.approx(added.item())
    assert term.needs_groups


def test_schedules_follow_the_progress_of_the_run() -> None:
    data = distilled(0, [3] * 16)
    scheduled = SelfDistillation()  # the paper's schedules
    for progress in (0.0, 0.25, 0.9):
        data["progress"] = torch.full((16,), progress, dtype=torch.float64)
        lam = 3e-3 * (math.exp(2 * progress) - 1) / (math.exp(2) - 1)
        tau = 2 * (1 - progress) ** 0.7
        found, plain = scheduled(data), SelfDistillation(lam, tau)(data)
        assert found["loss_self_distillation"].item() == pytest.approx(plain["loss_self_distillation"].item())
    data["progress"] = torch.ones(16, dtype=torch.float64)  # tau 0: the best child alone
    best = SelfDistillation(1.0, 1e-6)(data)["self_distillation"].item()
    assert scheduled(data)["self_distillation"].item() == best > 0
    assert isinstance(SelfDistillation(0.1).coefficient, Constant)


def test_refuses_tokens_that_are_not_by_position() -> None:
    data = distilled(0, [3] * 16)
    data["selected", "token_mask"] = data["selected", "token_mask"][..., :2]
    with pytest.raises(ValueError, match=r"needs a likelihood that scores positions, such as StepMerge"):
        SelfDistillation().count(data)
    for name in ("coefficient", "tau"):
        with pytest.raises(ValueError, match=rf"SelfDistillation\.{name} must be at least 0 at all times"):
            SelfDistillation(**{name: Exponential(0.1, -0.1)})
        with pytest.raises(ValueError, match=rf"SelfDistillation\.{name} must be a number or a schedule"):
            SelfDistillation(**{name: math.nan})


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        (Exponential(0.5, 2.0, 3.0), lambda f: 0.5 + 1.5 * (math.exp(3 * f) - 1) / (math.exp(3) - 1)),
        (Exponential(0.5, 2.0, -1.0), lambda f: 0.5 + 1.5 * (math.exp(-f) - 1) / (math.exp(-1) - 1)),
        (Polynomial(2.0, 0.5, 0.7), lambda f: 0.5 + 1.5 * (1 - f) ** 0.7),
        (Polynomial(0.0, 1.0), lambda f: f),
    ],
    ids=("steep", "negative", "power", "linear"),
)
def test_schedules(schedule: Any, formula: Any) -> None:
    for f in (0.0, 0.3, 0.5, 1.0):
        assert schedule(torch.tensor(f, dtype=torch.float64)).item() == pytest.approx(formula(f))
    for change in ({"rate": 0.0}, {"rate": 101.0}) if isinstance(schedule, Exponential) else ({"power": 0.0},):
        with pytest.raises(ValueError, match=next(iter(change))):
            type(schedule)(0.0, 1.0, **change)


# ------------------------------------------------------------------------------------------------ the recipe


def test_the_recipe_trains(tmp_path: Path) -> None:
    sets = ["Tree.branching = 2", "Trainer.group_size = 4", "Trainer.minibatches = 2", "Trainer.inner_iterations = 2"]
    run = new_run(tmp_path, "d_treerpo", [*sets, "Sudoku4x4.format_weight = 1.0", "Trainer.learning_rate = 0.001"])
    assert run.updater.whole_groups
    for update in range(2):
        trajectory = run.collect(update).kept
        assert trajectory["progress"].tolist() == [update / 4] * 8
        assert (trajectory["selected", "weight"].sum(), trajectory["selected", "weight"].shape[1]) == (2 * (2 + 4), 2)
        generator = torch.Generator().manual_seed(update)  # the tiny denoiser is seldom right
        trajectory["reward"] = torch.rand(8, generator=generator)
        trajectory.del_(("selected", "advantage"))
        copy.copy(run.algorithm.advantage)(trajectory)
        metrics = run.updater.update(run.updater.prepare(trajectory), update)
        assert metrics["skipped"] == 0
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["self_distillation"] > 0
        assert (metrics["loss_self_distillation"] > 0) == (update > 0)  # lambda starts at 0
        assert metrics["kl"] >= 0
