"""Rollouts of collectors: the run is the one without, those of one update behind are noticed, and kept when resumed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.collectors import Here, kept, same, updates
from support.faults.collectors import LeavesKeysOut, SortsPrompts
from support.paths import ROOT
from support.runs import build, outcome, recipe, stopped
from support.several import Pool
from tensordict import TensorDictBase

from dlmrl_kit.collectors.base import Weights
from dlmrl_kit.core.errors import ComponentError, RecipeError
from dlmrl_kit.core.registry import register
from dlmrl_kit.training import resume, train
from dlmrl_kit.training.checkpoint import checkpoints

HERE = ["collector=Here"]
BEHIND = ["collector=OneUpdateBehind"]
OF_HERE = ["OneUpdateBehind.collector = @Here()"]
CORRECTED = [*OF_HERE, "Algorithm.correction = @TruncatedImportance()"]
PIECES = ["Trainer.rollout_batch_size = 2"]
OPEN = ["SuccessRange.low = 0.0", "SuccessRange.high = 1.0"]

CASES: dict[str, tuple[str, list[str], list[str]]] = {
    "recorded": ("egspo_sa", PIECES, []),
    "at once": ("egspo_sa", [], []),
    "adapter": ("egspo_sa", ["Pretrained.lora_rank = 2"], []),
    "learned order": ("dcolt", PIECES, []),
    "value model": ("tracerl_value", [*PIECES, *OPEN], []),
    "cache": ("egspo_sa", PIECES, ["cache=DualCache"]),
    "entropy order": ("egspo_sa", PIECES, ["sampler=EntropyOrder"]),
    "computed old log-probability": ("d1", PIECES, []),
    "completions on demand": ("ada_egspo", PIECES, []),
    "bfloat16": ("egspo_sa", ["Trainer.precision = 'bfloat16'"], []),
}


QUICK = ("recorded", "learned order")


def check_same(case: str, folder: Path) -> None:
    name, sets, uses = CASES[case]
    wanted = updates(folder, name, sets, uses)
    assert wanted[0][0]["grad_norm"] > 0
    assert same(updates(folder, name, sets, [*uses, *HERE]), wanted)


@pytest.mark.parametrize("case", QUICK)
def test_a_copy_of_the_policy_samples_the_same(case: str, tmp_path: Path) -> None:
    check_same(case, tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("case", [case for case in CASES if case not in QUICK])
def test_a_copy_of_the_policy_samples_the_same_in_every_recipe(case: str, tmp_path: Path) -> None:
    check_same(case, tmp_path)


def test_one_update_behind(tmp_path: Path) -> None:
    """The first rollout is of the policy itself, later ones are of the update before; the correction notices."""
    metrics, _ = updates(tmp_path, "egspo_sa", CORRECTED, BEHIND, number=4)
    assert [row["rollout/updates_behind"] for row in metrics] == [0, 1, 1, 1]
    assert metrics[0]["correction/drift"] < 1e-4
    assert all(row["correction/drift"] > 0.01 for row in metrics[1:])
    assert all(0 < row["correction/effective_sample_size"] < 0.999 for row in metrics[1:])


def test_recorded_log_probabilities_are_those_of_the_weights_that_sampled(tmp_path: Path) -> None:
    """Without a correction the ratio of the loss has the behaviour policy in it, so that it does not start at 1."""
    sets = ["Trainer.minibatches = 1", "Trainer.learning_rate = 1e-3"]
    now, _ = updates(tmp_path, "egspo_sa", sets, number=2)
    behind, _ = updates(tmp_path, "egspo_sa", [*sets, *OF_HERE], BEHIND, number=2)
    assert behind[0] == {**now[0], "rollout/updates_behind": 0}
    assert now[1]["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert behind[1]["ratio_max"] > 1.01


@pytest.mark.thorough
@pytest.mark.parametrize("at", [1, 3])
def test_a_resumed_run_is_the_uninterrupted_one(at: int, tmp_path: Path) -> None:
    given = recipe("egspo_sa", CORRECTED, BEHIND)
    train(given, tmp_path / "whole")
    stopped(lambda: train(given, tmp_path / "cut"), at)
    resume(tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    ahead = [(path / "rollouts.safetensors").is_file() for _, path in checkpoints(tmp_path / "whole")]
    assert ahead == [True, False]  # after the last update there is none to come


class Failing(Here):
    """Fails from the second update on."""

    def collect(self, prompts: TensorDictBase, weights: Weights, version: int) -> TensorDictBase:
        if len(self.seen) == 2:
            raise RuntimeError("lost")
        return super().collect(prompts, weights, version)


@pytest.mark.thorough
@pytest.mark.usefixtures("registrations_end")
def test_a_rollout_that_fails_does_not_cost_the_checkpoint(tmp_path: Path) -> None:
    register("collector")(Failing)
    given = recipe("egspo_sa", ["OneUpdateBehind.collector = @Failing()", "Trainer.eval_every = 0"], BEHIND)
    with pytest.raises(ComponentError, match=r"Failing .*failed with RuntimeError: lost"):
        train(given, tmp_path / "run")
    ((done, folder),) = checkpoints(tmp_path / "run")[-1:]
    assert done == 2
    assert not (folder / "rollouts.safetensors").exists()


@pytest.mark.thorough
def test_several_processes_keep_what_is_under_way(pool: Pool, tmp_path: Path) -> None:
    found = pool.run(kept, str(tmp_path), CORRECTED, BEHIND)
    assert len(found[1][0]) > 5
    assert all(own == found[1][0] for world in (2, 3) for own in found[world])


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "sets", "uses", "message"),
    [
        (
            "d1",
            OF_HERE,
            BEHIND,
            "MeanField computes the old log-probability.*TrajectoryImportance or Uncorrected",
        ),
        ("reinforce_exact", OF_HERE, BEHIND, "Reinforce reads no old log-probability.*TruncatedImportance"),
        ("vrpo", [], HERE, "Here samples where the policy is all .*PreferencePairs needs examples"),
        ("egspo_sa", ["Trainer.sharding = 'full'"], HERE, "Here is given whole weights.*'full': set it to 'none'"),
    ],
)
def test_what_goes_with_no_collector(name: str, sets: list[str], uses: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(name, sets, uses)


def test_only_collectors_fill_the_slot() -> None:
    with pytest.raises(RecipeError, match="collector"):
        build("egspo_sa", (), ["collector=MetricsCSV"])


@pytest.mark.usefixtures("registrations_end")
@pytest.mark.parametrize(
    ("cls", "message"),
    [(SortsPrompts, "in another order than that of the prompts"), (LeavesKeysOut, "without 'commit_step'")],
)
def test_other_trajectories_than_those_of_the_prompts_are_refused(cls: type, message: str, tmp_path: Path) -> None:
    register("collector")(cls)
    with pytest.raises(ComponentError, match=f"{cls.__name__} of support.*collect returned trajectories {message}"):
        updates(tmp_path, uses=[f"collector={cls.__name__}"])


@pytest.mark.usefixtures("registrations_end")
def test_the_collector_of_the_page_samples_the_same(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "rollouts-elsewhere.md").read_text()
    (example,) = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(compile(example, "rollouts-elsewhere.md", "exec"), {"__name__": "acme_rollouts"})
    sets = ["Trainer.rollout_batch_size = 1"]
    wanted = updates(tmp_path, sets=sets, number=2)
    assert same(updates(tmp_path, sets=sets, uses=["collector=OneByOne"], number=2), wanted)
