"""Recipes: an algorithm as a gin file, with overrides, strict checks and a fully resolved text.

Loading parses the file with gin's parser and resolves it here, without gin's global configuration: overrides are
applied, bindings that only replaced components used are dropped with a note, and everything else that does not fit is
an error with file and line. ``Recipe.build`` constructs the components.

Two rules go beyond gin. A binding on a base class that is no component (``Sampler.completion_length = 16``) is for
every component of the recipe that inherits from it and has no binding of its own. And a file that is included twice
counts once.
"""

from __future__ import annotations

import difflib
import importlib
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.core.registry import nearest
from dlmrl_kit.core.version import VERSION
from dlmrl_kit.recipe.build import build_blocks, check_plan, settings_of
from dlmrl_kit.recipe.files import SUFFIX, read_text
from dlmrl_kit.recipe.moved import moved_hint
from dlmrl_kit.recipe.names import Names
from dlmrl_kit.recipe.overrides import binding_of_set, binding_of_use, one_line
from dlmrl_kit.recipe.plugins import load_plugins, recipe_folders
from dlmrl_kit.recipe.provenance import check_recipe_file
from dlmrl_kit.recipe.resolve import Block, Bound, resolve_recipe
from dlmrl_kit.recipe.source import Binding, Import, Ref, read
from dlmrl_kit.recipe.table import BindingTable
from dlmrl_kit.recipe.where import StatementError

if TYPE_CHECKING:
    from dlmrl_kit.algorithm.algorithm import Algorithm, Pretraining

DEFAULT = "  # default"
"""Ends the lines of a resolved recipe that say what a component's own default is."""
DEFAULT_CORRECTION = "TruncatedImportance"
"""What corrects a cached rollout, where a recipe does not say."""


@dataclass
class Recipe:
    """A recipe with every parameter resolved.

    Attributes:
        name: the file's name without ``.gin``.
        source: the file it was loaded from.
        blocks: the components that are built, the root first, each with all its parameters.
        notes: what was left out and why, for the user to read.
        overrides: the options that were applied, as on the command line.
        imports: import statements of the recipe.
        files: the files that it was read from, ``source`` first, then what it includes.
    """

    name: str
    source: Path
    blocks: tuple[Block, ...]
    notes: list[str] = field(default_factory=list)
    overrides: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def root(self) -> str:
        """What the recipe builds: ``"Algorithm"`` (training) or ``"Pretraining"``."""
        return self.blocks[0].cls.__name__

    @property
    def on_command_line(self) -> str:
        """How commands name the recipe, overrides aside: by its name if it is found by that, else by its path."""
        return self.name if recipe_files().get(self.name) == self.source else shlex.quote(str(self.source))

    @cached_property
    def bindings(self) -> dict[str, Bound]:
        """Every parameter by its key (``"EntropyTopK.k"``, with scope ``"a/EntropyTopK.k"``)."""
        return {bound.key: bound for block in self.blocks for bound in block.parameters.values()}

    def key_in(self, slot: str, parameter: str) -> str:
        """Returns the key of a parameter of what fills a slot of the root; "" if the slot is empty or has a list."""
        filling = self.blocks[0].parameters[slot].value
        keys = (b.parameters[parameter].key for b in self.blocks if parameter in b.parameters and _fills(b, filling))
        return next(keys, "")

    def text(self, header: bool = True) -> str:
        """Writes the fully resolved recipe: no macros, no includes, no base classes, and all defaults written out.

        It is a recipe itself, and loads to the same text apart from the ``header`` (version, source, overrides).
        """
        parts = ["\n".join(_header(self))] if header else []
        if self.imports:
            parts.append("\n".join(self.imports))
        for block in self.blocks:
            if block.parameters:
                parts.append("\n".join(_line(bound) for bound in block.parameters.values()))
        return "\n\n".join(parts) + "\n"

    def settings_of(self, *slots: str) -> dict[str, str]:
        """Returns what fills some slots of the root, and all settings of what they refer to: by key, as gin text.

        Where they are equal in two recipes, so are the components.
        """
        return settings_of(self.blocks, slots)

    def build(self, **given: object) -> Algorithm | Pretraining:
        """Constructs what the recipe describes.

        Args:
            given: by slot, what is taken in place of what the recipe has there, and not built.

        Returns:
            An ``Algorithm``, or a ``Pretraining`` where that is the ``root``; new at each call.

        Raises:
            BuildError: a component refuses a value or cannot be constructed, or the components do not fit together.
        """
        from dlmrl_kit.algorithm.algorithm import Algorithm

        built: Algorithm | Pretraining = build_blocks(self.blocks, str(self.source), given)
        if isinstance(built, Algorithm):
            check_plan(built, str(self.source))
        return built

    def build_algorithm(self, **given: object) -> Algorithm:
        """Constructs the algorithm of a recipe for training; ``given`` as ``build``.

        Raises:
            RecipeError: it is a recipe for pre-training; or as ``build``.
        """
        from dlmrl_kit.algorithm.algorithm import Algorithm

        built = self.build(**given)
        if not isinstance(built, Algorithm):
            raise RecipeError(
                f"{self.name} is a recipe for {self.root}, not for training: run 'dlmrl pretrain "
                f"{self.on_command_line}'"
            )
        return built

    def build_pretraining(self) -> Pretraining:
        """Constructs the parts of a recipe for pre-training.

        Raises:
            RecipeError: it is a recipe for training; or as ``build``.
        """
        from dlmrl_kit.algorithm.algorithm import Pretraining

        built = self.build()
        if not isinstance(built, Pretraining):
            raise RecipeError(f"{self.name} is a training recipe: run it with 'dlmrl train {self.on_command_line}'")
        return built


