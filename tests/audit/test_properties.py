"""The step-decomposed policy gradient on random MDPs: exact with the exact log-probability, else off by known terms.

The truth is J by recursion over states with brute-force action probabilities; everything is in float64, to 1e-8.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.brute_force import Action, State
from support.random_mdps import (
    EXACT,
    MDP,
    SAMPLERS,
    STATE_SCORE,
    Recursion,
    after,
    assert_equal,
    examples,
    mdps,
    recursions,
)
from support.seeds import seeded
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.audit import Problem, exact_estimator
from dlmrl_kit.audit.bank import true_gradient
from dlmrl_kit.audit.on_problem import ExactServices, OnProblem, complete
from dlmrl_kit.core.behaviour import Behaviour
from dlmrl_kit.core.keys import Key
from dlmrl_kit.core.trajectory import every_step
from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.likelihoods.steps import StepLogProb, StepTokenLogProb, pack_tokens
from dlmrl_kit.losses.ppo import StepPPO
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.regularisers.kl import KLK1, KLK2, KLK3
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder
from dlmrl_kit.samplers.random_order import RandomOrder

LOG_PROB = ("selected", "log_prob")
SMALL_SHAPES = [(2, 2), (2, 3), (3, 2), (2, 4), (3, 3), (4, 2)]


def gradient_of_j(mdp: MDP, found: list[Recursion]) -> Tensor:
    """grad J, [P], through the recursion."""
    return mdp.gradient(torch.stack([part.value() for part in found]).mean(), retain=True)


def step_decomposed(mdp: MDP, likelihood: Likelihood) -> Tensor:
    """E[ sum_t R grad log pi_t ] of the kit's loss and likelihood, on all trajectories as one weighted batch."""
    rows = mdp.weighted()
    rows["selected", "advantage"] = rows["reward"][:, None].expand_as(rows["selected", "step"])
    rows = likelihood(rows, policy=mdp.policy, sampler=mdp.sampler)
    return -mdp.gradient(Reinforce()(rows)["loss_objective"])


@pytest.mark.thorough
@pytest.mark.parametrize("cls", SAMPLERS, ids=lambda c: c.__name__)
@examples(40)
@given(st.data())
def test_the_step_decomposed_gradient_is_grad_j(cls: type[Sampler], data: st.DataObject) -> None:
    mdp = data.draw(mdps([cls]))
    found = recursions(mdp)
    truth = gradient_of_j(mdp, found)
    rows = mdp.listed()
    expected = sum(part.value().item() for part in found) / len(found)
    assert float(rows["probability"] @ rows["reward"]) / len(found) == pytest.approx(expected, rel=EXACT, abs=1e-13)
    size = rows["reward"].abs().max()
    assert_equal(step_decomposed(mdp, StepLogProb()), truth, 1e-4 * size)
    assert_equal(true_gradient(rows, mdp.problem, mdp.sampler), truth, 1e-4 * size)


def order_gradient(mdp: MDP, found: list[Recursion]) -> Tensor:
    """E[ sum_t R grad (log pi_t - token part) ] by brute force: sums over states, actions and their values."""
    total = torch.zeros((), dtype=torch.float64)
    for part in found:
        for state, chance in part.visits().items():
            tokens = part.token_probabilities(state)
            for action, p in part.actions[state].items():
                own = torch.stack([tokens[i][v] for i, v in zip(*action, strict=True)]).log().sum()
                share = chance * p.item() * part.value(after(state, action)).item()
                total = total + share * (p.log() - own) / len(found)
    return mdp.gradient(total, retain=True)


@pytest.mark.thorough
@pytest.mark.parametrize("cls", [LowConfidence, PlackettLuceOrder], ids=lambda c: c.__name__)
@examples(25)
@given(st.data())
def test_leaving_out_the_order_term_costs_exactly_its_gradient(cls: type[Sampler], data: st.DataObject) -> None:
    mdp = data.draw(mdps([cls], shapes=SMALL_SHAPES))
    found = recursions(mdp)
    missing = order_gradient(mdp, found)
    tokens = step_decomposed(mdp, StepTokenLogProb())
    assert_equal(tokens, gradient_of_j(mdp, found) - missing, max(missing.norm(), 1e-4))


@examples(40)
@given(mdps(STATE_SCORE, shapes=SMALL_SHAPES, filters=False))
def test_where_positions_follow_from_the_state_the_token_part_is_exact(mdp: MDP) -> None:
    assert_equal(step_decomposed(mdp, StepTokenLogProb()), gradient_of_j(mdp, recursions(mdp)), 1e-4)


