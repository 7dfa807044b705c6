"""Recipes: an algorithm as a gin file, with overrides, strict checks and a fully resolved text.

Loading parses the file with gin's parser and resolves it here, without touching gin's global configuration: overrides
are applied, bindings that only replaced components used are dropped with a note, and everything else that does not fit
is an error with file and line. Only ``Recipe.build`` goes through gin, with the resolved text.

Two rules go beyond gin. A binding on a base class that is no component (``Sampler.completion_length = 16``) is for
every component of the recipe that inherits from it and has no binding of its own. And a file that is included twice
counts once.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import shlex
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import gin

import dlmrl_kit
from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.core.registry import KINDS, nearest
from dlmrl_kit.recipe import plugins
from dlmrl_kit.recipe.names import ROOTS, Names
from dlmrl_kit.recipe.resolve import Block, Bound, resolve
from dlmrl_kit.recipe.source import Binding, Import, Ref, Where, parse, read, read_text
from dlmrl_kit.recipe.table import Table

DEFAULT_CORRECTION = "TruncatedImportance"
"""What corrects a cached rollout, where a recipe does not say."""

_GIN_LOCK = threading.RLock()
_CALL = re.compile(r"\n  In call to configurable '(?P<name>[^']+)' \(.*?\)(?: in scope '(?P<scope>[^']+)')?(?=\n|$)")


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
    """

    name: str
    source: Path
    blocks: tuple[Block, ...]
    notes: list[str] = field(default_factory=list)
    overrides: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """What the recipe builds: ``"Algorithm"`` (training) or ``"Pretraining"``."""
        return self.blocks[0].cls.__name__

    @cached_property
    def bindings(self) -> dict[str, Bound]:
        """Every parameter by its key (``"EntropyTopK.k"``, with scope ``"a/EntropyTopK.k"``)."""
        return {bound.key: bound for block in self.blocks for bound in block.parameters.values()}

    def text(self, header: bool = True) -> str:
        """The fully resolved recipe: no macros, no includes, no base classes, defaults written out.

        It is a recipe itself, and loads to the same text apart from the ``header`` (version, source, overrides).
        """
        parts = ["\n".join(_header(self))] if header else []
        if self.imports:
            parts.append("\n".join(self.imports))
        for block in self.blocks:
            if block.parameters:
                parts.append("\n".join(_line(bound) for bound in block.parameters.values()))
        return "\n\n".join(parts) + "\n"

    def build(self) -> Any:
        """Constructs the recipe's root; gin's global configuration is cleared before and after.

        Returns:
            An ``Algorithm``, or a ``Pretraining`` where that is the ``root``.

        Raises:
            RecipeError: a component refuses a value or cannot be constructed, or the components do not fit together.
        """
        from dlmrl_kit.algorithm.dataflow import make_plan

        lines = [
            f"{block.scope + '/' if block.scope else ''}{block.gin_name}.{name} = {bound.gin_text}"
            for block in self.blocks
            for name, bound in block.parameters.items()
            if bound.gin_text is not None
        ]
        with _GIN_LOCK:
            gin.clear_config()
            try:
                with gin.config_scope(None):
                    gin.parse_config(lines)
                    built = self.blocks[0].cls()
                    if self.root == "Algorithm":
                        make_plan(built)
                    return built
            except Exception as error:  # components may raise anything; a recipe must not end in a traceback
                raise RecipeError(_build_message(self, error)) from error
            finally:
                gin.clear_config()


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
    contents = read(path, recipes_dir())
    plugins.load()
    _run_imports(contents.imports, allow_imports)
    names = Names(_root(contents.bindings))
    table = Table(names, str(path))
    for binding in [*contents.bindings, *(_use(use, names) for use in uses), *(_set(text) for text in sets)]:
        table.add(binding)
    _fill_in(table)
    blocks, notes = resolve(table)
    return Recipe(
        name=path.stem,
        source=Path(os.path.abspath(path)),
        blocks=blocks,
        notes=notes,
        overrides=(*(f"--use {shlex.quote(u)}" for u in uses), *(f"--set {shlex.quote(s)}" for s in sets)),
        imports=tuple(dict.fromkeys(statement.text for statement in contents.imports)),
    )


