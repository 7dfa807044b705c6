"""``run.json``: what a run depends on, which changes were accepted when it was resumed, and how it failed.

{"recipe": name, "dlmrl_kit": version, "components": where each comes from, see ``recipe.provenance``,
 "identity": as of now,
 "changes": [{"update": where it went on, "changed": [lines], "before": digest of the identity until then}, ...],
 "rollout_weights": how sharded weights are put together for rollouts, whole or in blocks, if they are sharded,
 "failed_start": error that ended it before its first checkpoint, if one did}
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlmrl_kit.core.errors import CheckpointError, FileError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.run_folder import ABOUT, FAILED, RECIPE, RESULT, failed_start, read_about
from dlmrl_kit.core.version import VERSION
from dlmrl_kit.loggers.metrics_csv import FILE as METRICS
from dlmrl_kit.recipe.load import Recipe
from dlmrl_kit.recipe.provenance import KEY, brought_by, provenance_of
from dlmrl_kit.training.best_model import FOLDER as BEST_WEIGHTS
from dlmrl_kit.training.checkpoint import checkpoints, identity_in, refused
from dlmrl_kit.training.evaluation_files import EVALUATIONS, VALIDATIONS
from dlmrl_kit.training.identity import Change, Identity, changes, digest_of
from dlmrl_kit.training.trajectories import DATA, PAGE

LEFT_BEHIND = (RECIPE, EVALUATIONS, VALIDATIONS, METRICS, DATA, PAGE)
"""Files of a start that failed which a new run would take for its own, or leave as they are."""
_SHOWN = 3
"""How many changes a refusal names."""


def start_record(folder: Path, recipe: Recipe, identity: Identity) -> None:
    """Writes ``run.json`` and then ``recipe.gin``, which makes the folder a run's; removes what a failed start left."""
    if failed_start(folder):
        for name in LEFT_BEHIND:
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / BEST_WEIGHTS, ignore_errors=True)
    about = {"recipe": recipe.name, "dlmrl_kit": VERSION, KEY: provenance_of(recipe.blocks[1:])}
    _write(folder, {**about, "identity": identity, "changes": []})
    write_atomic(folder / RECIPE, recipe.text())


def note_failure(folder: Path, error: Exception) -> None:
    """Notes that an error ended the run before its first checkpoint: the same command may then start it anew."""
    if (folder / RECIPE).is_file() and not checkpoints(folder) and not (folder / RESULT).exists():
        text = " ".join(str(error).split()) or type(error).__name__
        try:
            _write(folder, {**read_about(folder), FAILED: text})
        except (CheckpointError, FileError):  # a full disk, perhaps: this takes no more room than what was there
            with contextlib.suppress(OSError):  # the error itself is what the user must see
                (folder / ABOUT).write_text(json.dumps({FAILED: text}))


def note_parts(folder: Path, how: str) -> None:
    """Notes how sharded weights are put together for rollouts, as ``Trainer.rollout_weights`` calls it."""
    _write(folder, {**read_about(folder), "rollout_weights": how})


def name_of(folder: Path) -> str:
    """Returns the name of a run's recipe; that of the folder if it was lost."""
    return str(read_about(folder).get("recipe", folder.name))


def check_unchanged(folder: Path, now: Identity, *, length: str, finished: bool, accept: bool) -> list[Change]:
    """Compares what a run depends on with what it depended on before.

    Args:
        folder: the run folder.
        now: of the recipe as it is to go on.
        length: the setting that says how long the run is, which may change: ``"Trainer.updates"``.
        finished: whether nothing is left to train; then versions and the machine do not matter.
        accept: whether the run is to go on whatever has changed.

    Returns:
        What has changed.

    Raises:
        CheckpointError: something has changed and is not accepted, or the newest checkpoint is another run's.
    """
    about = read_about(folder)
    known = about.get("identity")
    found = checkpoints(folder)
    if found:
        own = identity_in(found[-1][1])
        earlier = [entry["before"] for entry in about.get("changes", [])]
        if known is not None and digest_of(own) not in (digest_of(known), *earlier):
            difference = changes(known, own)
            if difference:
                raise refused(found[-1][1], f"it is another run's: {difference[0]}")
        known = own if known is None else known
    if known is None:  # the run lost its record and has no checkpoint: it starts again
        return []
    changed = changes(known, now)
    if finished:
        changed = [change for change in changed if change.section in ("recipe", "files")]
    allowed = {("recipe", length), ("machine", "processes")}
    if any(change.name == "processes" for change in changed):  # torchrun gives each of several processes one thread
        allowed.add(("machine", "threads"))
    unwanted = [change for change in changed if (change.section, change.name) not in allowed]
    if unwanted and not accept:
        shown = ", ".join(f"{change}{_of_components(about, change)}" for change in unwanted[:_SHOWN])
        more = f" and {len(unwanted) - _SHOWN} more" if len(unwanted) > _SHOWN else ""
        raise CheckpointError(
            f"{folder} would not go on as what it was: {shown}{more}; undo that, "
            f"start a new run, or accept it with --accept-changes, which {ABOUT} records"
        )
    return changed


def _of_components(about: Mapping[str, Any], change: Change) -> str:
    """Says which components a package had brought that changed, and how to get it back; "" for any other change."""
    components = brought_by(about, change.name) if change.section == "packages" else []
    if not components or not change.before:
        return ""
    return f" (it brought {' and '.join(components)}: pip install {change.name}=={change.before})"


def record_changes(folder: Path, recipe: Recipe, now: Identity, changed: Sequence[Change], update: int) -> None:
    """Writes the recipe as it goes on and, to ``run.json``, what has changed; a result from before is no longer one.

    Args:
        folder: the run folder.
        recipe: with which the run goes on.
        now: its identity.
        changed: from ``check_unchanged``; if nothing has, nothing is written.
        update: the next one.
    """
    if not changed:
        return
    about = read_about(folder)
    entry = {"update": update, "changed": [str(change) for change in changed]}
    before = digest_of(about["identity"]) if "identity" in about else ""
    history = [*about.get("changes", []), {**entry, "before": before}]
    if any(change.section == "recipe" for change in changed):
        write_atomic(folder / RECIPE, recipe.text())
        (folder / RESULT).unlink(missing_ok=True)
    origins = {KEY: provenance_of(recipe.blocks[1:])}
    _write(folder, {**about, "dlmrl_kit": VERSION, **origins, "identity": now, "changes": history})


def _write(folder: Path, about: Mapping[str, Any]) -> None:
    write_atomic(folder / ABOUT, json.dumps(about, indent=1))


def notes(changed: Sequence[Change], length: str, learning_rate: float) -> list[str]:
    """Says what changed in a run that goes on, and what that means, for the user to read.

    Args:
        changed: from ``check_unchanged``.
        length: the setting that says how long the run is.
        learning_rate: with which it goes on.
    """
    found = [f"{change}: accepted, and recorded in {ABOUT}" for change in changed if change.name != length]
    found += [
        f"{change}, recorded in {ABOUT}: schedules are those of a run of {change.now}, and the learning rate goes on "
        f"with {learning_rate:.3g}"
        for change in changed
        if change.name == length
    ]
    return found
