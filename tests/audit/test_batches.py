"""Batches of several groups: what a filter leaves and what a denominator counts decide the gradient as in training."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.leave_one_out import LeaveOneOut
from dlmrl_kit.algorithm.algorithm import GradientEstimator, Swaps
from dlmrl_kit.audit import AuditError, AuditReport, Problem, audit_algorithm, audit_recipe, exact_estimator
from dlmrl_kit.audit import estimator as listing
from dlmrl_kit.audit.bank import select, true_gradient
from dlmrl_kit.audit.batches import GroupLaw, Part, batch_moments, compositions
from dlmrl_kit.audit.estimator import moments
from dlmrl_kit.audit.measure import Ground
from dlmrl_kit.audit.on_problem import OnProblem
from dlmrl_kit.audit.sampled import sampled_gradients
from dlmrl_kit.filters.drop_equal_rewards import DropEqualRewards
from dlmrl_kit.filters.success_range import SuccessRange
from dlmrl_kit.likelihoods.mean_field import MeanField
from dlmrl_kit.likelihoods.steps import StepTokenLogProb
from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.normalisers.means import FixedLength, FixedStepLength, PerStep
from dlmrl_kit.recipe.catalogue import components
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.selectors.top_k import EntropyTopK

TWO_PROMPTS = Problem(vocab=2, length=3, prompts=2, reward="sparse", seed=3)
TINY = Problem(vocab=2, length=2, prompts=2, reward="parity", eos=True, policy="network", seed=5)
UNEVEN = Problem(vocab=2, length=2, eos=True, policy="network", seed=5)


def audited(
    problem: Problem, prompts_per_update: int, group_size: int = 2, batches: int = 400, **parts: Any
) -> AuditReport:
    estimator = exact_estimator(LeftToRight(problem.length, temperature=0.9), swaps(parts))
    return audit_algorithm(
        estimator,
        problems=[problem],
        group_size=group_size,
        attribution=False,
        prompts_per_update=prompts_per_update,
        batches=batches,
    )


def swaps(parts: dict[str, Any]) -> Swaps:
    return Swaps(**parts)  # type: ignore[typeddict-item]


# ------------------------------------------------------------------------------------------ the law of a batch


Group = tuple[float, Tensor, float]


def random_law(seed: int, counts: list[float], parts: list[Part]) -> tuple[GroupLaw, list[Group]]:
    """A law of six groups, added in two pieces, and the groups: probability, total and count of each."""
    gen = torch.Generator().manual_seed(seed)
    probability = torch.rand(6, generator=gen, dtype=torch.float64).softmax(0)
    count = torch.tensor(counts, dtype=torch.float64)[torch.randint(len(counts), (6,), generator=gen)]
    total = torch.randn(6, 3, generator=gen, dtype=torch.float64) * (count > 0)[:, None]
    law = GroupLaw(parts)
    law.add(probability[:4], total[:4], count[:4])
    law.add(probability[4:], total[4:], count[4:])
    return law, list(zip(probability.tolist(), total, count.tolist(), strict=True))


@pytest.mark.parametrize("counts", [[4.0], [0.0, 2.0], [0.0, 2.0, 4.0, 6.0], [0.125, 0.5, 1.75], [0.0, 3.0, 100.0]])
@pytest.mark.parametrize(("prompts", "groups"), [(1, 1), (1, 3), (2, 1), (2, 2), (2, 3), (3, 2)])
def test_moments_of_a_batch_are_those_of_all_batches(counts: list[float], prompts: int, groups: int) -> None:
    root = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gram = root @ root.mT
    parts = [Part(torch.arange(3), gram), Part(torch.tensor([1]), None)]
    found = [random_law(7 * seed, counts, parts) for seed in range(prompts)]
    mean, second = torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    ways = compositions(prompts, groups)
    for number in ways:
        slots = [found[q][1] for q, n in enumerate(number) for _ in range(n)]
        assert len(slots) == groups
        for batch in itertools.product(*slots):
            share = 1 / len(ways)
            for p, _, _ in batch:
                share *= p
            count = sum(c for _, _, c in batch)
            g = sum((t for _, t, _ in batch), torch.zeros(3, dtype=torch.float64)) / (count or 1.0)
            mean += share * g
            second += share * torch.stack([g @ gram @ g, g[1].square()])
    own_mean, own_second = batch_moments([law for law, _ in found], groups)
    torch.testing.assert_close(own_mean, mean, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(own_second, second, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("kept", "groups"), [(0.1, 16), (0.6, 16), (0.3, 40)])
def test_a_filter_that_keeps_a_share_of_the_groups(kept: float, groups: int) -> None:
    """Where all groups that are kept are the same, so is any mean over them, and only batches with none have none."""
    total = torch.tensor([[0.0, 0.0], [3.0, -1.0]], dtype=torch.float64)
    law = GroupLaw([Part(torch.arange(2), None)])
    law.add(torch.tensor([1 - kept, kept], dtype=torch.float64), total, torch.tensor([0.0, 2.0]).double())
    mean, second = batch_moments([law], groups)
    share = 1 - (1 - kept) ** groups  # of batches in which any group is left: all of them have the same gradient
    torch.testing.assert_close(mean, total[1] / 2 * share, rtol=1e-10, atol=0)
    assert second.item() == pytest.approx(2.5 * share, rel=1e-10)


def prepared(problem: Problem = TINY, **parts: Any) -> tuple[Ground, OnProblem]:
    ground = Ground(problem, LeftToRight(2, temperature=0.9), 2, 1, 0).prepare()
    return ground, OnProblem(exact_estimator(ground.sampler, swaps(parts)), problem)


TOKENS: dict[str, Any] = {"likelihood": StepTokenLogProb(), "loss": TokenPPO()}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "filter": {"filter": [DropEqualRewards()]},
    "success range": {"filter": [SuccessRange(0.4, 0.6)]},
    "tokens": TOKENS,
    "filter and tokens": {**TOKENS, "filter": [DropEqualRewards()]},
    "steps": {**TOKENS, "loss": TokenPPO(normaliser=PerStep()), "selector": EntropyTopK(1)},
    "step length": {**TOKENS, "loss": TokenPPO(normaliser=FixedStepLength())},
    "one at a time": {"filter": [DropEqualRewards()], "one": True},
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("groups", [1, 2])
def test_the_whole_recipe_on_every_batch_gives_the_same(
    name: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = dict(ESTIMATORS[name])
    if parts.pop("one", False):
        monkeypatch.setattr(listing._Together, "gradients", lambda self, index: torch.zeros(()))
    ground, small = prepared(**parts)
    rows, services = ground.services(small)
    found = moments(small, services, rows, 2, groups)
    bank = select(small, services, rows)
    prompts = [(bank.rows["example"] == q).nonzero().squeeze(-1) for q in range(2)]
    expected = listing._batch_by_batch(small, services, bank, prompts, 2, groups)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-9, atol=1e-12)
    assert found.second == pytest.approx(expected.second, rel=1e-9)
    assert found.forwards == pytest.approx(expected.forwards)


# ------------------------------------------------------------------------------------------ verdicts


def by_closed_form(problem: Problem, sampler: Any, group_size: int, groups: int) -> tuple[float, float]:
    """Scale, and bias after it, of DropEqualRewards with LeaveOneOut, from success probabilities and gradients alone.

    A group of prompt q is kept with a_q = 1 - p_q^G - (1 - p_q)^G, and its expected gradient is a_q times that given
    that it is kept. With K the groups kept among the others of the batch, of which n_q are of prompt q,

        E g = sum_q n_q E[1 / (1 + K_q)] grad J_q,    grad J = mean of grad J_q.
    """
    ground = Ground(problem, sampler, group_size, 1, 0).prepare()
    rows = ground.trajectories
    assert rows is not None
    assert {*rows["reward"].tolist()} == {0.0, 1.0}
    each = [rows[rows["example"] == q] for q in range(problem.prompts)]
    gradients = [problem.prompts * true_gradient(part, problem, sampler) for part in each]
    success = [float((part["probability"] * part["reward"]).sum()) for part in each]
    kept = [1 - p**group_size - (1 - p) ** group_size for p in success]
    number = groups // problem.prompts  # of each prompt
    expected = torch.zeros_like(gradients[0])
    for q, gradient in enumerate(gradients):
        others = [a for i, a in enumerate(kept) for _ in range(number - (i == q))]
        law = [1.0]  # of K, one group after the other
        for a in others:
            law = [
                (law[k] if k < len(law) else 0.0) * (1 - a) + (law[k - 1] * a if k else 0.0)
                for k in range(len(law) + 1)
            ]
        expected += number * sum(p / (1 + k) for k, p in enumerate(law)) * gradient
    truth = torch.stack(gradients).mean(0)
    scale = float(expected @ truth / truth.square().sum())
    return scale, float((expected - scale * truth).norm() / expected.norm())


@pytest.mark.parametrize(("group_size", "groups"), [(2, 2), (2, 16), (3, 4), (4, 2)])
def test_scale_and_bias_of_a_filter_are_those_of_the_closed_form(group_size: int, groups: int) -> None:
    problem = Problem(vocab=2, length=2, prompts=2, reward="sparse", seed=3)
    found = audited(problem, groups, group_size, filter=[DropEqualRewards()], advantage=LeaveOneOut())
    scale, after = by_closed_form(problem, LeftToRight(2, temperature=0.9), group_size, groups)
    assert found.exact
    assert found.scale == pytest.approx(scale, rel=1e-8)
    assert found.relative_bias_after_scale == pytest.approx(after, rel=1e-6)
    assert scale > 1.02
    assert after > 1e-3


@pytest.mark.parametrize(("groups", "scale", "after"), [(2, 1.89, 0.045), (16, 3.43, 0.017)])
def test_the_problem_on_which_this_was_found(groups: int, scale: float, after: float) -> None:
    """Low-confidence remasking on two prompts, one of which is solved as often as not, the other hardly ever."""
    estimator = exact_estimator(
        LowConfidence(3, temperature=0.9), swaps({"filter": [DropEqualRewards()], "advantage": LeaveOneOut()})
    )
    found = audit_algorithm(
        estimator, problems=[TWO_PROMPTS], group_size=2, attribution=False, prompts_per_update=groups
    )
    assert found.scale == pytest.approx(scale, abs=0.005)
    assert found.relative_bias_after_scale == pytest.approx(after, abs=0.0005)


def test_a_filter_scales_and_biases_by_how_many_groups_are_left() -> None:
    """One group alone is unbiased; of several, the ones that are kept share the denominator."""
    parts: dict[str, Any] = {"filter": [DropEqualRewards()], "advantage": LeaveOneOut()}
    one, two, many = (audited(TWO_PROMPTS, n, **parts) for n in (1, 2, 16))
    assert one.verdict == "unbiased"
    assert 1 < two.scale < 2 < many.scale < 16
    assert 0.01 < many.relative_bias_after_scale < two.relative_bias_after_scale < 0.2
    for report in (two, many):
        assert report.exact
        assert report.verdict.startswith("biased")


def test_without_a_filter_and_with_a_mean_over_samples_the_number_of_groups_is_nothing() -> None:
    reports = [audited(TWO_PROMPTS, n) for n in (1, 2, 3, 16)]
    assert {report.verdict for report in reports} == {"unbiased"}
    variances = [report.measured[0].variance for report in reports]
    assert variances[1] <= variances[0]  # prompts in turn vary less than prompts drawn
    assert variances[3] == pytest.approx(variances[1], rel=1e-9)


def test_a_count_of_tokens_is_the_batchs() -> None:
    """With more groups the mean over tokens nears the quotient of means; a fixed length is exact with any number."""
    problem = Problem(vocab=2, length=3, prompts=2, eos=True, seed=4)
    after = [audited(problem, n, **TOKENS).relative_bias_after_scale for n in (1, 2, 16)]
    assert after[0] > after[1] > after[2] > 1e-6
    fixed = {**TOKENS, "loss": TokenPPO(normaliser=FixedLength(3))}
    assert all(audited(problem, n, **fixed).relative_bias_after_scale < 1e-8 for n in (1, 2, 16))


class StandardisedOverTheBatch(LeaveOneOut):
    """Divides by the largest advantage of the batch, whichever prompt it belongs to."""

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        found = super().estimate(returns, group)
        return found / (found.abs().max() + 1)


def test_a_component_that_looks_across_groups_is_run_on_whole_batches() -> None:
    parts = {"advantage": StandardisedOverTheBatch()}
    one, two = audited(UNEVEN, 1, **parts), audited(UNEVEN, 2, **parts)
    assert one.exact
    assert two.exact
    assert abs(one.scale - two.scale) > 0.01
    many = audited(UNEVEN, 4, batches=50, **parts)
    assert not many.exact
    assert "a component looks across groups" in " ".join(many.notes)
    assert many.measured[0].groups == 200
    drawn = audited(UNEVEN, 2, batches=3, **parts)
    assert drawn.relative_bias == two.relative_bias  # it is listed whatever the number of batches


@pytest.mark.thorough
def test_sampled_batches_of_such_a_component_agree_with_listed_ones() -> None:
    ground, small = prepared(UNEVEN, advantage=StandardisedOverTheBatch())
    assert ground.truth is not None
    sampled = sampled_gradients(small, 2, 300, 0, groups=2)
    bias, noise = sampled.bias(ground.truth)
    rows, services = ground.services(small)
    exact = moments(small, services, rows, 2, 2).mean - ground.truth
    assert ((bias - exact).square().sum() / noise.trace()).item() < 3


@pytest.mark.thorough
def test_sampled_batches_agree_with_listed_ones() -> None:
    parts = {**TOKENS, "filter": [DropEqualRewards()]}
    ground, small = prepared(**parts)
    assert ground.truth is not None
    rows, services = ground.services(small)
    exact = moments(small, services, rows, 2, 4)
    sampled = sampled_gradients(small, 2, 300, 0, groups=4)
    bias, noise = sampled.bias(ground.truth)
    assert ((bias - (exact.mean - ground.truth)).square().sum() / noise.trace()).item() < 3
    assert sampled.variance == pytest.approx(4 * (exact.second - exact.mean.square().sum().item()), rel=0.35)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["dipo", "tracerl"])
def test_recipes_are_judged_with_the_prompts_of_their_trainer(name: str) -> None:
    own = audit_recipe(name, problems=[TWO_PROMPTS], attribution=False)
    assert own.prompts_per_update == 16
    few = audit_recipe(name, problems=[TWO_PROMPTS], attribution=False, sets=["Trainer.prompts_per_update = 2"])
    assert few.prompts_per_update == 2
    assert own.exact
    assert own.scale > 1.2 * few.scale
    alone = audit_recipe(name, problems=[TWO_PROMPTS], attribution=False, prompts_per_update=1)
    assert few.scale > 1.2 * alone.scale


def test_a_batch_has_a_group() -> None:
    with pytest.raises(AuditError, match="prompts_per_update must be at least 1, got 0"):
        audited(TINY, 0)


# ------------------------------------------------------------------------------------------ where grad J is 0

CONSTANT = Problem(vocab=2, length=3, reward="constant", policy="network", seed=5)


class NoBaseline(LeaveOneOut):
    """Adds the first token to the advantage: not what the policy gradient asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = [*self.in_keys, "completion_ids"]

    def forward(self, tensordict: TensorDictBase, *, keys: Any = ()) -> TensorDictBase:
        found = super().forward(tensordict, keys=keys)
        first = tensordict["completion_ids"][:, 0].double()
        found["selected", "advantage"] = found["selected", "advantage"] + first[:, None]
        return found


