"""The folder of an experiment of many runs: what it was made for is written down, and nothing else is mixed in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dlmrl_kit.core.errors import CheckpointError, UserError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.run_folder import read_json
from dlmrl_kit.experiments.design import Variant
from dlmrl_kit.experiments.runs import MAX_JOBS, Job, cores, recipe_file, uses_gpu
from dlmrl_kit.recipe.load import DEFAULT
from dlmrl_kit.recipe.provenance import KEY, provenance_of
from dlmrl_kit.training.identity import Identity, changes, identity_of


def _whole(old: Mapping[str, Any], new: Mapping[str, Any]) -> Mapping[str, Any]:
    return new


@dataclass(frozen=True)
class Manifest:
    """The file that says what a folder was made for.

    Attributes:
        file: its name.
        what: what messages call such a folder: ``ablation``, ``comparison``.
        common: returns what of a new design must be as it was in the stored one; the rest may be added later.
    """

    file: str
    what: str
    common: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]] = _whole

    def stored(self, folder: Path) -> dict[str, Any] | None:
        """Reads the file; returns ``design``, ``threads`` and ``depends``, or None where there is none yet.

        Raises:
            CheckpointError: it is damaged.
        """
        path = folder / self.file
        if not path.is_file():
            return None

        def parse(stored: Any) -> dict[str, Any]:
            return {
                "design": dict(stored["design"]),
                "threads": int(stored["threads"]),
                "depends": dict(stored.get("depends", {})),
            }

        return read_json(path, parse, f"it describes no {self.what}; choose another --out")

    def required(self, folder: Path) -> dict[str, Any]:
        """Reads the file as ``stored``.

        Raises:
            UserError: there is none.
            CheckpointError: it is damaged.
        """
        stored = self.stored(folder)
        if stored is None:
            raise UserError(f"{folder} holds no {self.what} ({self.file} is missing)")
        return stored


def check_folder(folder: Path, manifest: Manifest) -> None:
    """Checks that a folder is free, or holds an experiment of this kind.

    Raises:
        UserError: it holds something else, or cannot be written to.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"cannot use {folder}: {existing} is no folder that can be written to")
    # Hidden files are the lock, and temporary files of an attempt that was killed before it wrote the manifest.
    used = existing is folder and not all(path.name.startswith(".") for path in folder.iterdir())
    if used and not (folder / manifest.file).is_file():
        raise UserError(f"{folder} is not empty and holds no {manifest.what}; choose another --out")