def load_recipe(
    source: str | os.PathLike[str],
    *,
    sets: Iterable[str] = (),
    uses: Iterable[str] = (),
    allow_imports: bool = False,
) -> Recipe:
    """Loads a recipe, applies overrides, and checks all that can be checked without constructing components.

    Args:
        source: name of a recipe (see ``recipe_names``), or path of a gin file.
        sets: gin bindings that override the recipe's: ``"UniformSteps.k=4"``; macros too: ``"LENGTH = 32"``.
        uses: swaps of components, ``"selector=UniformSteps"``, applied before ``sets``. ``none`` empties a slot that
            may be empty; ``A+B`` fills one that takes several.
        allow_imports: run ``import`` statements of the recipe, that is, code.

    Returns:
        The resolved recipe.

    Raises:
        RecipeError: anything wrong with the recipe or the overrides; with file and line, and what would be right.
        RegistryError: two components with the same name and kind in one package.
    """
    sets, uses = [str(s) for s in sets], [str(u) for u in uses]
    path = _find_recipe(source)
    contents = read(path, recipes_dir(), recipe_folders)
    load_plugins()
    _run_imports(contents.imports, allow_imports)
    check_recipe_file(path)
    names = Names(_root(contents.bindings))
    table = BindingTable(names, str(path))
    from_uses, from_sets = (binding_of_use(use, names) for use in uses), (binding_of_set(text) for text in sets)
    for binding in [*contents.bindings, *from_uses, *from_sets]:
        table.add(binding)
    _fill_in(table)
    blocks, notes = resolve_recipe(table)
    return Recipe(
        name=path.stem,
        source=Path(os.path.abspath(path)),
        blocks=blocks,
        notes=notes,
        overrides=(*(f"--use {shlex.quote(u)}" for u in uses), *(f"--set {shlex.quote(s)}" for s in sets)),
        imports=tuple(dict.fromkeys(statement.text for statement in contents.imports)),
        files=tuple(contents.files),
    )


def _fills(block: Block, filling: object) -> bool:
    return isinstance(filling, Ref) and (block.scope, block.gin_name) == (filling.scope, filling.name)


def _fill_in(table: BindingTable) -> None:
    """Adds the default correction where a recipe has a cache and says nothing of a correction."""
    root = ("", table.names.root)
    if "cache" not in table.names.slots:
        return
    # Cached samples are not the policy's: without a correction the recipe would be refused.
    cache = table.candidates(root, "cache")[:1]
    correction = table.candidates(root, "correction")[:1]
    if any(isinstance(binding.value, Ref) for binding in cache) and not correction:
        table.add(Binding("", table.names.root, "correction", Ref("", DEFAULT_CORRECTION, True), cache[0].where))