@examples(25)
@given(mdps(STATE_SCORE, shapes=SMALL_SHAPES, filters=False, policy="tabular"))
def test_leaving_out_the_temperature_costs_a_known_amount(mdp: MDP) -> None:
    """E g = T grad J + E[ R sum over committed positions of (p_T - p_1) ], written out on the table of logits."""
    found, temperature = recursions(mdp), mdp.sampler.behaviour.temperature
    truth = gradient_of_j(mdp, found)
    shift = torch.zeros_like(mdp.policy.model.logits)
    base = (mdp.problem.vocab + 1) ** torch.arange(mdp.problem.length)
    for q, part in enumerate(found):
        for state, chance in part.visits().items():
            code = int((torch.tensor(state) * base).sum())
            hot, cold = part.token_probabilities(state), part.token_probabilities(state, Behaviour())
            for action, p in part.actions[state].items():
                share = chance * p.item() * part.value(after(state, action)).item() / len(found)
                for i in action[0]:
                    shift[q, code, i] += share * (hot[i] - cold[i]).detach()
    published = step_decomposed(mdp, StepTokenLogProb(sampling_temperature=False))
    assert_equal(published, temperature * truth + shift.flatten(), 1e-4)


@pytest.mark.thorough
def test_published_log_probabilities_fail_by_the_amounts_of_theory() -> None:
    """Relative biases over twelve networks of theory section 2's shape: the recorded amounts lie among them."""

    def biases(sampler: Sampler, likelihood: Likelihood) -> list[float]:
        found = []
        for seed in range(12):
            mdp = MDP(Problem(vocab=3, length=3, policy="network", seed=seed, spread=2.0), sampler)
            truth = gradient_of_j(mdp, recursions(mdp))
            found.append(((step_decomposed(mdp, likelihood) - truth).norm() / truth.norm()).item())
        return found

    tokens, published = StepTokenLogProb(), StepTokenLogProb(sampling_temperature=False)
    assert max(biases(RandomOrder(3, temperature=0.9), tokens)) < 1e-12
    assert max(biases(LowConfidence(3, temperature=0.9), StepLogProb())) < 1e-12
    for sampler, likelihood, recorded in (
        (RandomOrder(3, temperature=0.9), published, 0.18),
        (LowConfidence(3), tokens, 1.37),
        (LowConfidence(3, temperature=0.9), published, 1.39),
    ):
        measured = biases(sampler, likelihood)
        assert min(measured) < recorded < max(measured)
        assert sorted(measured)[2] > 1e-2  # nearly all of them fail


# ---------------------------------------------------------------------------------------------- on-policy losses


def batch_gradient(mdp: MDP, seed: int, copies: int, **parts: Any) -> tuple[Tensor, TensorDictBase]:
    """Gradient of the loss on one sampled batch, every component run as in training, and the batch."""
    small = OnProblem(exact_estimator(mdp.sampler, Swaps(**parts)), mdp.problem)
    keys = small.plan.sampler.keys
    rows = mdp.sampler(seeded(mdp.problem.batch(copies), seed), policy=mdp.policy, keys=keys)
    batch = small.fixed(complete(small, ExactServices(mdp.problem, mdp.sampler, torch.zeros(0)), rows))
    return small.loss_gradient(batch), batch


@pytest.mark.thorough
@examples(60)
@given(mdps(), st.integers(0, 99), st.integers(1, 4), st.floats(1e-6, 1), st.floats(1e-6, 2))
def test_before_the_first_update_ppo_has_the_gradient_of_reinforce(
    mdp: MDP, seed: int, copies: int, low: float, high: float
) -> None:
    """On every batch, not only in expectation; for single tokens up to samples over tokens.

    Ranges are wider than the rounding of a forward in other batches (see ``losses/clipped.py``).
    """
    plain, _ = batch_gradient(mdp, seed, copies)
    assert_equal(batch_gradient(mdp, seed, copies, loss=StepPPO(low, high))[0], plain, 1e-4)
    by_token, _ = batch_gradient(mdp, seed, copies, likelihood=StepTokenLogProb())
    found, rows = batch_gradient(mdp, seed, copies, likelihood=StepTokenLogProb(), loss=TokenPPO(low, high))
    tokens = int(rows["step", "num_committed"].sum())
    assert_equal(found * tokens / len(rows), by_token, 1e-4)


