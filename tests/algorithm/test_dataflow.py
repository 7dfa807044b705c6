"""The plan of an algorithm: order, on-demand keys, old and reference twins, and recipes that do not fit together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.runs import build, new_run, recipe
from tensordict import TensorDict, TensorDictBase

from dlmrl_kit.advantages.base import Advantage
from dlmrl_kit.algorithm.algorithm import Algorithm, GradientEstimator
from dlmrl_kit.algorithm.dataflow import PROMPT_KEYS, Plan, make_plan, plain_key, twin_key
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import KEYS, Key
from dlmrl_kit.likelihoods.steps import StepTokenLogProb
from dlmrl_kit.losses.base import Objective
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.selectors.base import Selector

STEP_REWARD: Key = ("selected", "reward")
CHOSEN: list[Key] = [("selected", "step"), ("selected", "weight")]
ORDERS: dict[str, list[str]] = {
    "egspo": ["LowConfidence", "EntropyTopK", "FinalReward", "GroupMean"],
    "egspo_sa": ["LowConfidence", "EntropyTopK", "FinalReward", "SelectedReward", "OneStepDenoise"],
    "ada_egspo": ["LowConfidence", "EntropyCoverage", "FinalReward", "SelectedReward", "OneStepDenoise"],
    "grpo_steps": ["LowConfidence", "UniformSteps", "FinalReward", "GroupMean"],
    "reinforce_exact": ["LowConfidence", "AllSteps", "FinalReward", "LeaveOneOut"],
}
"""As they run: what needs no reward comes before those, which are computed in the background meanwhile."""


def names(found: Plan) -> list[str]:
    return [stage.name for stage in found.rollout]


def reading(base: type[Component], *keys: Key, writes: Sequence[Key] = ()) -> Any:
    """A component of this kind with these keys."""

    class Reader(base):  # type: ignore[misc,valid-type]
        def __init__(self, *settings: Any) -> None:
            super().__init__(*settings)
            self.in_keys, self.out_keys = list(keys), list(writes)

        def forward(self, tensordict: TensorDictBase, **services: Any) -> TensorDictBase:
            return tensordict

    return Reader(16) if issubclass(base, Sampler) else Reader()


def swapped(algorithm: Algorithm, **parts: Any) -> GradientEstimator:
    """The components of an algorithm with others in some slots."""
    return GradientEstimator(**{**algorithm.fillings, **parts})


def loss_reading(*keys: Key) -> Objective:
    class Loss(Objective):
        def total(self, tensordict: TensorDictBase) -> Any:
            return tensordict["selected", "log_prob"].sum(), {}

    return Loss([("selected", "log_prob"), ("selected", "weight"), *keys])


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_every_recipe(name: str) -> None:
    algorithm = build(name)
    plan = make_plan(algorithm)
    assert names(plan) == ORDERS[name]
    assert [stage.name for stage in plan.before_rewards] == [ORDERS[name][1]]
    assert plan.rollout[0].component is plan.sampler.component is algorithm.sampler
    exact = name == "reinforce_exact"
    kl = {} if exact else {("selected", "log_prob"): ("selected", "ref_log_prob")}
    assert plan.reference == kl
    assert plan.live_reference == {}
    assert plan.needs_reference == (not exact)
    old = {} if exact else {("selected", "old_log_prob"): ("step", "model_log_prob")}
    assert plan.old == old
    assert plan.computed_old == {}
    greedy = {("step", "greedy_ids")} if "SelectedReward" in ORDERS[name] else set()
    assert set(plan.sampler.keys) == greedy | {key for key in old.values() if key[0] == "step"}


ASKED: list[tuple[list[str], list[str], set[Key]]] = [
    (["likelihood=StepLogProb"], [], set()),
    ([], ["StepTokenLogProb.sampling_temperature = True"], {("step", "token_log_prob")}),
    ([], [], {("step", "model_log_prob")}),
    (["loss=TokenPPO", "regulariser=none"], [], {("token", "model_log_prob")}),
    (
        ["loss=TokenPPO", "regulariser=KLK1"],
        ["StepTokenLogProb.sampling_temperature = True", "KLK1.to = 'old'"],
        {("token", "log_prob"), ("step", "token_log_prob")},
    ),
    (["advantage=OneStepDenoise", "loss=Reinforce", "regulariser=none"], [], {("step", "greedy_ids")}),
    (["loss=Reinforce", "regulariser=EntropyBonus"], [], set()),
]


@pytest.mark.parametrize(("uses", "sets", "asked"), ASKED)
def test_the_sampler_writes_on_demand_what_is_read_and_no_more(
    uses: list[str], sets: list[str], asked: set[Key]
) -> None:
    algorithm = build("egspo", sets=sets, uses=uses)
    stage = make_plan(algorithm).sampler
    assert set(stage.keys) == asked
    assert set(stage.writes) == set(algorithm.sampler.out_keys) | asked


def test_a_rollout_holds_the_keys_of_the_plan_and_no_others(tmp_path: Any) -> None:
    for uses, expected in ((["advantage=GroupMean"], set()), ([], {("step", "greedy_ids"), STEP_REWARD})):
        run = new_run(tmp_path, uses=uses)
        rollout, plan = run.update.roll_out(0), run.update.plan
        trajectory = rollout.kept
        found = set(trajectory.keys(include_nested=True, leaves_only=True))
        written = {key for stage in plan.rollout for key in stage.writes}
        fixed = {*plan.old, *plan.reference.values()} if rollout.prepared else set()
        assert found == written | set(PROMPT_KEYS) | fixed
        assert {("step", "greedy_ids"), STEP_REWARD} & found == expected
        assert found <= set(KEYS)
        for key in found:
            assert str(trajectory[key].dtype).removeprefix("torch.") == KEYS[key].dtype, key


@pytest.mark.parametrize(
    ("uses", "asked"),
    [
        (["regulariser=none"], set()),
        (["regulariser=KLExact"], {("selected", "distribution"), ("selected", "token_mask")}),
        (["regulariser=EntropyBonus"], {("selected", "entropy")}),
        (["loss=TokenPPO", "regulariser=none"], {("selected", "token_log_prob"), ("selected", "token_mask")}),
    ],
)
def test_the_likelihood_writes_on_demand_what_is_read_and_no_more(uses: list[str], asked: set[Key]) -> None:
    assert set(make_plan(build(uses=uses)).likelihood.keys) == asked


def test_twins_are_planned_where_they_are_read() -> None:
    both = make_plan(build(uses=["loss=TokenPPO", "regulariser=KLExact+KLK1"], sets=["KLK1.to = 'old'"]))
    assert both.old == {
        ("selected", "old_log_prob"): ("step", "model_log_prob"),
        ("selected", "old_token_log_prob"): ("token", "model_log_prob"),
    }
    assert both.reference == {}
    assert both.live_reference == {("selected", "distribution"): ("selected", "ref_distribution")}
    found = make_plan(swapped(build(), loss=loss_reading(("selected", "old_entropy"), ("selected", "ref_entropy"))))
    assert found.old == {("selected", "old_entropy"): None}  # nobody records it: the likelihood runs before the update
    assert found.computed_old == {("selected", "entropy"): ("selected", "old_entropy")}
    assert found.reference == {
        ("selected", "log_prob"): ("selected", "ref_log_prob"),
        ("selected", "entropy"): ("selected", "ref_entropy"),
    }
    assert ("selected", "entropy") in found.likelihood.keys


def test_names_of_twins() -> None:
    assert (
        plain_key(("selected", "old_log_prob")) == plain_key(("selected", "ref_log_prob")) == ("selected", "log_prob")
    )
    for key in (("selected", "log_prob"), ("step", "old_log_prob"), "old_reward", ("selected", "older")):
        assert plain_key(key) == key
    assert twin_key(("selected", "x"), "ref_") == ("selected", "ref_x")


def test_a_selector_that_reads_rewards_runs_after_them() -> None:
    algorithm = build("egspo")
    selector = reading(Selector, "reward", ("step", "valid"), writes=CHOSEN)
    found = make_plan(swapped(algorithm, selector=selector))
    assert names(found) == ["LowConfidence", "FinalReward", "Reader", "GroupMean"]
    assert found.before_rewards == ()
    selector = reading(Selector, ("step", "valid"), writes=CHOSEN)
    advantage = reading(Advantage, "reward", "group", writes=[("selected", "advantage")])
    found = make_plan(swapped(algorithm, selector=selector, advantage=advantage))
    assert names(found) == ["LowConfidence", "Reader", "FinalReward", "Reader"]
    assert [stage.component for stage in found.before_rewards] == [selector]
    selector = reading(Selector, ("selected", "advantage"), writes=CHOSEN)
    found = make_plan(swapped(algorithm, selector=selector, advantage=advantage))
    assert [stage.component for stage in found.rollout[2:]] == [advantage, selector]


# ------------------------------------------------------------------------------------------- what is refused


def refused(message: str, name: str = "egspo", **parts: Any) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        make_plan(swapped(build(name), **parts))


@pytest.mark.parametrize("uses", [["loss=TokenPPO", "regulariser=none"], ["loss=TokenPPO"]])
def test_token_ppo_needs_log_probs_of_tokens(uses: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        build(uses=["likelihood=StepLogProb", *uses])
    assert "TokenPPO reads ('selected', 'token_log_prob'), which no component before it writes" in str(error.value)
    writers = str(error.value).partition("components that write it: ")[2].split(", ")
    assert "likelihood StepTokenLogProb" in writers
    assert "likelihood StepLogProb" not in writers


def test_whole_distributions_have_no_old_twin() -> None:
    refused(
        "Loss reads ('selected', 'old_distribution'), which is never kept: whole distributions are too large to store "
        "with a trajectory; there is ('selected', 'ref_distribution')",
        loss=loss_reading(("selected", "old_distribution")),
    )
    found = make_plan(swapped(build(), loss=loss_reading(("selected", "ref_distribution"))))
    assert found.live_reference == {("selected", "distribution"): ("selected", "ref_distribution")}


def test_keys_that_nobody_writes_are_named() -> None:
    message = "Loss reads ('selected', 'typo'), which no component before it writes (before it run LowConfidence, "
    refused(message, loss=loss_reading(("selected", "typo")))
    refused("no registered component writes it", loss=loss_reading(("selected", "typo")))
    refused(
        "Reader reads ('step', 'typo'), which no component before it writes (before it run LowConfidence, FinalReward)",
        selector=reading(Selector, ("step", "typo"), writes=CHOSEN),
    )
    refused("Reader reads 'typo'", sampler=reading(RandomOrder, "typo", writes=["completion_ids"]))


def test_a_sampler_that_does_not_record_what_the_likelihood_claims_is_refused() -> None:
    class Claims(StepTokenLogProb):
        @property
        def recorded(self) -> dict[Key, Key]:
            return {("selected", "log_prob"): ("step", "unheard_of")}

    refused("Claims reads ('step', 'unheard_of'), which no component before it writes", likelihood=Claims())


def test_two_that_wait_for_each_other_are_refused() -> None:
    refused(
        "Reader reads ('selected', 'advantage'), which no component before it writes",
        selector=reading(Selector, ("selected", "advantage"), writes=CHOSEN),
        advantage=reading(Advantage, ("selected", "weight"), writes=[("selected", "advantage")]),
    )


@pytest.mark.parametrize("key", ["completion_ids", "prompt_ids", "reward", ("step", "valid")])
def test_no_component_writes_what_is_there(key: Key) -> None:
    message = f"Reader writes {key!r}, which a component before it has already written"
    refused(message, selector=reading(Selector, "reward", writes=[*CHOSEN, key]))
    own = StepTokenLogProb()
    refused(message, likelihood=reading(StepTokenLogProb, *own.in_keys, writes=[*own.out_keys, key]))


def test_a_recipe_that_does_not_fit_is_refused_with_its_file() -> None:
    given = recipe(uses=["likelihood=StepLogProb", "loss=TokenPPO"])
    with pytest.raises(RecipeError, match=r"^/.*/recipes/egspo_sa\.gin: TokenPPO reads"):
        given.build()


def test_one_step_completions_of_chosen_steps_only_where_nothing_else_reads_them() -> None:
    """And where the choice is known to be nested from what a rollout under way holds."""
    algorithm = build()
    may_choose = make_plan(algorithm).may_choose
    assert may_choose is not None
    steps = {name: torch.ones(1, 20) for name in ("entropy", "num_committed")}
    row = TensorDict({"step": {"valid": torch.ones(1, 20, dtype=torch.bool), **steps}}, [1])
    assert may_choose(row).tolist() == [[t < algorithm.selector.k for t in range(20)]]
    algorithm.advantage.in_keys.append(("step", "greedy_ids"))
    assert make_plan(algorithm).may_choose is None
    algorithm = build()
    algorithm.selector.in_keys.append("commit_step")
    assert make_plan(algorithm).may_choose is None
    assert make_plan(build("ada_egspo")).may_choose is None


@pytest.mark.parametrize("distribution", ["behaviour", "model"])
def test_a_run_makes_one_step_completions_of_chosen_steps(distribution: str, tmp_path: Any) -> None:
    sets = ["Sampler.block_length = 4", "Sampler.tokens_per_step = 1", "Selector.k = 3"]
    sets.append(f"EntropyTopK.distribution = {distribution!r}")
    run = new_run(tmp_path, sets=sets)
    trajectory, may_choose = run.update.roll_out(0).everything, run.update.plan.may_choose
    assert may_choose is not None
    greedy = trajectory["step", "greedy_ids"]
    made = (greedy != -1).all(-1)
    assert made.gather(1, trajectory["selected", "step"]).all()
    first_blocks = trajectory["step", "valid"][:, :12]  # nothing lies behind the last of four
    assert torch.equal((made[:, :12] & first_blocks).sum(-1), may_choose(trajectory)[:, :12].sum(-1))
