"""What a plugin's component raises, or returns in another form, names it; the traceback goes to the run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import recipe
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.core import blame
from dlmrl_kit.core.errors import ComponentError, UserError
from dlmrl_kit.core.keys import ADVANTAGE, STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.loggers.metrics_csv import MetricsCSV
from dlmrl_kit.losses.ppo import StepPPO
from dlmrl_kit.policies.pretrained import Pretrained
from dlmrl_kit.regularisers.kl import KLK3
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.tasks.base import Example
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.training import train

pytestmark = pytest.mark.usefixtures("registrations_end")

RUN = ["Trainer.updates = 1", "Trainer.eval_every = 0"]
"""Made-up plugins are classes of this file."""


class Boom(Exception):
    """An error of a plugin's own."""


def boom(*_: Any, **__: Any) -> Any:
    raise Boom("it went\nwrong")


def faulty(kind: str, base: type, name: str, method: str, body: Callable[..., Any]) -> type:
    """A registered component of a plugin, whose ``method`` does ``body``."""
    return register(kind)(type(name, (base,), {method: body, "__module__": __name__, "__doc__": "Faulty."}))


RAISING: dict[str, tuple[str, type, str]] = {
    "task": ("score", Sudoku4x4, "task"),
    "policy": ("load", Pretrained, "policy"),
    "sampler": ("decide", LowConfidence, "sampler"),
    "advantage": ("forward", GroupMean, "advantage"),
    "loss": ("total", StepPPO, "loss"),
    "regulariser": ("forward", KLK3, "regulariser"),
    "logger": ("log", MetricsCSV, "logger"),
    "selector": ("kept", Selector, "selector"),
}


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blame, "distribution_of", lambda package: "acme-steps 0.2")


@pytest.mark.parametrize(
    "kind", [*list(RAISING)[:3], *(pytest.param(kind, marks=pytest.mark.thorough) for kind in list(RAISING)[3:])]
)
def test_what_a_component_raises_names_it(kind: str, tmp_path: Path) -> None:
    method, base, _ = RAISING[kind]
    name = f"Raising{kind.title()}"
    cls = faulty(kind, base, name, method, lambda self, *_, **__: boom())
    sets = [*RUN, *([f"{name}.path = 'shipped:sudoku4x4'"] if kind == "policy" else [])]
    folder = tmp_path / "run"
    with pytest.raises(ComponentError) as info:
        train(recipe("egspo", sets=sets, uses=[f"{kind}={name}"]), folder)
    package = cls.__module__.split(".")[0]
    assert str(info.value).startswith(
        f"{name} of {package} (acme-steps 0.2) failed with Boom: it went wrong ({__file__}:"
    )
    assert str(info.value).endswith(f"; the traceback is in {folder / 'traceback.txt'}")
    text = (folder / "traceback.txt").read_text()
    assert "Boom: it went" in text
    assert "in boom" in text


SCORES: dict[str, Any] = {
    "none": None,
    "no list": 0.5,
    "text": [{"reward": "1", "solved": 1.0}],
    "nan": [{"reward": float("nan"), "solved": 1.0}],
    "without solved": [{"reward": 1.0}],
    "too few": [],
}


@pytest.mark.thorough
@pytest.mark.parametrize("what", SCORES)
def test_scores_of_another_form_name_the_task(what: str, tmp_path: Path) -> None:
    def score_many(self: Any, completions: list[str], examples: list[Example]) -> Any:
        found = SCORES[what]
        return found * len(completions) if isinstance(found, list) else found

    faulty("task", Sudoku4x4, "OddScores", "score_many", score_many)
    with pytest.raises(ComponentError, match=r"OddScores of \w+ .acme-steps 0.2.: score_many returned "):
        train(recipe("egspo", sets=[*RUN, "OddScores.cells_weight = 0.5"], uses=["task=OddScores"]), tmp_path / "run")


def test_examples_and_policies_of_another_form_name_their_component(tmp_path: Path) -> None:
    faulty("task", Sudoku4x4, "OddExamples", "example", lambda self, split, index: "1_3_")
    faulty("policy", Pretrained, "OddPolicy", "load", lambda self: torch.nn.Linear(2, 2))
    with pytest.raises(ComponentError, match=r"OddExamples of .*: example returned '1_3_'; it should be an Example"):
        train(recipe("egspo", sets=RUN, uses=["task=OddExamples"]), tmp_path / "run")
    sets = [*RUN, "OddPolicy.path = 'shipped:sudoku4x4'"]
    with pytest.raises(ComponentError, match=r"OddPolicy of .*: load returned a Linear; it should be Transformers"):
        train(recipe("egspo", sets=sets, uses=["policy=OddPolicy"]), tmp_path / "run")


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "a scalar per row too many": lambda reward: reward[:, None],
    "two per row": lambda reward: torch.stack([reward, reward], -1),
}


@pytest.mark.parametrize("which", SHAPES)
def test_a_key_of_the_wrong_shape_names_its_writer(which: str, tmp_path: Path) -> None:
    def forward(self: Any, tensordict: TensorDict, **_: Any) -> TensorDict:
        return tensordict.set(ADVANTAGE, SHAPES[which](tensordict["reward"]))

    faulty("advantage", GroupMean, "WrongShape", "forward", forward)
    with pytest.raises(
        UserError,
        match=r"WrongShape \(acme-steps 0\.2\) writes 'advantage' with shape \[6, \d\]; it should be \[B\], here",
    ):
        train(recipe("egspo", sets=RUN, uses=["advantage=WrongShape"]), tmp_path / "run")


def test_what_only_fails_in_the_kit_names_those_that_may_be_to_blame(tmp_path: Path) -> None:
    def kept(self: Any, tensordict: TensorDict) -> Tensor:
        return tensordict[STEP_VALID][:, :2].float()

    faulty("selector", Selector, "WrongMask", "kept", kept)
    with pytest.raises(ComponentError, match=r"WrongMask of .*acme-steps 0\.2.*; the traceback is in"):
        train(recipe("egspo", sets=RUN, uses=["selector=WrongMask"]), tmp_path / "run")


def test_an_error_of_the_kit_itself_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GroupMean, "forward", boom)
    with pytest.raises(Boom):
        train(recipe("egspo", sets=[*RUN], uses=["advantage=GroupMean"]), tmp_path / "run")
    assert not (tmp_path / "run" / "traceback.txt").exists()


def test_a_distribution_is_found_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert blame.distribution_of("safetensors").startswith("safetensors 0.")
    assert blame.distribution_of("no_such_package") == ""
