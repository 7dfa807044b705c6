"""The ``dlmrl`` command, put together from one module per command.

Nothing heavy is imported here: a command imports what it needs when it runs, so that ``--help`` is quick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

import dlmrl_kit
from dlmrl_kit.cli.ablate import ablate_command
from dlmrl_kit.cli.audit import audit_command
from dlmrl_kit.cli.chat import chat_command
from dlmrl_kit.cli.check import check_command
from dlmrl_kit.cli.common import one_line_errors
from dlmrl_kit.cli.compare import compare_command
from dlmrl_kit.cli.doctor import doctor_command
from dlmrl_kit.cli.eval import eval_command
from dlmrl_kit.cli.list import list_command
from dlmrl_kit.cli.plot import plot_command
from dlmrl_kit.cli.plugin import plugin_app
from dlmrl_kit.cli.pretrain import pretrain_command
from dlmrl_kit.cli.profile import profile_command
from dlmrl_kit.cli.sample import sample_command
from dlmrl_kit.cli.serve import serve_command
from dlmrl_kit.cli.several import in_one_process
from dlmrl_kit.cli.show import show_command
from dlmrl_kit.cli.steps import steps_command
from dlmrl_kit.cli.tokenizer import tokenizer_command
from dlmrl_kit.cli.trace import trace_command
from dlmrl_kit.cli.train import train_command

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train_command,
    "eval": eval_command,
    "trace": trace_command,
    "plot": plot_command,
    "sample": sample_command,
    "chat": chat_command,
    "tokenizer": tokenizer_command,
    "pretrain": pretrain_command,
    "ablate": ablate_command,
    "compare": compare_command,
    "list": list_command,
    "show": show_command,
    "check": check_command,
    "audit": audit_command,
    "steps": steps_command,
    "profile": profile_command,
    "serve": serve_command,
    "doctor": doctor_command,
}
"""The commands in the order of ``dlmrl --help``. What an option means is in its annotation, help in the docstring."""

app = typer.Typer(
    name="dlmrl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _command in COMMANDS.items():
    app.command(_name)(one_line_errors(_command if _name == "train" else in_one_process(_command, _name)))
app.add_typer(plugin_app)


def main() -> None:
    """Runs the command line of this process; never returns."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dlmrl_kit {dlmrl_kit.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Reinforcement learning for diffusion language models, assembled from components.

    Start with: dlmrl train
    """