def estimator_of(**parts: Any) -> GradientEstimator:
    return exact_estimator(EntropyOrder(3, temperature=0.7), swaps(parts))


def test_an_estimator_that_moves_where_the_gradient_is_zero_is_biased() -> None:
    mean = "likelihood", StepTokenLogProb(sampling_temperature=False)
    moving = {"advantage": NoBaseline()}
    for parts in ({mean[0]: mean[1]}, moving):
        report = audit_algorithm(estimator_of(**parts), problems=[CONSTANT], group_size=1, attribution=False)
        (measured,) = report.measured
        assert measured.relative_bias is None
        assert measured.mean_norm > 1e-3
        assert not report.unbiased
        assert report.verdict == f"biased, |E g| = {measured.mean_norm:.3g} where the true gradient is 0"
        assert report.to_json()["where_gradient_is_zero"]["max"] == measured.mean_norm  # type: ignore[index]


def test_an_estimator_that_rests_there_has_no_verdict_of_it() -> None:
    report = audit_algorithm(estimator_of(), problems=[CONSTANT], group_size=1, attribution=False)
    assert report.measured[0].mean_norm < 1e-12
    assert report.verdict.startswith("no verdict: the true gradient is zero on every problem")
    both = audit_algorithm(
        estimator_of(), problems=[CONSTANT, Problem(vocab=2, length=3, seed=1)], group_size=1, attribution=False
    )
    assert both.verdict == "unbiased"
    assert both.unbiased


