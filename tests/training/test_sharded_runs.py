"""Whole runs with sharded policies: checkpoints that any number of processes goes on from, the model in one folder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.runs import leftovers, outcome, recipe, stopped
from support.several import Pool
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from dlmrl_kit.core.errors import CheckpointError, FileError
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.training.checkpoint import checkpoints, intact
from dlmrl_kit.training.runs import resume, train

SETS = ["Trainer.learning_rate = 1e-4", "Trainer.prompts_per_update = 4", "Trainer.updates = 4"]
FULL = "Trainer.sharding = 'full'"
LORA = ["Pretrained.lora_rank = 2"]


def run(processes: Processes, folder: str, sets: list[str], at: int | None = None) -> None:
    """Trains a run, or starts one that ends without a word before update ``at``."""

    def start() -> None:
        train(recipe(sets=[*SETS, *sets]), Path(folder), processes=processes)

    if at is None:
        start()
    else:
        stopped(start, at)


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


@pytest.mark.thorough
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
        ("by one, not sharded any more", 1, "half", ["Trainer.sharding = 'none'"]),
        ("by three", 3, "half", []),
        ("not sharded any more", 2, "half", ["Trainer.sharding = 'none'"]),
        ("sharded now", 2, "half of plain", [FULL]),
    )[: 2 if more else None]:
        shutil.copytree(tmp_path / source, tmp_path / name)
        assert pool.run(go_on, str(tmp_path / name), sets, worlds=(world,)) == {world: [""] * world}
        same(tmp_path / name, tmp_path / "plain")
    assert pool.run(go_on, str(tmp_path / "half"), [], worlds=(2,)) == {2: ["", ""]}
    assert outcome(tmp_path / "half") == outcome(tmp_path / "whole")  # bit for bit


OF_COMPONENTS: dict[str, tuple[str, list[str], list[str]]] = {
    "value model": ("tracerl_value", ["SuccessRange.low = 0.0", "SuccessRange.success = 0.3"], []),
    "learned order": ("egspo_sa", [], ["sampler=LearnedOrder", "likelihood=StepLogProb"]),
}


def run_of_components(processes: Processes, folder: str, label: str, sets: list[str], at: int | None = None) -> None:
    name, own, uses = OF_COMPONENTS[label]
    made = recipe(name, [*SETS, "Trainer.prompts_per_update = 3", *own, *sets], uses)

    def start() -> None:
        train(made, Path(folder), processes=processes)

    if at is None:
        start()
    else:
        stopped(start, at)


def losses(folder: Path) -> list[float]:
    """What the updates of a run that was stopped after two of them lost afterwards."""
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return [float(value) for update, name, value, *_ in rows if name == "loss" and int(update) >= 2]


@pytest.mark.thorough
@pytest.mark.parametrize("label", OF_COMPONENTS)
def test_modules_of_components_go_on_with_any_number_of_processes(label: str, pool: Pool, tmp_path: Path) -> None:
    """With their moments: losses afterwards are those of one process, and so is what they have learned."""
    pool.run(run_of_components, str(tmp_path / "plain"), label, [], worlds=(1,))
    pool.run(run_of_components, str(tmp_path / "from two"), label, [FULL], 2, worlds=(2,))
    pool.run(run_of_components, str(tmp_path / "from one"), label, [], 2, worlds=(1,))
    expected = load_file(tmp_path / "plain" / "model" / "components.safetensors")
    for name, world, sets in (
        ("from two", 3, []),
        ("from two", 1, ["Trainer.sharding = 'none'"]),
        ("from one", 2, [FULL]),
    ):
        folder = shutil.copytree(tmp_path / name, tmp_path / f"{name} to {world}")
        assert pool.run(go_on, str(folder), sets, worlds=(world,)) == {world: [""] * world}
        assert losses(folder) == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
        assert len(losses(folder)) == 2
        same(folder, tmp_path / "plain")
        found = load_file(folder / "model" / "components.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5, msg=key)


@pytest.mark.thorough
def test_a_run_in_blocks_whose_weights_are_offloaded(pool: Pool, tmp_path: Path) -> None:
    """Evaluations and the traces of the first process, too, keep all in step; a run goes on without both."""
    more = ["Trainer.eval_size = 5", "Trainer.traced_examples = 2"]
    ways = [FULL, "Trainer.rollout_weights = 'blocks'", "Trainer.offload = 'cpu'"]
    pool.run(run, str(tmp_path / "plain"), more, worlds=(1,))
    pool.run(run, str(tmp_path / "whole"), [*more, *ways], worlds=(3,))
    pool.run(run, str(tmp_path / "half"), [*more, *ways], 2, worlds=(2,))
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["rollout_weights"] == "blocks"
    same(tmp_path / "whole", tmp_path / "plain")
    pages = [(tmp_path / name / "trajectories.html").read_text() for name in ("plain", "whole")]
    assert len(pages[0]) == pytest.approx(len(pages[1]), rel=0.01)
    back = ["Trainer.offload = 'none'", "Trainer.rollout_weights = 'auto'"]
    assert pool.run(go_on, str(tmp_path / "half"), back, worlds=(2,)) == {2: ["", ""]}
    assert json.loads((tmp_path / "half" / "run.json").read_text())["rollout_weights"] == "whole"
    same(tmp_path / "half", tmp_path / "plain")


def flipped(part: Path) -> None:
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)


def foreign(part: Path) -> None:
    shutil.copy(part, part.with_name("shard-00009-model-00001-of-00001.safetensors"))


@pytest.mark.thorough
def test_damaged_parts_are_named_and_the_one_before_goes_on(pool: Pool, tmp_path: Path) -> None:
    pool.run(run, str(tmp_path / "run"), [FULL], 3, worlds=(2,))
    newest = checkpoints(tmp_path / "run")[-1][1].relative_to(tmp_path / "run")
    for damage in (Path.unlink, flipped, foreign):
        folder = shutil.copytree(tmp_path / "run", tmp_path / damage.__name__)
        damage(folder / newest / "weights" / "shard-00002-model-00001-of-00001.safetensors")
        assert not intact(folder / newest)
        expected = (
            rf"{folder / newest} cannot be read \(weights/shard-0000.*remove it to go on from the checkpoint before"
        )
        for error in pool.run(go_on, str(folder), [], worlds=(2,))[2]:
            assert re.match(expected, error)
        shutil.rmtree(folder / newest)
    assert pool.run(go_on, str(folder), [], worlds=(2,)) == {2: ["", ""]}


def test_parts_of_another_model_are_refused(pool: Pool, tmp_path: Path) -> None:
    """As whole weights are: by name and shape, in every process."""
    pool.run(run, str(tmp_path / "run"), [FULL, "Trainer.eval_every = 0"], 1, worlds=(2,))
    errors = pool.run(go_on, str(tmp_path / "run"), LORA, worlds=(2,))[2]
    assert all("its weights do not have the names and shapes of the recipe's" in error for error in errors)


def full_disk(processes: Processes, folder: str) -> str:
    """A run in which the last process cannot write its part of the second checkpoint; the error."""
    original = HuggingFaceStorageWriter.write_data

    def write_data(self: HuggingFaceStorageWriter, *given: Any) -> Any:
        if processes.rank == processes.world - 1 and "update-000002" in str(self.path):
            raise OSError(28, "No space left on device")
        return original(self, *given)

    HuggingFaceStorageWriter.write_data = write_data  # type: ignore[method-assign]
    try:
        run(processes, folder, [FULL])
    except FileError as error:
        return str(error)
    finally:
        HuggingFaceStorageWriter.write_data = original  # type: ignore[method-assign]
    return ""


@pytest.mark.thorough
def test_a_part_that_cannot_be_written_leaves_the_last_checkpoint(pool: Pool, tmp_path: Path) -> None:
    errors = pool.run(full_disk, str(tmp_path / "run"), worlds=(2,))[2]
    expected = "cannot write .*No space left on device.*; the last checkpoint, update-000001, is intact: make room"
    assert all(re.search(expected, error) for error in errors), errors
    assert not leftovers(tmp_path / "run")
    assert [done for done, _ in checkpoints(tmp_path / "run")] == [1]
    assert pool.run(go_on, str(tmp_path / "run"), [], worlds=(2,)) == {2: ["", ""]}
