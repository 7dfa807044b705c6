"""The plan of an algorithm: order, on-demand keys, old and reference twins, and recipes that do not fit together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.runs import build, new_run, recipe
from tensordict import TensorDict, TensorDictBase

from dlmrl_kit.algorithm.dataflow import PROMPT_KEYS, Plan, make_plan, plain_key, twin_key
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import KEYS, Key
from dlmrl_kit.likelihoods.steps import StepTokenLogProb
from dlmrl_kit.losses.base import Objective

STEP_REWARD: Key = ("selected", "reward")
ORDERS: dict[str, list[str]] = {
    "egspo": ["LowConfidence", "FinalReward", "EntropyTopK", "GroupMean"],
    "egspo_sa": ["LowConfidence", "FinalReward", "EntropyTopK", "SelectedReward", "OneStepDenoise"],
    "ada_egspo": ["LowConfidence", "FinalReward", "EntropyCoverage", "SelectedReward", "OneStepDenoise"],
    "grpo_steps": ["LowConfidence", "FinalReward", "UniformSteps", "GroupMean"],
    "reinforce_exact": ["LowConfidence", "FinalReward", "AllSteps", "LeaveOneOut"],
}


def names(found: Plan) -> list[str]:
    return [type(part).__name__ for part in found.rollout]


def reading(*keys: Key, writes: Sequence[Key] = (), base: type[Component] = Component) -> Component:
    """A component with these keys that does nothing."""

    class Reader(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.in_keys = [*self.in_keys, *keys] if base is not Component else list(keys)
            self.out_keys = [*self.out_keys, *writes] if base is not Component else list(writes)

        def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
            return tensordict

    return Reader()


def loss_reading(*keys: Key) -> Objective:
    class Loss(Objective):
        def total(self, tensordict: TensorDictBase) -> Any:
            return tensordict["selected", "log_prob"].sum(), {}

    return Loss([("selected", "log_prob"), ("selected", "weight"), *keys])


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_every_recipe(name: str) -> None:
    algorithm = build(name)
    assert names(algorithm.plan) == ORDERS[name]
    assert algorithm.plan.rollout[0] is algorithm.sampler
    exact = name == "reinforce_exact"
    kl = [] if exact else [("selected", "log_prob")]
    assert list(algorithm.plan.reference) == kl
    assert algorithm.plan.live_reference == ()
    assert algorithm.plan.needs_reference == (not exact)
    old = {} if exact else {("selected", "old_log_prob"): ("step", "model_log_prob")}
    assert algorithm.plan.old == old
    greedy = {("step", "greedy_ids")} if "SelectedReward" in ORDERS[name] else set()
    assert set(algorithm.sampler.asked) == greedy | {key for key in old.values() if key[0] == "step"}


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
    assert set(algorithm.sampler.asked) == asked
    assert set(algorithm.sampler.written_keys()) == set(algorithm.sampler.out_keys) | asked


def test_a_rollout_holds_the_keys_of_the_plan_and_no_others(tmp_path: Any) -> None:
    for uses, expected in ((["advantage=GroupMean"], set()), ([], {("step", "greedy_ids"), STEP_REWARD})):
        run = new_run(tmp_path, uses=uses)
        trajectory = run.collect(0).kept
        found = set(trajectory.keys(include_nested=True, leaves_only=True))
        written = {key for part in run.algorithm.plan.rollout for key in part.written_keys()}
        assert found == written | set(PROMPT_KEYS)
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
    assert set(build(uses=uses).likelihood.asked) == asked


def test_twins_are_planned_where_they_are_read() -> None:
    both = build(uses=["loss=TokenPPO", "regulariser=KLExact+KLK1"], sets=["KLK1.to = 'old'"]).plan
    assert both.old == {
        ("selected", "old_log_prob"): ("step", "model_log_prob"),
        ("selected", "old_token_log_prob"): ("token", "model_log_prob"),
    }
    assert (both.reference, both.live_reference) == ((), (("selected", "distribution"),))
    algorithm = build()
    algorithm.loss = loss_reading(("selected", "old_entropy"), ("selected", "ref_entropy"))
    found = make_plan(algorithm)
    assert found.old == {("selected", "old_entropy"): None}  # nobody records it: the likelihood runs before the update
    assert set(found.reference) == {("selected", "log_prob"), ("selected", "entropy")}
    assert ("selected", "entropy") in algorithm.likelihood.asked


def test_names_of_twins() -> None:
    assert (
        plain_key(("selected", "old_log_prob")) == plain_key(("selected", "ref_log_prob")) == ("selected", "log_prob")
    )
    for key in (("selected", "log_prob"), ("step", "old_log_prob"), "old_reward", ("selected", "older")):
        assert plain_key(key) == key
    assert twin_key(("selected", "x"), "ref_") == ("selected", "ref_x")


def test_a_selector_that_reads_rewards_runs_after_them() -> None:
    algorithm = build("egspo")
    algorithm.selector = reading("reward", ("step", "valid"), writes=[("selected", "step"), ("selected", "weight")])
    assert names(make_plan(algorithm)) == ["LowConfidence", "FinalReward", "Reader", "GroupMean"]
    algorithm.selector = reading(("step", "valid"), writes=[("selected", "step"), ("selected", "weight")])
    algorithm.advantage = reading("reward", "group", writes=[("selected", "advantage")])
    assert names(make_plan(algorithm)) == ["LowConfidence", "FinalReward", "Reader", "Reader"]
    algorithm.selector = reading(("selected", "advantage"), writes=[("selected", "step"), ("selected", "weight")])
    found = make_plan(algorithm)
    assert found.rollout[2:] == (algorithm.advantage, algorithm.selector)


# ------------------------------------------------------------------------------------------- what is refused


def refused(message: str, name: str = "egspo", **parts: Any) -> None:
    algorithm = build(name)
    for slot, part in parts.items():
        setattr(algorithm, slot, part)
    with pytest.raises(RecipeError, match=re.escape(message)):
        make_plan(algorithm)


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
    algorithm = build()
    algorithm.loss = loss_reading(("selected", "ref_distribution"))
    assert make_plan(algorithm).live_reference == (("selected", "distribution"),)


def test_keys_that_nobody_writes_are_named() -> None:
    message = "Loss reads ('selected', 'typo'), which no component before it writes (before it run LowConfidence, "
    refused(message, loss=loss_reading(("selected", "typo")))
    refused("no registered component writes it", loss=loss_reading(("selected", "typo")))
    refused(
        "Reader reads ('step', 'typo'), which no component before it writes (before it run LowConfidence, FinalReward)",
        selector=reading(("step", "typo"), writes=[("selected", "step"), ("selected", "weight")]),
    )
    refused("Reader reads 'typo'", sampler=reading("typo", writes=["completion_ids"]))


def test_a_sampler_that_does_not_record_what_the_likelihood_claims_is_refused() -> None:
    class Claims(StepTokenLogProb):
        @property
        def recorded(self) -> dict[Key, Key]:
            return {("selected", "log_prob"): ("step", "unheard_of")}

    refused("Claims reads ('step', 'unheard_of'), which no component before it writes", likelihood=Claims())


def test_two_that_wait_for_each_other_are_refused() -> None:
    refused(
        "Reader reads ('selected', 'advantage'), which no component before it writes",
        selector=reading(("selected", "advantage"), writes=[("selected", "step"), ("selected", "weight")]),
        advantage=reading(("selected", "weight"), writes=[("selected", "advantage")]),
    )


@pytest.mark.parametrize("key", ["completion_ids", "prompt_ids", "reward", ("step", "valid")])
def test_no_component_writes_what_is_there(key: Key) -> None:
    message = f"Reader writes {key!r}, which a component before it has already written"
    chosen: list[Key] = [("selected", "step"), ("selected", "weight")]
    refused(message, selector=reading("reward", writes=[*chosen, key]))
    likelihood = reading(writes=[key], base=StepTokenLogProb)
    refused(message, likelihood=likelihood)


def test_a_recipe_that_does_not_fit_is_refused_with_its_file() -> None:
    given = recipe(uses=["likelihood=StepLogProb", "loss=TokenPPO"])
    with pytest.raises(RecipeError, match=r"^/.*/recipes/egspo_sa\.gin: TokenPPO reads"):
        given.build()


def test_one_step_completions_of_chosen_steps_only_where_nothing_else_reads_them() -> None:
    """And where the choice is known to be nested from what a rollout under way holds."""
    algorithm = build()
    steps = {name: torch.ones(1, 20) for name in ("entropy", "num_committed")}
    row = TensorDict({"step": {"valid": torch.ones(1, 20, dtype=torch.bool), **steps}}, [1])
    assert algorithm.plan.may_choose(row).tolist() == [[t < algorithm.selector.k for t in range(20)]]
    algorithm.advantage.in_keys.append(("step", "greedy_ids"))
    assert make_plan(algorithm).may_choose is None
    algorithm = build()
    algorithm.selector.in_keys.append("commit_step")
    assert make_plan(algorithm).may_choose is None
    assert build("ada_egspo").plan.may_choose is None


def test_a_run_makes_one_step_completions_of_chosen_steps(tmp_path: Any) -> None:
    sets = ["Sampler.block_length = 4", "Sampler.tokens_per_step = 1", "Selector.k = 3"]
    run = new_run(tmp_path, sets=sets)
    trajectory = run.collect(0).everything
    greedy = trajectory["step", "greedy_ids"]
    made = (greedy != -1).all(-1)
    assert made.gather(1, trajectory["selected", "step"]).all()
    first_blocks = trajectory["step", "valid"][:, :12]  # nothing lies behind the last of four
    assert torch.equal((made[:, :12] & first_blocks).sum(-1), run.algorithm.plan.may_choose(trajectory)[:, :12].sum(-1))


def test_what_was_asked_before_is_forgotten() -> None:
    algorithm = build()
    assert ("step", "greedy_ids") in algorithm.sampler.asked
    algorithm.advantage = build("egspo").advantage
    make_plan(algorithm)
    assert ("step", "greedy_ids") not in algorithm.sampler.asked
    with pytest.raises(ValueError, match=r"LowConfidence cannot write \['typo'\]"):
        algorithm.sampler.ask_for(["typo"])
