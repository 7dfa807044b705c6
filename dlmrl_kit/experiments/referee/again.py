"""Does one run of a comparison again, from what its folder says, and compares the two: bit for bit, or not."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.results import RunObserver
from dlmrl_kit.experiments.design import Variant
from dlmrl_kit.experiments.folder import located
from dlmrl_kit.experiments.partial_settings import seed_key_of
from dlmrl_kit.experiments.referee.outcomes import Outcome, measured, run_digest
from dlmrl_kit.experiments.referee.records import RUNS, read_outcomes
from dlmrl_kit.experiments.referee.run import HOLDS
from dlmrl_kit.experiments.runs import RECIPES, AblationObserver, Scheduler, jobs_of
from dlmrl_kit.recipe.load import load_recipe


@dataclass(frozen=True)
class Again:
    """A run that was done again.

    Attributes:
        before: as it stands in the comparison's tables.
        now: the same with what came out this time.
    """

    before: Outcome
    now: Outcome

    @property
    def same(self) -> bool:
        """Whether every evaluation, and the forwards before it, are the same in all digits."""
        return self.before.curve == self.now.curve


def do_again(
    folder: Path,
    name: str,
    *,
    observer: AblationObserver | None = None,
    run_observer: type[RunObserver] = RunObserver,
    allow_imports: bool = False,
) -> Again:
    """Does a run of a comparison again, in a temporary folder, with as many threads as it had.

    Args:
        folder: of the comparison; its ``runs/`` and ``recipes/`` may be gone.
        name: ``TASK/RECIPE/SEED``, as in its tables.
        observer, run_observer: as ``compare``.
        allow_imports: whether recipes may run import statements.

    Raises:
        UserError: the folder holds no such run, its recipe means something else by now, or the run fails.
    """
    stored = HOLDS.required(folder)
    before = _outcome(folder, name)
    variant_name, text = next(
        (variant["folder"], "\n".join(variant["recipe"]) + "\n")
        for variant in stored["design"]["variants"].values()
        if before.run == f"{variant['folder']}-seed-{before.seed}"
    )
    with tempfile.TemporaryDirectory(prefix="dlmrl-again-") as work:
        made = _variant(Path(work), variant_name, located(text, folder), before.seed, allow_imports)
        (job,) = jobs_of([made], [before.seed], Path(work))
        if run_digest(job, folder) != before.digest:
            raise RecipeError(f"the recipe of {name} means something else in this version: its digest is another one")
        scheduler = Scheduler(
            Path(work), 1, stored["threads"], observer or AblationObserver(), run_observer, allow_imports
        )
        scheduler.observer.on_start([job], 1, stored["threads"])
        scheduler.run([job])
        if job.status != "finished":
            raise UserError(f"the run of {name} failed: {job.error}")
        return Again(before, replace(before, curve=measured(job.folder).curve))


def _outcome(folder: Path, name: str) -> Outcome:
    found = {f"{run.task}/{run.recipe}/{run.seed}": run for run in read_outcomes(folder, RUNS)}
    if name not in found:
        raise UserError(f"{folder} holds no run {name!r}; a run is TASK/RECIPE/SEED, such as {next(iter(found))}")
    return found[name]


def _variant(work: Path, name: str, text: str, seed: int, allow_imports: bool) -> Variant:
    path = work / RECIPES / f"{name}.gin"
    write_atomic(path, text)
    seed_key = seed_key_of(load_recipe(path, allow_imports=allow_imports))
    recipe = load_recipe(path, sets=[f"{seed_key} = {seed}"], allow_imports=allow_imports)
    updates = recipe.build_algorithm().trainer.updates
    return Variant(name, name, "", recipe, seed_key, {seed: recipe.text(header=False)}, updates=updates)
