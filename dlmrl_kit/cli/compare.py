"""``dlmrl compare``."""

from __future__ import annotations

from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlmrl_kit.cli import completion
from dlmrl_kit.cli.common import (
    AllowImports,
    AsJson,
    ExperimentOut,
    Jobs,
    Sets,
    Uses,
    interruptible,
    new_console,
    print_json,
    refuse,
    valued,
)
from dlmrl_kit.core.errors import UserError


class Kept(str, Enum):
    """What stays of the weights of a finished run."""

    ALL = "all"
    MODELS = "models"
    NONE = "none"


if TYPE_CHECKING:
    from dlmrl_kit.experiments.runs import Job


def compare_command(
    out: ExperimentOut,
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE...", help="Names or paths, the base first.", autocompletion=completion.recipe),
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option("--spec", metavar="FILE", help="TOML file with recipes, tasks and budget, in place of options."),
    ] = None,
    forwards: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Forwards of the model that each run may take.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs of each recipe, with seeds 0 to N-1. Default: 3.")
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B", help="Values of a setting to choose among, on validation examples."),
    ] = None,
    validation: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Validation examples, of the split pretrain. Default: 0.")
    ] = None,
    audit: Annotated[bool, typer.Option("--audit", help="Audit the gradient of each recipe, too.")] = False,
    tables: Annotated[
        bool, typer.Option("--tables", help="Write tables and figures again from the CSV files in DIR; run nothing.")
    ] = False,
    again: Annotated[
        str | None,
        typer.Option(metavar="TASK/RECIPE/SEED", help="Do one run of DIR again, and say whether it is the same."),
    ] = None,
    keep: Annotated[
        Kept,
        typer.Option(help="Weights to keep of a finished run: all, its models without checkpoints, or none."),
    ] = Kept.ALL,
    jobs: Jobs = None,
    sets: Sets = None,
    uses: Uses = None,
    allow_imports: AllowImports = False,
    as_json: AsJson = False,
) -> None:
    """Compare algorithms at equal compute, tuned alike, over several seeds and tasks.

    May be killed at any time: the same command goes on, and repeats failed runs.

    Example: dlmrl compare grpo_steps egspo egspo_sa --forwards 40000 --out compared
    """
    from dlmrl_kit.experiments.referee.report import write_report
    from dlmrl_kit.experiments.referee.run import HOLDS, compare, stored_question
    from dlmrl_kit.experiments.referee.spec import Spec
    from dlmrl_kit.experiments.referee.spec_file import read_spec
    from dlmrl_kit.recipe.provenance import check
    from dlmrl_kit.report.compare_console import RichCompareObserver, comparison_result
    from dlmrl_kit.report.run_console import LogRunObserver

    console = new_console(stderr=as_json)
    given = {"RECIPE": recipes, "--forwards": forwards, "--seeds": seeds, "--tune": tune, "--validation": validation}
    given |= {"--set": sets, "--use": uses}
    failed: list[Job] = []
    if again is not None:
        others = {**given, "--spec": spec, "--tables": tables or None, "--jobs": jobs}
        refuse(others, "change nothing with --again, which does one run as it was")
        _do_again(out, again, allow_imports, as_json)
        return
    if tables:
        refuse({**given, "--spec": spec}, "change nothing with --tables, which runs nothing")
        report = write_report(out, *stored_question(out))
    else:
        if spec is not None:
            refuse(given, "are written in the file of --spec")
            asked = read_spec(spec, allow_imports=allow_imports)
        elif not recipes:
            raise UserError("nothing to compare: name at least two recipes, or give --spec FILE")
        else:
            asked = Spec(
                recipes=tuple(recipes),
                base=recipes[0],
                forwards=_budget(forwards),
                seeds=seeds or Spec.seeds,
                validation=validation or 0,
                grid=valued(tune, "--tune", "Trainer.learning_rate=1e-4,3e-4"),
                sets=tuple(sets or ()),
                uses=tuple(uses or ()),
                allow_imports=allow_imports,
            )
        check(out / HOLDS.file)  # before a component that is gone is looked for
        asked, observer = replace(asked, audit=asked.audit or audit), RichCompareObserver(console)
        with interruptible():
            report, failed = compare(
                asked, out, parallel=jobs, observer=observer, run_observer=LogRunObserver, keep=keep.value
            )
    if as_json:
        print_json(report.to_json())
    else:
        console.print(comparison_result(report, failed, out))
    if failed:
        raise typer.Exit(1)


def _do_again(out: Path, name: str, allow_imports: bool, as_json: bool) -> None:
    """Does a run again and prints both curves; exits with 1 where they differ."""
    from dlmrl_kit.experiments.referee.again import do_again
    from dlmrl_kit.report.compare_console import RichCompareObserver, again_result
    from dlmrl_kit.report.run_console import LogRunObserver

    console = new_console(stderr=as_json)
    observer = RichCompareObserver(console)
    with interruptible():
        found = do_again(out, name, observer=observer, run_observer=LogRunObserver, allow_imports=allow_imports)
    if as_json:
        curves = {"before": found.before, "now": found.now}
        print_json({"same": found.same, **{key: list(map(asdict, run.curve)) for key, run in curves.items()}})
    else:
        console.print(again_result(found))
    if not found.same:
        raise typer.Exit(1)


def _budget(forwards: int | None) -> int:
    if forwards is None:
        raise UserError("give --forwards N, the budget of a run; one update of the small recipes takes about 2,000")
    return forwards
