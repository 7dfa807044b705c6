"""``dlmrl train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlmrl_kit.cli import completion
from dlmrl_kit.cli.common import (
    DEFAULT_RECIPE,
    AcceptChanges,
    AllowImports,
    Out,
    Sets,
    Uses,
    new_folder,
    print_notes,
    quoted,
    refuse,
    resolved_recipe,
    show_run,
)
from dlmrl_kit.cli.several import as_options, refuse_several, start, together
from dlmrl_kit.core.errors import UserError

if TYPE_CHECKING:
    from dlmrl_kit.core.processes import Processes
    from dlmrl_kit.recipe.load import Recipe


def train_command(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help=f"Name or path of a recipe. Default: {DEFAULT_RECIPE}.",
            show_default=False,
            autocompletion=completion.recipe,
        ),
    ] = None,
    sets: Sets = None,
    uses: Uses = None,
    out: Out = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set Trainer.seed=N.", show_default=False)] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Go on with an interrupted run; with --set Trainer.updates=N also with a finished one.",
            show_default=False,
        ),
    ] = None,
    accept_changes: AcceptChanges = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="REPO_ID", help="Upload the model to this repository of the hub at the end.", show_default=False
        ),
    ] = None,
    show_samples: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Print N samples of each update: prompt, completion and reward. completions.jsonl keeps them.",
        ),
    ] = 0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Report sizes, memory and forwards; try an update on a small random model."),
    ] = False,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Train in N processes of this machine, each on a GPU of its own; without GPUs on the CPU. With "
            "--dry-run: the GPUs of a machine that the run is planned for.",
            show_default=False,
        ),
    ] = None,
    max_restarts: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="With --gpus: how often the run goes on by itself after a process has died. Default: 0.",
            show_default=False,
        ),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="With --dry-run: TFLOP/s that a GPU reaches. Default: 300.", show_default=False),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="M", help="With --dry-run --gpus N: M machines of N GPUs. Default: 1.", show_default=False
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0.001, help="With --dry-run --gpus: GiB of a GPU. Default: 74.5.", show_default=False),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="With --dry-run --gpus: TB/s of a GPU's memory. Default: 3.35.", show_default=False
        ),
    ] = None,
    link: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="With --dry-run --gpus: GB/s of a GPU to others of its machine, each direction. Default: 450.",
            show_default=False,
        ),
    ] = None,
    network: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="With --dry-run --nodes: GB/s of network per GPU, each direction. Default: 50.",
            show_default=False,
        ),
    ] = None,
    allow_imports: AllowImports = False,
) -> None:
    """Train a recipe.

    Example: dlmrl train egspo --use selector=UniformSteps --set UniformSteps.k=4
    """
    planned = {"--nodes": nodes, "--memory": memory, "--bandwidth": bandwidth, "--link": link, "--network": network}
    if dry_run:
        writes = {"--out": out, "--resume": resume, "--push-to-hub": push_to_hub, "--max-restarts": max_restarts}
        writes["--show-samples"] = show_samples or None
        refuse(writes, "with --dry-run: nothing is trained or written")
        if gpus is None:
            refuse(planned, "without --gpus N, the GPUs of a machine: they are for a plan")
        if (nodes or 1) == 1:
            refuse({"--network": network}, "without --nodes: one machine needs none")
    else:
        refuse({"--tflops": tflops, **planned}, "without --dry-run: it is for an estimate")
    if resume is not None:
        changes = {"RECIPE": recipe, "--use": uses, "--out": out, "--seed": seed}
        refuse(changes, "with --resume: a run goes on with the recipe it started with")
    else:
        refuse({"--accept-changes": accept_changes or None}, "without --resume: a new run has nothing to compare with")
    if push_to_hub is not None:
        from dlmrl_kit.training.export import check_hub

        check_hub(push_to_hub)
    bindings = [*(sets or []), *([f"Trainer.seed={seed}"] if seed is not None else [])]
    if gpus is None or dry_run:
        refuse(
            {"--max-restarts": max_restarts}, "without --gpus: where torchrun starts the processes, it is its option"
        )
    else:
        refuse_several("train --gpus")
        folder = resume
        if folder is None:  # what is wrong with the recipe is told before anything starts
            folder = new_folder(out, resolved_recipe(recipe or DEFAULT_RECIPE, bindings, uses, allow_imports).name)
        given = as_options(
            {
                "--set": bindings,
                "--use": uses,
                "--out": None if resume else folder,
                "--resume": resume,
                "--push-to-hub": push_to_hub,
                "--show-samples": show_samples or None,
                "--accept-changes": accept_changes,
                "--allow-imports": allow_imports,
            }
        )
        start(["train", *([recipe] if recipe else []), *given], gpus, max_restarts or 0, _go_on(folder, gpus))
        return
    with together() as processes:
        if resume is not None:
            _resume(resume, bindings, allow_imports, accept_changes, show_samples, processes)
            _push(resume, push_to_hub, processes)
            return
        loaded = resolved_recipe(recipe or DEFAULT_RECIPE, bindings, uses, allow_imports)
        if processes.is_first:
            print_notes(loaded)
        if dry_run:
            refuse_several("train --dry-run")
            _try_out(loaded, {"gpus": gpus, "tflops": tflops, **{k.removeprefix("--"): v for k, v in planned.items()}})
            return
        folder = _train(loaded, out, allow_imports, show_samples, processes)
        _push(folder, push_to_hub, processes)


def _try_out(recipe: Recipe, given: dict[str, Any]) -> None:
    """Reports what a recipe costs, on the cluster that the options describe if they do."""
    from dlmrl_kit.training.cluster import Cluster
    from dlmrl_kit.training.dry_run import dry_run

    cluster = Cluster(**{name: value for name, value in given.items() if value is not None})
    dry_run(recipe, typer.echo, cluster, plan=given["gpus"] is not None)


def _train(recipe: Recipe, out: Path | None, allow_imports: bool, show_samples: int, processes: Processes) -> Path:
    """Trains a recipe in a new folder, or where ``torchrun`` starts it again, goes on with it; returns the folder."""
    from dlmrl_kit.core.processes import may_restart, restarts
    from dlmrl_kit.core.run_folder import holds_run
    from dlmrl_kit.training import train

    if out is None and may_restart():
        raise UserError("give --out DIR: a run that torchrun may start again (--max-restarts) must find its folder")
    if out is not None and restarts() and processes.of_first(lambda: holds_run(out)):
        _resume(out, [], allow_imports, False, show_samples, processes)
        return out
    folder = processes.of_first(lambda: new_folder(out, recipe.name))
    show_run(
        lambda observer: train(recipe, folder, observer=observer, processes=processes),
        folder,
        _go_on(folder),
        processes.is_first,
        show_samples,
    )
    return folder


def _resume(
    folder: Path,
    sets: list[str],
    allow_imports: bool,
    accept_changes: bool,
    show_samples: int,
    processes: Processes,
) -> None:
    from dlmrl_kit.training import resume

    show_run(
        lambda observer: resume(
            folder,
            observer=observer,
            sets=sets,
            allow_imports=allow_imports,
            accept_changes=accept_changes,
            processes=processes,
        ),
        folder,
        _go_on(folder),
        processes.is_first,
        show_samples,
    )


def _go_on(folder: Path, gpus: int | None = None) -> str:
    """Returns the command that goes on with a run."""
    return f"dlmrl train --resume {quoted(folder)}" + (f" --gpus {gpus}" if gpus else "")


def _push(folder: Path, repository: str | None, processes: Processes) -> None:
    if repository is not None and processes.is_first:
        from dlmrl_kit.training.export import push

        typer.echo(f"uploaded to {push(folder, repository)}")
