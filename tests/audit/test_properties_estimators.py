"""Advantages and selectors on random MDPs: exact expectations over all groups, and the entropy bound of dropped steps.

Group estimators are summed over all groups of G trajectories and all choices of a selector (``audit.moments``), in
float64, to 1e-8; the truth is the one that ``test_properties`` holds against brute force.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.random_mdps import MDP, STATE_SCORE, Listed, assert_equal, examples, mdps, recursions
from support.seeds import seeded
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.advantages.group_z_score import GroupZScore
from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.advantages.monte_carlo import MonteCarlo
from dlmrl_kit.advantages.one_step_denoise import OneStepDenoise
from dlmrl_kit.audit import Problem
from dlmrl_kit.core.trajectory import every_step, state_at
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.schedules.curves import Linear
from dlmrl_kit.selectors.all_steps import AllSteps
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.selectors.entropy_bound import EntropyBound
from dlmrl_kit.selectors.entropy_coverage import EntropyCoverage
from dlmrl_kit.selectors.entropy_importance import EntropyImportance
from dlmrl_kit.selectors.k_steps import FirstK, LastK, UniformSteps
from dlmrl_kit.selectors.random_steps import RandomSteps
from dlmrl_kit.selectors.top_k import EntropyTopK

STEP, WEIGHT, VALID, ENTROPY = ("selected", "step"), ("selected", "weight"), ("step", "valid"), ("step", "entropy")
SHAPES = [(2, 2), (3, 2), (2, 3), (4, 2), (2, 4), (3, 3), (4, 3)]
SMALL = [(2, 2), (3, 2), (2, 3), (4, 2)]
lambdas = st.floats(0, 3)
ROUNDING = 1e-12
"""What is left of gradients, whose entries are about 1, where they cancel: a bound may be 0."""

# --------------------------------------------------------------------------------------------------- advantages


@pytest.mark.thorough
@examples(30)
@given(mdps(shapes=SHAPES), st.integers(1, 3), lambdas, lambdas)
def test_one_step_denoise_is_unbiased_divided_and_scaled_undivided(mdp: MDP, most: int, lam: float, end: float) -> None:
    """Divided by 1 + lambda: grad J, also where lambda depends on the step. Undivided: exactly (1 + lambda) grad J."""
    listed = Listed(mdp, most)

    def mean(*args: Any, **options: Any) -> Tensor:
        return listed.moments(advantage=OneStepDenoise(*args, baseline=LeaveOneOut(), **options)).mean

    assert_equal(mean(lam), listed.truth, 1e-4)
    assert_equal(mean(Linear(lam, end)), listed.truth, 1e-4)
    assert_equal(mean(lam, normalise=False), (1 + lam) * listed.truth, 1e-4)
    centred = listed.moments(advantage=OneStepDenoise(lam, normalise=False, baseline=GroupMean())).mean
    assert_equal(centred, (1 + lam) * (1 - 1 / listed.group_size) * listed.truth, 1e-4)


@pytest.mark.thorough
@examples(30)
@given(mdps(shapes=SHAPES), st.integers(1, 3), st.integers(0, 3))
def test_monte_carlo_advantages_are_unbiased(mdp: MDP, n: int, n_baseline: int) -> None:
    """A restart returns the expected reward of the state, which is what the mean over its completions expects."""
    listed = Listed(mdp, 1)
    assert_equal(listed.moments(advantage=MonteCarlo(n, n_baseline)).mean, listed.truth, 1e-4)


@pytest.mark.thorough
@examples(20)
@given(mdps(shapes=SMALL))
def test_restart_values_are_the_expected_rewards_of_the_recursion(mdp: MDP) -> None:
    listed, found = Listed(mdp, 1), recursions(mdp)
    for part in found:
        part.value()
    rows = listed.rows
    num_steps = rows[VALID].shape[1]
    for t in range(num_steps):
        at = torch.full((len(rows), 1), t)
        states = state_at(rows["completion_ids"], rows["commit_step"], at, mdp.policy.mask_id).squeeze(1).tolist()
        for i, (q, state) in enumerate(zip(rows["example"].tolist(), states, strict=True)):
            if rows[VALID][i, t]:
                expected = found[q].values[tuple(state)].item()
                assert listed.services.values[i, t].item() == pytest.approx(expected, rel=1e-8, abs=1e-13)


def z_scored(listed: Listed, eps: float) -> Tensor:
    """E of the z-score's gradient: sum over trajectories of grad P * mean over the other members of its advantage."""
    rows, group_size, mdp = listed.rows, listed.group_size, listed.mdp
    reward, chance = rows["reward"].tolist(), rows["probability"].tolist()
    advantage = torch.zeros(len(rows), dtype=torch.float64)
    for q in range(mdp.problem.prompts):
        own = (rows["example"] == q).nonzero().flatten().tolist()
        for members in itertools.product(own, repeat=group_size):
            returns = [reward[i] for i in members]
            mean = math.fsum(returns) / group_size
            std = math.sqrt(math.fsum((r - mean) ** 2 for r in returns) / group_size)
            others = math.prod(chance[i] for i in members[1:])
            advantage[members[0]] += others * (returns[0] - mean) / (std + eps)
    log_prob = StepLogProb()(every_step(rows), policy=mdp.policy, sampler=mdp.sampler)["selected", "log_prob"]
    return mdp.gradient((log_prob.sum(-1).exp() * advantage).sum() / mdp.problem.prompts)


