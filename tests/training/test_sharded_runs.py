"""Whole runs with sharded policies: checkpoints that any number of processes goes on from, the model in one folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import leftovers, outcome, recipe
from support.several import Pool

from dlmrl_kit.core.errors import CheckpointError
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.training.checkpoint import checkpoints, intact
from dlmrl_kit.training.loop import Run, resume, train

SETS = ["Trainer.learning_rate = 1e-4", "Trainer.prompts_per_update = 4", "Trainer.updates = 4"]
FULL = "Trainer.sharding = 'full'"
LORA = ["Pretrained.lora_rank = 2"]


class Killed(BaseException):
    pass


def run(processes: Processes, folder: str, sets: list[str], at: int | None = None) -> None:
    """Trains a run, or starts one that ends without a word before update ``at``."""
    original = Run.step

    def step(self: Run, number: int) -> None:
        if number == at:
            raise Killed
        original(self, number)

    Run.step = step  # type: ignore[method-assign]
    try:
        train(recipe(sets=[*SETS, *sets]), Path(folder), processes=processes)
    except Killed:
        pass
    finally:
        Run.step = original  # type: ignore[method-assign]


def go_on(processes: Processes, folder: str, sets: list[str]) -> str:
    """Goes on with a run; the error if there is one."""
    try:
        resume(Path(folder), sets=sets, accept_changes=bool(sets), processes=processes)
    except CheckpointError as error:
        return str(error)
    return ""


def models(folder: Path) -> dict[str, torch.Tensor]:
    found = load_file(folder / "model" / "model.safetensors")
    adapter = folder / "adapter" / "adapter_model.safetensors"
    return found | (load_file(adapter) if adapter.is_file() else {})


def same(folder: Path, expected: Path) -> None:
    """Two runs have ended alike, up to rounding."""
    own, other = models(folder), models(expected)
    assert own.keys() == other.keys()
    for key, value in own.items():
        torch.testing.assert_close(value, other[key], rtol=0, atol=1e-5, msg=key)


@pytest.mark.parametrize("more", [[], LORA], ids=["all weights", "adapter"])
def test_any_number_of_processes_goes_on(more: list[str], pool: Pool, tmp_path: Path) -> None:
    pool.run(run, str(tmp_path / "plain"), more, worlds=(1,))
    pool.run(run, str(tmp_path / "whole"), [*more, FULL], worlds=(2,))
    pool.run(run, str(tmp_path / "half"), [*more, FULL], 2, worlds=(2,))
    pool.run(run, str(tmp_path / "half of plain"), more, 2, worlds=(1,))
    for name in ("whole", "half"):
        assert not leftovers(tmp_path / name)
        for _, checkpoint in checkpoints(tmp_path / name):
            assert intact(checkpoint)
            assert sorted(path.name for path in checkpoint.iterdir()) == [
                "checksums.json",
                "optimiser",
                "state.json",
                "weights",
            ]
            assert len(list((checkpoint / "weights").iterdir())) == 2
    same(tmp_path / "whole", tmp_path / "plain")
    for name, world, source, sets in (
        ("by one", 1, "half", []),
        ("by three", 3, "half", []),
        ("not sharded any more", 2, "half", ["Trainer.sharding = 'none'"]),
        ("sharded now", 2, "half of plain", [FULL]),
    ):
        shutil.copytree(tmp_path / source, tmp_path / name)
        assert pool.run(go_on, str(tmp_path / name), sets, worlds=(world,)) == {world: [""] * world}
        same(tmp_path / name, tmp_path / "plain")
    assert pool.run(go_on, str(tmp_path / "half"), [], worlds=(2,)) == {2: ["", ""]}
    assert outcome(tmp_path / "half") == outcome(tmp_path / "whole")  # bit for bit
