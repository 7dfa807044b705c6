"""Recipe files: which files are read as recipes, and which of them an ``include`` may name.

A recipe is a regular file of at most ``MAX_BYTES`` whose name ends with ``.gin``. A recipe may come from someone else,
and errors quote its lines: what it includes must be a recipe, too, in a folder that recipes are meant to be in. Links
are followed first, so that none leads out of it.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.validate import clipped
from dlmrl_kit.recipe.where import StatementError, Where

SUFFIX = ".gin"
"""How the names of recipes end."""

MOST_NAMED = 10
"""How many files beside a recipe an error lists."""

MAX_BYTES = 2**20
"""The size of the largest file that is read as a recipe."""


@dataclass(frozen=True)
class RecipeFolders:
    """The folders whose recipes may be included, with the folders in them.

    Attributes:
        own: the folder of the recipe that is loaded.
        kit: the kit's recipes, where includes are looked up that are not beside the including file.
        plugins: lists the folders of the plugins' recipes.
    """

    own: Path
    kit: Path
    plugins: Callable[[], Iterable[Path]]

    def hold(self, path: Path) -> bool:
        """Tells whether a file, links followed, is in one of these folders."""
        real = os.path.realpath(path)
        return any(_is_below(real, folder) for folder in (self.own, self.kit)) or any(
            _is_below(real, folder) for folder in self.plugins()
        )

    def find(self, file: str, beside: Path, asked: Where) -> Path:
        """Finds the file of an include statement: beside the including file, then among the kit's recipes.

        Raises:
            StatementError: there is no such file, or it is no recipe of these folders.
        """
        shown = clipped(repr(file), 200)
        if not file.endswith(SUFFIX):
            raise StatementError(asked, f"{shown} is not included: the names of recipes end with {SUFFIX}")
        folders = list(dict.fromkeys([beside.parent, self.kit]))
        found = next((folder / file for folder in folders if os.path.lexists(folder / file)), None)
        if found is None:
            looked = " and ".join(str(folder) for folder in folders)
            raise StatementError(asked, f"no file {shown} to include; looked in {looked}; {self._near(file, beside)}")
        if not self.hold(found):
            own = os.path.abspath(self.own)
            raise StatementError(
                asked,
                f"{shown} is not included: it is not below {own}, nor a recipe of the kit or a plugin; copy it there",
            )
        return found

    def _near(self, file: str, beside: Path) -> str:
        """Suggests names like ``file``; what else is there are the kit's recipes to include and those beside it."""
        own = [path.name for path in sorted(beside.parent.glob(f"*{SUFFIX}")) if path != beside]
        of_the_kit = [os.path.relpath(path, self.kit) for path in _gin_files(self.kit)]
        close = difflib.get_close_matches(file, [*own, *of_the_kit], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        base = [name for name in of_the_kit if os.path.dirname(name)]
        return f"{hint}recipes to include: {', '.join(sorted({*own[:MOST_NAMED], *base}))}"


def read_text(path: Path, asked: Where | None = None) -> str:
    """Reads the text of a recipe; errors name the include statement that ``asked`` for it, if one did.

    Raises:
        RecipeError: no recipe (a directory, device or pipe, another name, too large), an unreadable file, or one that
            is not UTF-8.
    """
    try:
        _check_is_recipe(path, asked)
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise refusal(asked, f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # a path with a null character
        raise refusal(asked, f"cannot read {path}: {error}") from None
    if len(content) > MAX_BYTES:
        raise refusal(asked, f"{path} is larger than {MAX_BYTES:,} bytes; is it a recipe?")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise refusal(asked, f"{path} is not UTF-8 text (byte {error.start}); is it a recipe?") from None


def _check_is_recipe(path: Path, asked: Where | None) -> None:
    """Checks what can be seen before a file is opened: opening a pipe would wait for a writer."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        inside = sorted(name for name in os.listdir(path) if name.endswith(SUFFIX))
        hint = f"; recipes in it: {', '.join(inside)}" if inside else ""
        raise refusal(asked, f"{path} is a directory, not a recipe file{hint}")
    real = os.path.realpath(path)
    if not real.endswith(SUFFIX):
        linked = f" (a link to {real})" if os.path.islink(path) else ""
        raise refusal(asked, f"{path}{linked} is no recipe: the names of recipes end with {SUFFIX}")
    if not stat.S_ISREG(mode):
        raise refusal(asked, f"{path} is no recipe: it is a device, pipe or socket, not a regular file")


def refusal(asked: Where | None, reason: str) -> RecipeError:
    """Makes the error about a file; it names the include statement that asked for the file, if one did."""
    return RecipeError(reason) if asked is None else StatementError(asked, reason)


def _is_below(real: str, folder: Path) -> bool:
    return Path(real).is_relative_to(os.path.realpath(folder))


def _gin_files(folder: Path) -> list[Path]:
    # Two levels only: the including file may stand in a home directory.
    return [*folder.glob(f"*{SUFFIX}"), *folder.glob(f"*/*{SUFFIX}")]