@pytest.mark.thorough
@examples(40)
@given(mdps(shapes=SMALL), st.integers(2, 4), st.sampled_from([1e-4, 0.1]))
def test_group_baselines_are_exact_scaled_and_measured(mdp: MDP, most: int, eps: float) -> None:
    """Leave-one-out: grad J. Group mean: exactly (1 - 1/G) grad J. The z-score: what a plain loop says it is."""
    listed = Listed(mdp, most)
    size = listed.group_size
    assert_equal(listed.moments(advantage=LeaveOneOut()).mean, listed.truth, 1e-4)
    assert_equal(listed.moments(advantage=GroupMean()).mean, (1 - 1 / size) * listed.truth, 1e-4)
    assert_equal(listed.moments(advantage=GroupZScore(eps)).mean, z_scored(listed, eps), 1e-4)


@examples(15)
@given(mdps(shapes=SMALL, reward="parity"), st.integers(2, 3))
def test_the_z_score_of_two_or_three_binary_rewards_is_a_scale(mdp: MDP, most: int) -> None:
    """Whenever it is not zero, the standard deviation is that of one among G."""
    listed = Listed(mdp, most)
    size = listed.group_size
    std = math.sqrt(1 / size - 1 / size**2)
    assert_equal(listed.moments(advantage=GroupZScore()).mean, (1 - 1 / size) / (std + 1e-4) * listed.truth, 1e-4)


def test_the_z_score_is_biased_elsewhere() -> None:
    """With other rewards; and with binary ones in groups of four, which weigh a prompt by how rare success is."""
    for prompts, reward, group_size in ((1, "random", 2), (1, "random", 3), (2, "parity", 4)):
        problem = Problem(vocab=2, length=2, prompts=prompts, reward=reward, seed=3, policy="network")  # type: ignore[arg-type]
        listed = Listed(MDP(problem, RandomOrder(2)), group_size)
        assert listed.group_size == group_size
        found = listed.moments(advantage=GroupZScore()).mean
        rest = found - (found @ listed.truth) / (listed.truth @ listed.truth) * listed.truth
        assert rest.norm() > 1e-3 * found.norm()


# ------------------------------------------------------------------------------ selectors that stand for all steps


