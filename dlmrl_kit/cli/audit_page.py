"""``python -m dlmrl_kit.cli.audit_page docs/audit.md``: writes what the audit commands of a page print.

Every console block that begins with ``$ dlmrl audit ...`` gets the output of that command.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from typer.testing import CliRunner

from dlmrl_kit.cli.app import app

WIDTH = 118
"""Columns of the outputs."""

_BLOCK = re.compile(r"(^```console\n\$ dlmrl (audit [^\n]*)\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)


def with_new_outputs(text: str) -> str:
    """Returns the text of a page with what its audit commands print now.

    Raises:
        RuntimeError: a command fails.
    """
    return _BLOCK.sub(lambda block: f"{block[1]}{_output(block[2])}{block[4]}", text)


def _output(command: str) -> str:
    result = CliRunner().invoke(app, shlex.split(command), env={"COLUMNS": str(WIDTH)})
    if result.exit_code != 0:
        raise RuntimeError(f"dlmrl {command}: {result.output}") from result.exception
    return "\n".join(line.rstrip() for line in result.stdout.rstrip().splitlines()) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(with_new_outputs(page.read_text()))