def _fill_in(table: Table) -> None:
    """Puts a correction beside a cache, where the recipe says nothing of one: cached samples are not the policy's."""
    root = ("", table.names.root)
    if "cache" not in table.names.slots:
        return
    cache = table.candidates(root, "cache")[:1]
    correction = table.candidates(root, "correction")[:1]
    if any(isinstance(binding.value, Ref) for binding in cache) and not correction:
        table.add(Binding("", table.names.root, "correction", Ref("", DEFAULT_CORRECTION, True), cache[0].where))


def _root(bindings: list[Binding]) -> str:
    """The root that a recipe's bindings are for; ``Algorithm`` where they name none."""
    found = {name: b for b in bindings for name in ROOTS if b.name in (name, f"dlmrl_kit.{name}")}
    if len(found) > 1:
        where = list(found.values())[1].where
        raise RecipeError(f"{where}: a recipe binds the slots of one of {' and '.join(found)}, not of both")
    return next(iter(found), "Algorithm")


def recipes_dir() -> Path:
    """The folder of the kit's recipes: in the package where it is installed, beside it in a checkout."""
    package = Path(dlmrl_kit.__file__).resolve().parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def recipe_names() -> dict[str, str]:
    """The kit's recipes, each with the first line of the comment at its top ("" where there is none)."""
    return {path.stem: _headline(path) for path in sorted(recipes_dir().glob("*.gin")) if path.is_file()}


def _headline(path: Path) -> str:
    lines = read_text(path).lstrip().split("\n", 1)
    return lines[0].lstrip("#").strip() if lines[0].startswith("#") else ""


def _find_recipe(source: str | os.PathLike[str]) -> Path:
    text = os.fspath(source)
    if not isinstance(text, str):
        raise RecipeError(f"a recipe is a name or a path, got {text!r}")
    named = recipes_dir() / f"{text}.gin"
    is_name = isinstance(source, str) and not text.endswith(".gin") and os.path.basename(text) == text != ""
    if is_name and os.path.isfile(named):
        return named
    if text and os.path.exists(text):
        return Path(text)
    known = recipe_names()
    if is_name:
        raise RecipeError(f"no recipe named {text!r}; {nearest(text, known)}")
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
            raise RecipeError(
                f"{statement.where}: `{statement.text}` runs code, which a recipe may not do by itself; "
                "pass --allow-imports if you trust it"
            )
        try:
            _import(statement)
        except UserError as error:
            raise RecipeError(f"{statement.where}: `{statement.text}` failed: {error}") from error
        except (Exception, SystemExit) as error:
            raise RecipeError(
                f"{statement.where}: `{statement.text}` failed: {type(error).__name__}: {error}"
            ) from error


def _import(statement: Import) -> None:
    package, _, name = statement.module.rpartition(".")
    is_from = statement.text.startswith("from ")
    if not (is_from and hasattr(importlib.import_module(package), name)):
        importlib.import_module(statement.module)


def _use(use: str, names: Names) -> Binding:
    where = Where(f"--use {_one_line(use)}")
    slot, equals, filling = (part.strip() for part in use.partition("="))
    if not equals or not filling:
        raise RecipeError(f"{where}: write --use KIND=NAME, for example --use selector=UniformSteps")
    if slot not in names.slots:
        _no_slot(slot, names, where)
    if filling == "none":
        if slot not in names.optional_slots:
            raise RecipeError(f"{where}: a {slot} is needed; {_some(names.optional_slots)} may be none")
        return Binding("", names.root, slot, None, where)
    parts = filling.split("+")
    if len(parts) > 1 and slot not in names.list_slots:
        raise RecipeError(f"{where}: there is one {slot}; {_some(names.list_slots)} may be several")
    found = [_filling(part.strip(), slot, names, where) for part in parts]
    return Binding("", names.root, slot, found if len(found) > 1 else found[0], where)