@pytest.mark.thorough
@examples(25)
@given(mdps(shapes=SMALL), st.integers(1, 3), st.floats(0.05, 1))
def test_random_selectors_have_the_expectation_of_all_steps(mdp: MDP, k: int, floor: float) -> None:
    """Of the gradient, with and without a baseline; and of the weight of every step, in every single trajectory."""
    listed = Listed(mdp, 1)
    assert_equal(listed.moments(selector=AllSteps()).mean, listed.truth, 1e-4)
    for selector in (EntropyImportance(k, floor), RandomSteps(k)):
        assert_equal(listed.moments(selector=selector).mean, listed.truth, 1e-4)
        assert_equal(listed.moments(selector=selector, advantage=MonteCarlo(1, 1)).mean, listed.truth, 1e-4)
        total = torch.zeros(listed.rows[VALID].shape, dtype=torch.float64)
        for step, weight, share in selector.outcomes(listed.rows):
            total.scatter_add_(1, step, weight * share[:, None])
        torch.testing.assert_close(total, listed.rows[VALID].double(), rtol=1e-12, atol=1e-12)


@pytest.mark.thorough
@examples(15)
@given(mdps(shapes=[(2, 2), (3, 2)]), st.floats(0.05, 1), lambdas)
def test_random_selectors_leave_group_baselines_unbiased(mdp: MDP, floor: float, lam: float) -> None:
    listed = Listed(mdp, 2)
    assume(listed.group_size == 2)
    for selector in (EntropyImportance(1, floor), RandomSteps(1)):
        for advantage in (LeaveOneOut(), OneStepDenoise(lam, baseline=LeaveOneOut())):
            assert_equal(listed.moments(selector=selector, advantage=advantage).mean, listed.truth, 1e-4)


# ------------------------------------------------------------------------------------------------- entropy bound


class Chosen(AllSteps):
    """Keeps these steps, whatever happens: the choice depends on nothing."""

    def __init__(self, keep: list[bool]) -> None:
        super().__init__()
        self.keep = torch.tensor(keep)

    def kept(self, tensordict: TensorDictBase) -> Tensor:
        return tensordict[VALID] & self.keep


def largest_logit_gradient(mdp: MDP) -> float:
    """max over states met, positions and tokens of || grad logit ||."""
    policy, largest = mdp.policy, 0.0
    for part in recursions(mdp):
        part.value()
        for state in part.actions:
            masked = torch.tensor([[token == policy.mask_id for token in state]])
            logits = part.policy(torch.tensor([state]), masked, masked)[:, : mdp.problem.vocab].flatten()
            largest = max(largest, *(float(mdp.gradient(z, retain=True).norm()) for z in logits))
    return largest


def constant(mdp: MDP, largest_advantage: float) -> float:
    """B = 2 max|A| max||grad logit||, of logits over the temperature."""
    return 2 * largest_advantage * largest_logit_gradient(mdp) / mdp.sampler.behaviour.temperature


def summed_entropy(rows: TensorDictBase) -> Tensor:
    """H_t in nats, summed over the positions committed: [N, T]."""
    return (rows[ENTROPY] * rows["step", "num_committed"]).masked_fill(~rows[VALID], 0)


def expected(listed: Listed, values: Tensor) -> float:
    """E[ sum_t values ], values [N, T]."""
    return float(listed.rows["probability"] @ values.sum(-1)) / listed.mdp.problem.prompts


def missing(listed: Listed, selector: Selector) -> float:
    """Norm of the expected gradient that a selector leaves out, with A = R."""
    return float((listed.moments(selector=selector).mean - listed.truth).norm())


def half_range(mdp: MDP) -> float:
    """max|R - b| with the best constant b: a baseline changes nothing where the choice of steps does not look ahead."""
    return float(mdp.problem.table.max() - mdp.problem.table.min()) / 2


@st.composite
def kept_steps(draw: st.DrawFn, mdp: MDP) -> list[bool]:
    """At least one of T steps."""
    keep = draw(st.lists(st.booleans(), min_size=mdp.sampler.max_steps, max_size=mdp.sampler.max_steps))
    keep[draw(st.integers(0, len(keep) - 1))] = True
    return keep


