"""One command in several processes: who of them speaks, and how this machine starts them."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import typer

from dlmrl_kit.cli.common import EXIT_STOPPED
from dlmrl_kit.core.errors import ProcessLostError, UserError

if TYPE_CHECKING:
    from dlmrl_kit.core.processes import Processes

P = ParamSpec("P")
R = TypeVar("R")

SECONDS_TO_STOP = "300"
"""How long processes that are asked to stop may take for the update at hand and its checkpoint."""


@contextlib.contextmanager
def together() -> Iterator[Processes]:
    """Within the context, the processes that ``torchrun`` started train together, and one of them reports an error.

    Where that is not the first one, ``rank 2: `` stands before the message.
    """
    from dlmrl_kit.core.processes import joined, own_gpu

    with joined() as processes:
        try:
            own_gpu()
            yield processes
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if not processes.speaks(isinstance(error, ProcessLostError)):
                raise typer.Exit(2) from None
            typer.echo(processes.name, nl=False, err=True)
            raise


def refuse_several(command: str) -> None:
    """Refuses to run a command in several processes.

    Raises:
        UserError: ``torchrun`` has started several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"dlmrl {command} runs in one process, not under torchrun; only dlmrl train takes several")


def in_one_process(command: Callable[P, R], name: str) -> Callable[P, R]:
    """Makes a command refuse to run in several processes."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        refuse_several(name)
        return command(*args, **kwargs)

    return wrapped


def as_options(values: Mapping[str, object]) -> list[str]:
    """Writes options for a command line: a list repeats its option, True stands alone, None and False leave it out."""
    found: list[str] = []
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                found.append(name)
            elif one is not None and one is not False:
                found += [name, str(one)]
    return found


def start(arguments: Sequence[str], number: int, max_restarts: int, again: str) -> None:
    """Runs ``python -m dlmrl_kit`` in several processes of this machine, as ``torchrun --standalone`` does.

    Args:
        arguments: of each process.
        number: of processes; each gets a GPU of its own where there are any.
        max_restarts: how often all of them are started again after one has ended with an error.
        again: the command that goes on with the run, for the user to read.

    Raises:
        Exit: they ended with an error, which one of them has reported, or by a signal.
        UserError: one of them was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // number, 1)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SECONDS_TO_STOP)
    for module in ("agent.server.api", "multiprocessing.api"):  # what these tell, one line tells below
        logging.getLogger(f"torch.distributed.elastic.{module}").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "dlmrl_kit", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            raise typer.Exit(failure.exitcode) from None
        name = signal.Signals(-failure.exitcode).name
        raise UserError(f"rank {rank} was killed by {name}; go on with: {again}") from None
    except SignalException as error:
        raise typer.Exit(EXIT_STOPPED if error.sigval == signal.SIGTERM else 1) from None