def _some(slots: frozenset[str] | set[str]) -> str:
    return f"only {' and '.join(sorted(slots))}" if slots else "no slot of this recipe"


def _filling(text: str, slot: str, names: Names, where: Where) -> Ref:
    scope, _, name = text.removeprefix("@").removesuffix("()").rpartition("/")
    if not re.fullmatch(r"(\w+(/\w+)*)?", scope):
        raise RecipeError(f"{where}: {scope!r} is no scope; write NAME, or scope/NAME")
    return Ref(scope, names.component(name, where, slot), True)


def _no_slot(slot: str, names: Names, where: Where) -> NoReturn:
    if slot in KINDS:
        raise RecipeError(
            f"{where}: {slot} is no slot of {names.display(names.root)} (its slots: {', '.join(names.slots)}); where a "
            f"component takes one as a parameter, write --set Component.parameter=@Name(); {names.of_kind(slot)}"
        )
    raise RecipeError(f"{where}: no slot named {slot!r}; {nearest(slot, names.slots)}")


def _set(text: str) -> Binding:
    where = Where(f"--set {_one_line(text)}")
    statements = parse(text.strip(), lambda _: where)
    if len(statements) != 1 or not isinstance(statements[0], Binding):
        raise RecipeError(f"{where}: write one binding, for example --set UniformSteps.k=4")
    return statements[0]


def _header(recipe: Recipe) -> list[str]:
    return [
        f"# Fully resolved recipe, written by dlmrl_kit {dlmrl_kit.__version__}.",
        f"# Source: {_one_line(str(recipe.source))}",
        f"# Overrides: {_one_line(' '.join(recipe.overrides)) or 'none'}",
    ]


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.strip())


def _line(bound: Bound) -> str:
    if bound.text is None:
        return f"# {bound.key}: default, of type {type(bound.value).__name__}, which gin text cannot hold"
    return f"{bound.key} = {bound.text}" + ("  # default" if bound.is_default else "")


def _build_message(recipe: Recipe, error: Exception) -> str:
    """Undoes gin's "In call to configurable" lines: the first names the component that failed, the rest its holders."""
    text = str(error)
    call = _CALL.search(text)
    message = text[: call.start()] if call else text
    if not isinstance(error, (ValueError, TypeError, UserError)):
        message = f"{type(error).__name__}: {message}"
    block = _failed_block(recipe, call) if call else None
    if block is None or block is recipe.blocks[0]:
        return f"{recipe.source}: {message}"
    parameter = _parameter_named(block, message)
    bound = block.parameters.get(parameter) if parameter else None
    what = block.name if parameter is None else f"{block.name}.{parameter}"
    where = (bound.where if bound else None) or block.where
    stated = message if what in message else f"{what}: {message}"
    return f"{where}: {stated}"


def _failed_block(recipe: Recipe, call: re.Match[str]) -> Block | None:
    scope = call["scope"] or ""
    for block in recipe.blocks:
        if block.scope == scope and block.gin_name.rsplit(".", 1)[1] == call["name"] and repr(block.cls) in call[0]:
            return block
    return None


def _parameter_named(block: Block, message: str) -> str | None:
    """The parameter a message is about: ``Component.parameter`` in it, else the only parameter whose name occurs."""
    class_name = block.cls.__name__
    for name in re.findall(rf"\b{re.escape(class_name)}\.(\w+)", message):
        if name in block.parameters:
            return str(name)
    named = [name for name in block.parameters if re.search(rf"\b{re.escape(name)}\b", message)]
    return named[0] if len(named) == 1 else None