@pytest.mark.thorough
@examples(40)
@given(st.data())
def test_dropped_steps_obey_the_entropy_bound(data: st.DataObject) -> None:
    """|| E g - grad J || <= B * expected sum of the dropped entropies, whichever steps are dropped."""
    mdp = data.draw(mdps(STATE_SCORE, SHAPES))
    keep = data.draw(kept_steps(mdp))
    listed = Listed(mdp, 1)
    dropped = expected(listed, summed_entropy(listed.rows) * ~torch.tensor(keep))
    assert missing(listed, Chosen(keep)) <= constant(mdp, half_range(mdp)) * dropped * (1 + 1e-9) + ROUNDING


@pytest.mark.thorough
@examples(30)
@given(st.data())
def test_with_the_order_term_the_entropy_is_that_of_the_action(data: st.DataObject) -> None:
    """For low confidence: entropy of the whole action, times the positions that drew (each may decide the order)."""
    mdp = data.draw(mdps([LowConfidence], SHAPES))
    keep = data.draw(kept_steps(mdp))
    listed = Listed(mdp, 1)
    surprise = -listed.rows["step", "log_prob"].masked_fill(~listed.rows[VALID], 0)
    dropped = expected(listed, surprise * ~torch.tensor(keep)) * mdp.sampler.block_length
    assert missing(listed, Chosen(keep)) <= constant(mdp, half_range(mdp)) * dropped * (1 + 1e-9) + ROUNDING


@pytest.mark.thorough
@examples(40)
@given(mdps(STATE_SCORE, SHAPES), st.integers(1, 3), st.floats(0.1, 1), st.floats(0, 2))
def test_rules_that_rank_the_whole_row_obey_it_for_every_step_they_may_drop(
    mdp: MDP, k: int, alpha: float, epsilon: float
) -> None:
    """A step counts wherever some future of its state drops it; with EntropyBound that is at most epsilon a step."""
    listed = Listed(mdp, 1)
    rows, entropy = listed.rows, summed_entropy(listed.rows)
    b = constant(mdp, float(mdp.problem.table.abs().max()))
    for selector in (EntropyTopK(k), EntropyCoverage(alpha), EntropyBound(epsilon), LastK(k), UniformSteps(k)):
        dropped = rows[VALID] & ~selector.kept(rows)
        lost = missing(listed, selector)
        assert lost <= b * expected(listed, entropy * may_be(rows, dropped, mdp)) * (1 + 1e-9) + ROUNDING
        if isinstance(selector, EntropyBound):
            assert lost <= b * epsilon * mdp.sampler.max_steps * (1 + 1e-9) + ROUNDING


def may_be(rows: TensorDictBase, dropped: Tensor, mdp: MDP) -> Tensor:
    """Which steps start from a state in which some trajectory drops them: bool [N, T]."""
    found = torch.zeros_like(dropped)
    for t in range(dropped.shape[1]):
        at = torch.full((len(rows), 1), t)
        state = state_at(rows["completion_ids"], rows["commit_step"], at, mdp.policy.mask_id).squeeze(1)
        _, index = torch.cat([rows["group"][:, None], state], -1).unique(dim=0, return_inverse=True)
        found[:, t] = torch.zeros(len(rows)).index_add(0, index, dropped[:, t].float())[index] > 0
    return found & rows[VALID]


@pytest.mark.thorough
@examples(15)
@given(st.data())
def test_the_bound_tightens_as_entropy_falls(data: st.DataObject) -> None:
    """The same logits, ever larger: the bound of the first step only falls, that of any step vanishes, and it holds."""
    mdp = data.draw(mdps([LeftToRight, RandomOrder], SMALL, filters=False, policy="tabular"))
    keep = data.draw(kept_steps(mdp))
    first, bounds = [], []
    for spread in (0.25, 0.5, 1.0, 2.0, 4.0, 16.0, 1e3, 1e6):
        certain = MDP(replace(mdp.problem, spread=spread), mdp.sampler)
        listed = Listed(certain, 1)
        b, entropy = 2 * half_range(certain) / mdp.sampler.behaviour.temperature, summed_entropy(listed.rows)
        first.append(b * expected(listed, entropy[:, :1]))
        bounds.append(b * expected(listed, entropy * ~torch.tensor(keep)))
        assert missing(listed, Chosen(keep)) <= bounds[-1] * (1 + 1e-9) + ROUNDING
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(first))
    assert bounds[-1] <= 1e-3 * bounds[0]


