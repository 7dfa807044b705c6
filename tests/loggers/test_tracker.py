"""What all trackers share: the package that is missing, options, and the run that a resumed one goes on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.trackers import Recorded, evaluation

from dlmrl_kit.core.errors import CheckpointError, ParameterError, RecipeError, UserError
from dlmrl_kit.loggers.base import evaluation_metrics
from dlmrl_kit.loggers.mlflow import MLflow, _name
from dlmrl_kit.loggers.tracker import Tracker, sample_rows
from dlmrl_kit.loggers.trackio import Trackio
from dlmrl_kit.loggers.wandb import WandB
from dlmrl_kit.recipe.load import load_recipe

TRACKERS: list[type[Tracker]] = [WandB, MLflow, Trackio]


@pytest.mark.parametrize("cls", TRACKERS)
def test_a_missing_package_is_told_when_the_recipe_is_built(
    cls: type[Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlmrl_kit.loggers.tracker.find_spec", lambda name: None)
    advice = rf"{cls.__name__} needs the package {cls.package}: pip install 'dlmrl-kit\[{cls.package}\]'"
    with pytest.raises(UserError, match=advice):
        cls()
    recipe = load_recipe("egspo_sa", uses=[f"logger=MetricsCSV+{cls.__name__}"])
    with pytest.raises(RecipeError, match=advice):
        recipe.build()


@pytest.mark.parametrize("make", [WandB, Trackio])
def test_options_do_not_replace_what_the_component_sets(make: type[WandB] | type[Trackio]) -> None:
    assert make(options={"group": "a"}).options == {"group": "a"}
    with pytest.raises(ParameterError, match=rf"{make.__name__}\.options must be other than .*project"):
        make(options={"project": "a"})


def test_a_run_is_found_again(tmp_path: Path) -> None:
    for expected in (None, "an id"):
        tracker = Recorded()
        tracker.open(tmp_path, 0)
        assert ("start", expected) in tracker.got
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"Recorded": "an id"}
    (tmp_path / "trackers.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"trackers\.json is damaged .*remove it"):
        Recorded().open(tmp_path, 0)


def test_what_an_evaluation_adds() -> None:
    found = evaluation_metrics(evaluation())
    low, high = evaluation().interval()
    assert found == {
        "eval/accuracy_low": low,
        "eval/accuracy_high": high,
        "eval/reward/format": 1.0,
        "eval/pass@4": 1.0,
    }
    assert sample_rows(3, evaluation()) == [[3, "1+1|<b>", "2\n", "2", 1.0, 0.75]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reward/cells", "reward.cells"),
        ("../../a", "a"),
        ("..", "_"),
        ("", "_"),
        ("a$\n", "a__"),
        ("x" * 999, "x" * 250),
    ],
)
def test_names_that_mlflow_takes(name: str, expected: str) -> None:
    assert _name(name) == expected