@examples(60)
@given(mdps(policy="tabular"), st.integers(0, 99), st.integers(1, 4))
def test_log_probabilities_of_tokens_are_recomputed_to_the_last_bit(mdp: MDP, seed: int, copies: int) -> None:
    """A table gives the same logits in every batch: nothing but the model may part the record from the likelihood."""
    keys = [key for key in mdp.sampler.optional_keys if "log_prob" in key[1]]
    rows = every_step(mdp.sampler(seeded(mdp.problem.batch(copies), seed), policy=mdp.policy, keys=keys))
    for tempered in (True, False):
        likelihood = StepTokenLogProb(sampling_temperature=tempered)
        asked: list[Key] = [("selected", "token_log_prob"), ("selected", "token_mask")]
        likelihood.prepare(rows, sampler=mdp.sampler, policy=mdp.policy, keys=asked)
        likelihood(rows, policy=mdp.policy, sampler=mdp.sampler, keys=asked)
        step, token = (rows[likelihood.recorded["selected", name]] for name in ("log_prob", "token_log_prob"))
        assert torch.equal(rows[LOG_PROB], step * rows["step", "valid"])
        assert torch.equal(rows["selected", "token_log_prob"], pack_tokens(rows, token, mdp.sampler.max_commits))


# ------------------------------------------------------------------------------------------------- KL estimators


def exact_kl(mdp: MDP, found: list[Recursion]) -> tuple[Tensor, Tensor, float]:
    """Sum over steps of KL(pi || ref) and of KL(ref || pi) where pi can go, states fixed; ref's chance of elsewhere."""
    with mdp.policy.reference(), torch.no_grad():
        reference = recursions(mdp)
        for part in reference:
            part.value()
    forward, reverse, elsewhere = torch.zeros(()), torch.zeros(()), 0.0
    for part, other in zip(found, reference, strict=True):
        for state, chance in part.visits().items():
            share = chance / len(found)
            for action, p in part.actions[state].items():
                q = reference_probability(mdp, part, other, state, action, p)
                assume(q > 1e-12)  # the kit's floor stands for the rest
                forward = forward + share * p * (p / q).log()
                reverse = reverse + share * q * (q / p).log()
                elsewhere -= share * q
            elsewhere += share
    return forward, reverse, elsewhere


def reference_probability(
    mdp: MDP, part: Recursion, other: Recursion, state: State, action: Action, p: Tensor
) -> float:
    """Of the action under the reference policy, with the positions given where they follow from the state."""
    if type(mdp.sampler) not in STATE_SCORE:
        return float(other.actions[state].get(action, torch.zeros(())))
    with torch.no_grad():
        own = part.token_probabilities(state)
        with mdp.policy.reference():
            theirs = part.token_probabilities(state)
        ratio = [theirs[i][v] / own[i][v] for i, v in zip(*action, strict=True)]
        return float(p * torch.stack(ratio).prod())


@pytest.mark.thorough
@pytest.mark.parametrize("cls", SAMPLERS, ids=lambda c: c.__name__)
@examples(25)
@given(st.data(), st.integers(0, 99))
def test_kl_estimators_have_the_expectations_they_name(cls: type[Sampler], data: st.DataObject, seed: int) -> None:
    """k1 and k3 the value, k2 the gradient; k1 no gradient, k3 that of the reverse; k2 another value."""
    mdp = data.draw(mdps([cls], shapes=SMALL_SHAPES, filters=False))
    with mdp.policy.shifted_reference(data.draw(st.sampled_from([0.02, 0.1])), seed):
        check_kl(mdp)


def check_kl(mdp: MDP) -> None:
    forward, reverse, elsewhere = exact_kl(mdp, recursions(mdp))
    rows = mdp.weighted()
    with mdp.policy.reference(), torch.no_grad():
        old = StepLogProb()(rows.copy(), policy=mdp.policy, sampler=mdp.sampler)[LOG_PROB]
    rows = StepLogProb()(rows.set(("selected", "ref_log_prob"), old), policy=mdp.policy, sampler=mdp.sampler)
    k1, k2, k3 = (term(coefficient=1.0)(rows) for term in (KLK1, KLK2, KLK3))
    kl = forward.item()
    assert k1["kl"].item() == pytest.approx(kl, rel=EXACT, abs=1e-13)
    assert k3["kl"].item() == pytest.approx(kl - elsewhere, rel=EXACT, abs=1e-13)
    assert type(mdp.sampler) is LowConfidence or abs(elsewhere) < 1e-12
    assert abs(k2["kl"].item() - kl) > 1e-7 * kl
    gradient = mdp.gradient
    size = 1e-4 + gradient(forward, retain=True).norm()
    assert_equal(gradient(k1["loss_kl"], retain=True), torch.zeros(()), size)
    assert_equal(gradient(k2["loss_kl"], retain=True), gradient(forward, retain=True), 1e-4)
    assert_equal(gradient(k3["loss_kl"], retain=True), gradient(reverse, retain=True), 1e-4)