def test_the_bound_is_not_vacuous() -> None:
    """On some problems more than a tenth of the bound is really lost; a tenth of it would not hold."""
    shares = []
    for seed in range(10):
        mdp = MDP(Problem(vocab=2, length=2, seed=seed), LeftToRight(2))
        listed = Listed(mdp, 1)
        keep = [False, True]
        dropped = expected(listed, summed_entropy(listed.rows) * ~torch.tensor(keep))
        shares.append(missing(listed, Chosen(keep)) / (constant(mdp, half_range(mdp)) * dropped))
    assert 0.1 < max(shares) <= 1


# ------------------------------------------------------------------------------------ the contract, on real rollouts


def chosen(selector: Selector, rows: TensorDict, seed: int = 0) -> TensorDict:
    return selector(seeded(rows, seed))


@pytest.mark.thorough
@examples(40)
@given(mdps(shapes=SMALL), st.integers(1, 4), st.floats(0.05, 1), st.integers(0, 99))
def test_selectors_on_rollouts(mdp: MDP, k: int, share: float, seed: int) -> None:
    """Never past the end, never twice unless weighted for it; permuting the batch permutes the result."""
    rows = mdp.listed()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    budgets = [EntropyTopK(k), UniformSteps(k), FirstK(k), LastK(k)]
    fixed = [*budgets, EntropyCoverage(share), EntropyBound(share), AllSteps()]
    for selector in [*fixed, RandomSteps(k), EntropyImportance(k, share)]:
        found = chosen(selector, rows, seed)
        counts = torch.zeros(rows[VALID].shape, dtype=torch.int64)
        counts.scatter_add_(1, found[STEP], (found[WEIGHT] > 0).long())
        assert not counts[~rows[VALID]].any()
        assert (counts.sum(-1) >= 1).all()
        if selector.with_replacement:
            again = EntropyImportance(k, share).probabilities(rows).gather(1, found[STEP])
            torch.testing.assert_close(found[WEIGHT] * again * k, torch.ones_like(again), rtol=1e-12, atol=0)
        else:
            assert counts.max() == 1
    for selector in fixed:
        straight, permuted = chosen(selector, rows), chosen(selector, rows[order])
        assert torch.equal(straight[STEP][order], permuted[STEP])
        assert torch.equal(straight[WEIGHT][order], permuted[WEIGHT])
    for selector in (RandomSteps(k), EntropyImportance(k, share)):
        for straight, permuted in zip(selector.outcomes(rows), selector.outcomes(rows[order]), strict=True):
            for a, b in zip(straight, permuted, strict=True):
                torch.testing.assert_close(a[order], b, rtol=1e-12, atol=0)


@examples(40)
@given(mdps(shapes=SMALL), st.floats(0.05, 1), st.floats(0.05, 1), st.floats(0, 2), st.floats(0, 2))
def test_coverage_and_bound_are_monotone_on_rollouts(mdp: MDP, a: float, b: float, c: float, d: float) -> None:
    rows = mdp.listed()
    entropy = rows[ENTROPY].masked_fill(~rows[VALID], 0)
    small, large = (EntropyCoverage(alpha).kept(rows) for alpha in sorted((a, b)))
    assert (small <= large).all()
    assert ((entropy * large).sum(-1) >= max(a, b) * entropy.sum(-1) * (1 - 1e-8)).all()
    strict, loose = (EntropyBound(epsilon).kept(rows) for epsilon in sorted((c, d)))
    assert (loose <= strict).all()
    assert ((summed_entropy(rows) * ~loose).sum(-1) <= max(c, d) * (1 + 1e-12)).all()
