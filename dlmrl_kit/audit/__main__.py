"""``python -m dlmrl_kit.audit docs/audit.md``: runs every ``$ dlmrl audit ...`` of a page and writes what it prints."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from pathlib import Path

WIDTH = 118
_BLOCK = re.compile(r"(^```console\n\$ dlmrl (audit [^\n]*)\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)


def regenerated(text: str) -> str:
    """The page with the output of its commands as it is now."""
    return _BLOCK.sub(lambda block: f"{block[1]}{_output(block[2])}{block[4]}", text)


def _output(command: str) -> str:
    from dlmrl_kit.cli.app import app

    buffer, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.redirect_stdout(buffer):
            app(shlex.split(command), standalone_mode=False)
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines()) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(regenerated(page.read_text()))
