"""Errors of plugins while a run goes on: one line that names the component, and the traceback in the run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dlmrl_kit.core.blame import blame, is_foreign, named, text_of, told
from dlmrl_kit.core.errors import ComponentError, FileError, UserError
from dlmrl_kit.core.files import write_atomic
from dlmrl_kit.core.run_folder import TRACEBACK
from dlmrl_kit.recipe.load import Recipe


@contextlib.contextmanager
def blaming(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Turns an unexpected error into a ``ComponentError`` if the recipe has components of plugins.

    It names the component in which the error came up. Where it came up in the kit, because of what some component
    returned, it names those that may have. Without such components errors stay what they are, as they are the kit's.

    Args:
        recipe: what is run.
        folder: the run folder, which gets ``traceback.txt``.

    Raises:
        ComponentError: see above.
    """
    try:
        yield
    except ComponentError as error:
        if not _write(folder, error):
            raise
        raise ComponentError(f"{error}; the traceback is in {folder / TRACEBACK}") from error
    except UserError as error:
        if isinstance(error.__cause__, Exception) and blame(error.__cause__) is not None:
            _write(folder, error)
        raise
    except Exception as error:
        foreign = [block.cls for block in recipe.blocks if is_foreign(block.cls)]
        blamed = blame(error)
        if blamed is None and not foreign:
            raise
        suspects = " or ".join(named(cls) for cls in foreign)
        line = str(blamed) if blamed else f"{told(error)}: the fault may be in what {suspects} returned"
        if _write(folder, error):
            line += f"; the traceback is in {folder / TRACEBACK}"
        raise ComponentError(line) from error


def _write(folder: Path, error: Exception) -> bool:
    """Writes the traceback of an error to the run folder, if that can be; returns whether it did."""
    with contextlib.suppress(FileError):
        if folder.is_dir():
            write_atomic(folder / TRACEBACK, text_of(error))
            return True
    return False