def _root(bindings: list[Binding]) -> str:
    """Finds the root that a recipe's bindings are for; it is ``Algorithm`` where they name none."""
    from dlmrl_kit.algorithm.algorithm import ROOTS

    found = {name: b for b in bindings for name in ROOTS if b.name in (name, f"dlmrl_kit.{name}")}
    if len(found) > 1:
        where = list(found.values())[1].where
        raise StatementError(where, f"a recipe binds the slots of one of {' and '.join(found)}, not of both")
    return next(iter(found), "Algorithm")


def recipes_dir() -> Path:
    """Returns the folder of the kit's recipes, which is in the installed package, and beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def recipe_files() -> dict[str, Path]:
    """Returns the files of all recipes that are found by their name: the kit's, and those of installed plugins."""
    found: dict[str, Path] = {}
    for folder in (recipes_dir(), *recipe_folders()):
        for path in folder.glob(f"*{SUFFIX}"):
            if path.is_file():
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def recipe_names() -> dict[str, str]:
    """Returns the recipes that are found by name, with the first line of the comment at their top ("" for none)."""
    return {name: _headline(path) for name, path in recipe_files().items()}


def base_recipe_names() -> dict[str, str]:
    """Returns the kit's recipes that others include (``base/egspo``), with their first lines, as ``recipe_names``."""
    return {f"base/{path.stem}": _headline(path) for path in sorted(recipes_dir().glob("base/*.gin"))}


def _headline(path: Path) -> str:
    lines = read_text(path).lstrip().split("\n", 1)
    return lines[0].lstrip("#").strip() if lines[0].startswith("#") else ""


def _find_recipe(source: str | os.PathLike[str]) -> Path:
    text = os.fspath(source)
    if not isinstance(text, str):
        raise RecipeError(f"a recipe is a name or a path, got {text!r}")
    is_name = isinstance(source, str) and not text.endswith(SUFFIX) and os.path.basename(text) == text != ""
    named = recipe_files().get(text)
    if is_name and named is not None:
        return named
    if text and os.path.exists(text):
        return Path(text)
    known = recipe_names()
    if is_name:
        raise RecipeError(f"no recipe named {text!r}{moved_hint(text) or f'; {nearest(text, known)}'}")
    by_name = nearest(Path(text).stem, known)
    raise RecipeError(f"no recipe file {text!r}{_beside(text)}; recipes of the kit by name: {by_name}")


def _beside(path: str) -> str:
    folder = Path(path).parent
    near = [p.name for p in sorted(folder.glob("*.gin"))] if "\0" not in path and os.path.isdir(folder) else []
    close = difflib.get_close_matches(Path(path).name, near, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(str(folder / name) for name in close)}?" if close else ""


def _run_imports(statements: list[Import], allowed: bool) -> None:
    for statement in statements:
        if not allowed:
            raise StatementError(
                statement.where,
                f"`{statement.text}` runs code, which a recipe may not do by itself; pass --allow-imports if you trust "
                "it",
            )
        try:
            _import(statement)
        except UserError as error:
            raise StatementError(statement.where, f"`{statement.text}` failed: {error}") from error
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {error}"
            raise StatementError(statement.where, f"`{statement.text}` failed: {reason}") from error


def _import(statement: Import) -> None:
    package, _, name = statement.module.rpartition(".")
    is_from = statement.text.startswith("from ")
    if not (is_from and hasattr(importlib.import_module(package), name)):
        importlib.import_module(statement.module)


def _header(recipe: Recipe) -> list[str]:
    return [
        f"# Fully resolved recipe, written by dlmrl_kit {VERSION}.",
        f"# Source: {one_line(str(recipe.source))}",
        f"# Overrides: {one_line(' '.join(recipe.overrides)) or 'none'}",
    ]


def _line(bound: Bound) -> str:
    if bound.text is None:
        return f"# {bound.key}: default, of type {type(bound.value).__name__}, which gin text cannot hold"
    return f"{bound.key} = {bound.text}" + (DEFAULT if bound.is_default else "")