def open_folder(
    folder: Path,
    manifest: Manifest,
    design: dict[str, Any],
    variants: Sequence[Variant],
    runs: int,
    parallel: int | None,
) -> int:
    """Writes the manifest and the recipes, or checks that the manifest is of this design.

    Args:
        folder: of the experiment.
        manifest: its kind.
        design: what identifies the experiment, for JSON: version, recipe, seeds, variants, and more.
        variants: all that may run.
        runs: how many there are to be.
        parallel: runs at a time; None: as many as there are cores.

    Returns:
        The threads of each run, as many as in earlier attempts: other sums would differ in the last digit.

    Raises:
        UserError: the folder holds an experiment of another design, or runs of something that has changed.
    """
    depends, stored = _depends(variants, folder), manifest.stored(folder)
    if stored is not None:
        common = manifest.common(stored["design"], design)
        difference = _difference(_meant(stored["design"]), _meant(common))
        if difference:
            raise UserError(f"{folder} holds another {manifest.what}: {difference}; choose another --out")
        threads, known = int(stored["threads"]), _from(folder, stored["depends"])
        compared = depends if common == design else _known(depends, known)
        changed = changes(known, compared) if known else []
        if changed:
            raise UserError(
                f"{folder} holds runs of something else: {changed[0]}; undo that, or choose another --out, so that all "
                "runs compare"
            )
    else:
        set_by_user = os.environ.get("OMP_NUM_THREADS", "")
        at_once = parallel or min(runs, cores(), MAX_JOBS)
        threads = int(set_by_user) if set_by_user.isdigit() else max(1, cores() // at_once)
    origins = provenance_of(block for variant in variants for block in variant.recipe.blocks[1:])
    written = {"design": design, "threads": threads, "depends": depends, KEY: origins}
    write_atomic(folder / manifest.file, json.dumps(written, indent=1, ensure_ascii=False))
    for variant in variants:
        # An edited recipe is written again. The worker also compares what it loads with the design.
        write_atomic(recipe_file(folder, variant), variant.recipe.text())
    return threads


def stated(lines: Iterable[str]) -> list[str]:
    """Returns the lines of a resolved recipe that say more than a default, by which it is known again.

    They are the same in a later version in which a component has one more setting. Where a default has changed, what is
    stored says the former one, which is no default then.
    """
    return [line for line in lines if line and not line.startswith("#") and not line.endswith(DEFAULT)]


def _meant(design: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a design with what its recipes state."""
    variants = {name: {**own, "recipe": stated(own["recipe"])} for name, own in design.get("variants", {}).items()}
    return {**design, "variants": variants}


def portable(text: str, folder: Path) -> str:
    """Returns a resolved recipe whose absolute paths are written as from the folder of an experiment.

    So an experiment goes on where it was moved to, together with its files: in another checkout of a project.
    """

    def written(found: re.Match[str]) -> str:
        return f"'{_relative(found[1], folder)}'" if os.path.exists(found[1]) else found[0]

    return re.sub(r"'(/[^']+)'", written, text)


def located(text: str, folder: Path) -> str:
    """Returns a resolved recipe whose paths count from the folder of an experiment with absolute ones.

    Undoes ``portable``.
    """

    def absolute(found: re.Match[str]) -> str:
        path = os.path.normpath(folder.absolute() / found[1])
        return f"'{path}'" if os.path.exists(path) else found[0]

    return re.sub(r"'(\.\.?|[^'/]*/[^']*)'", absolute, text)


def _relative(path: str, folder: Path) -> str:
    return os.path.relpath(path, folder.absolute()) if os.path.isabs(path) else path


def _from(folder: Path, depends: Mapping[str, Mapping[str, str]]) -> Identity:
    """Returns what an experiment depends on, with absolute paths of files written as from its folder."""
    files = {_relative(name, folder): digest for name, digest in depends.get("files", {}).items()}
    return {section: files if section == "files" else dict(entries) for section, entries in depends.items()}


def _depends(variants: Iterable[Variant], folder: Path) -> Identity:
    """Returns files, data and packages that variants depend on; settings and the kit are compared elsewhere."""
    found: Identity = {"files": {}, "data": {}, "packages": {}}
    for variant in variants:
        own = identity_of(variant.recipe, variant.recipe.build_algorithm(), torch.device("cpu"))
        for section, entries in found.items():
            entries |= own[section]
    del found["packages"]["dlmrl_kit"]
    return _from(folder, found)


def _known(depends: Identity, known: Mapping[str, Mapping[str, str]]) -> Identity:
    """Leaves out what only something new depends on."""
    return {
        section: {name: value for name, value in entries.items() if name in known.get(section, {})}
        for section, entries in depends.items()
    }


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Says in what two designs differ first; "" if they are the same."""
    for key, value in new.items():
        if key != "variants" and old.get(key) != value:
            return _changed_value(key, old.get(key), value)
    before, now = old.get("variants", {}), new["variants"]
    for what, names in (
        ("had", [n for n in before if n not in now]),
        ("did not have", [n for n in now if n not in before]),
    ):
        if names:
            return f"it {what} {' and '.join(names)}"
    for name, variant in now.items():
        changed = _changed_lines(before[name]["recipe"], variant["recipe"])
        if changed or before[name] != variant:
            return f"the recipe of {name} was another one{changed}"
    return "" if list(before) == list(now) else "its variants came in another order"


def _changed_value(key: str, old: object, new: object) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        name = next(name for name in (*new, *old) if old.get(name) != new.get(name))
        return _changed_value(f"{key}.{name}", old.get(name), new.get(name))
    return f"{key} was {old}, now {new}"


def _changed_lines(old: Iterable[str], new: Iterable[str]) -> str:
    old, new = list(old), list(new)
    lines = [f"was `{line}`" for line in old if line not in new] + [f"now `{line}`" for line in new if line not in old]
    return f" ({', '.join(lines[:2])})" if lines else ""


def check_run(job: Job) -> None:
    """Checks that what is in the folder of a run is of its recipe, by what that states.

    Raises:
        CheckpointError: it is not.
    """
    path, recipe = job.folder / "recipe.gin", job.variant.texts[job.seed]
    started, finished = path.is_file(), job.status == "finished"
    found = path.read_text(encoding="utf-8", errors="replace") if started else ""
    if (started or finished) and stated(found.splitlines()) != stated(recipe.splitlines()):
        raise CheckpointError(f"{job.folder} holds a run of another recipe; move it away to have it run again")


def runs_at_once(variants: Iterable[Variant], runs: int, threads: int) -> int:
    """Returns how many runs of some threads go on at a time: one per core, at most 8, but one if they share a GPU."""
    return 1 if uses_gpu(variants) else min(runs, max(1, cores() // threads), MAX_JOBS)
