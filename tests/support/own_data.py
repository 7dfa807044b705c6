"""A recipe on files of the user's own, with everything that a run may depend on in a folder of the test's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from support.runs import model_path, recipe

from dlmrl_kit.recipe.load import Recipe

REWARD = "import {helper}\n\ndef score(completion, example):\n    return {helper}.share(completion, example.answer)\n"
HELPER = "def share(completion, answer):\n    return float(completion == answer)\n"


class OwnData:
    """A data file, a reward module with a helper beside it, and a checkpoint, in one folder.

    Args:
        folder: where they are written.
        name: of the reward module; a module of one name is loaded once in a process.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.data, self.model = folder / "d.jsonl", folder / "model"
        self.reward, self.helper = folder / f"{name}.py", folder / f"{name}_helper.py"
        self.name = name
        self.write_data("1342" * 4)
        self.reward.write_text(REWARD.format(helper=self.helper.stem))
        self.helper.write_text(HELPER)
        shutil.copytree(model_path(), self.model)

    def write_data(self, answer: str) -> None:
        """Writes six examples with this answer."""
        rows = [
            {"prompt": f"1_3__4_22_4__3_{'1' * i}:", "answer": answer, "split": ("pretrain", "train", "heldout")[i % 3]}
            for i in range(1, 7)
        ]
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def recipe(self, sets: Iterable[str] = (), *, relative: bool = False) -> Recipe:
        """Loads the tiny recipe on these files, named by absolute paths or, in their folder, by relative ones."""
        data, model = (self.data.name, self.model.name) if relative else (str(self.data), str(self.model))
        own = [f"JsonLines.path = {data!r}", f"JsonLines.reward = '{self.name}:score'"]
        own += [f"Pretrained.path = {model!r}", "Trainer.updates = 2", "Trainer.eval_every = 0"]
        return recipe(sets=[*own, *sets], uses=["task=JsonLines"])


def own_data(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> OwnData:
    """Writes the files and puts their folder on the Python path."""
    folder.mkdir(exist_ok=True)
    monkeypatch.syspath_prepend(str(folder))
    return OwnData(folder, name)