def test_zero_gradients_count_beside_others() -> None:
    problems = [CONSTANT, Problem(vocab=2, length=3, seed=1, policy="network")]
    report = audit_algorithm(estimator_of(advantage=NoBaseline()), problems=problems, group_size=1, attribution=False)
    assert report.verdict.startswith("biased, |E g| = ")
    assert "; elsewhere biased, relative bias" in report.verdict


@pytest.mark.thorough
def test_zero_gradients_of_sampled_batches_have_an_interval() -> None:
    ground = Ground(CONSTANT, EntropyOrder(3, temperature=0.7), 1, 200, 0).prepare()
    exact = ground.measure(estimator_of(advantage=NoBaseline()))
    sampled = ground._sampled(OnProblem(estimator_of(advantage=NoBaseline()), CONSTANT))
    assert sampled.interval is not None
    low, high = sampled.interval
    assert low <= exact.mean_norm <= high
    assert low > 0
    assert sampled.moves
    resting = ground._sampled(OnProblem(estimator_of(), CONSTANT))
    assert not resting.moves


class Counting(LeftToRight):
    """Counts its rollouts."""

    calls = 0

    def forward(self, *args: Any, **named: Any) -> TensorDictBase:
        Counting.calls += 1
        return super().forward(*args, **named)


def test_estimators_that_are_sampled_share_their_batches() -> None:
    """They are measured as each alone is, bit for bit, with the rollouts of one."""
    sampler = Counting(2, temperature=0.9)
    masking = [exact_estimator(sampler, Swaps(likelihood=MeanField(prompt_mask_share=share))) for share in (0.2, 0.8)]
    ground = Ground(TINY, sampler, 2, 5, 0, groups=2).prepare()
    before = Counting.calls
    together = [ground.measure(estimator) for estimator in masking]
    assert Counting.calls == before + 5
    assert together[0] != together[1]
    assert together == [Ground(TINY, sampler, 2, 5, 0, groups=2).prepare().measure(one) for one in masking]


@pytest.mark.parametrize("name", [c.name for c in components("filter") if c.package == "dlmrl_kit"])
def test_filters_find_what_they_read_among_exact_components(name: str) -> None:
    """Also where neither loss nor advantage reads it, as with ``DropEqualSpeeds``."""
    (component,) = (c for c in components("filter") if c.name == name)
    assert audited(TINY, 2, filter=[component.cls()]).exact


def test_an_audit_says_where_a_filter_leaves_out_every_group() -> None:
    """Groups of one sample have no reward that differs, so that there is no gradient at all."""
    found = audited(TINY, 2, 1, filter=[DropEqualRewards()])
    assert found.verdict.startswith("biased, relative bias 1: there is no gradient on any problem")
    assert "no gradient" not in audited(TINY, 2, 2, filter=[DropEqualRewards()]).verdict
