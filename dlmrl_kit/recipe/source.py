"""Reading gin text: every binding with its file and line, includes, and values written back as gin text.

Gin's own parser does the parsing; what it builds here are plain data (``Ref``, ``Macro``), so that reading a recipe
needs no component and runs no code. Three of gin's habits are corrected: an ``include`` is looked up beside the
including file rather than in the working directory, a minus sign before ``%MACRO`` or ``@Component()`` is an error
rather than ignored, and every syntax error names its file and line.
"""

from __future__ import annotations

import io
import os
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gin import config_parser

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.registry import nearest
from dlmrl_kit.recipe.where import StatementError, Where

MAX_NESTING = 50
"""How deep values, macros and components may be nested; keeps every recursion far from Python's own limit."""

_TOO_DEEP = f"values may be nested {MAX_NESTING} deep at most"
_LONG_INT = 10**4000


@dataclass(frozen=True)
class Ref:
    """A reference to a component: ``@scope/Name()``, or ``@scope/Name`` where ``evaluate`` is False."""

    scope: str
    name: str
    evaluate: bool


@dataclass(frozen=True)
class Macro:
    """A use of a macro: ``%NAME``."""

    name: str


@dataclass(frozen=True, eq=False)
class Binding:
    """``scope/name.parameter = value``; a macro has the name "" and its own name as ``parameter``."""

    scope: str
    name: str
    parameter: str
    value: object
    where: Where

    @property
    def is_macro(self) -> bool:
        """Whether the statement defines a macro."""
        return not self.name


@dataclass(frozen=True)
class Import:
    """``import module``, or ``from package import name`` with ``module`` as ``package.name``."""

    module: str
    text: str
    where: Where


@dataclass(frozen=True)
class Include:
    """``include 'file'``."""

    file: str
    where: Where


@dataclass
class Source:
    """What a recipe file and everything that it includes say, in the order in which it takes effect."""

    bindings: list[Binding] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)


class _Delegate(config_parser.ParserDelegate):  # gin has no annotations
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Ref:
        scope, _, name = scoped_configurable_name.rpartition("/")
        return Ref(scope, name, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


class _Parser(config_parser.ConfigParser):  # gin has no annotations
    def _maybe_parse_basic_type(self) -> tuple[bool, object]:
        # Gin consumes the minus sign before it looks at what follows, and would read -%LR as %LR.
        minus = self._current_token.string == "-"
        found, value = super()._maybe_parse_basic_type()
        if minus and not found:
            self._raise_syntax_error("a minus sign may only stand before a number")
        if isinstance(value, complex):
            self._raise_syntax_error("complex numbers are not supported")
        return found, value


def parse(text: str, where: Callable[[int], Where]) -> list[Binding | Import | Include]:
    """Reads the statements of gin text, in order; ``where`` turns a line number into the place that errors name.

    Raises:
        StatementError: text that is not gin, with the place and the line.
    """
    statements: list[Binding | Import | Include] = []
    parser = None
    try:
        parser = _Parser(text, _Delegate())
        for statement in parser:
            statements.extend(_convert(statement, where(statement.location.line_num)))
        # The parser reads a token generator: one that runs dry inside a statement would look like the end of the file.
        if parser.current_token.type != tokenize.ENDMARKER:
            raise SyntaxError("unfinished statement", (None, parser.current_token.start[0], None, None))
    except Exception as error:  # gin leaks whatever its tokeniser and literal_eval raise, RecursionError included
        line = error.lineno if isinstance(error, SyntaxError) else None
        line = line or (parser.current_token.start[0] if parser else 1)
        raise _syntax_error(error, line, text, where) from None
    return statements


def _convert(statement: Any, where: Where) -> Iterator[Binding | Import | Include]:
    if isinstance(statement, config_parser.BindingStatement):
        if _depth(statement.value) > MAX_NESTING:
            raise SyntaxError(_TOO_DEEP, (None, statement.location.line_num, None, None))
        if statement.arg_name:
            yield Binding(statement.scope, statement.selector, statement.arg_name, statement.value, where)
        else:
            name = f"{statement.scope}/{statement.selector}" if statement.scope else statement.selector
            yield Binding("", "", name, statement.value, where)
    elif isinstance(statement, config_parser.ImportStatement):
        yield Import(statement.module, statement.format(), where)
    elif isinstance(statement, config_parser.IncludeStatement):
        yield Include(statement.filename, where)


def _syntax_error(error: Exception, line: int, text: str, where: Callable[[int], Where]) -> StatementError:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    # Gin has one exception for all that it cannot parse, so only its text tells which it is. What is recognised is
    # explained better; whatever is not is passed on as it is.
    if isinstance(error, tokenize.TokenError):
        message, (line, _) = error.args
    elif isinstance(error, RecursionError):
        message = _TOO_DEEP
    if "Failed to parse token" in message:
        token = message.rsplit("Failed to parse token", 1)[1].strip()
        message = (
            f"cannot read the value {token}: a value is a number, a quoted string, True, False, None, a list, a tuple, "
            "a dict, @Component() or %MACRO"
        )
    elif "Expected ')'" in message:
        message += " A reference takes no arguments: bind its parameters in lines of their own."
    unclosed = _unclosed(text)
    if unclosed is not None and unclosed[1] <= line:
        bracket, line = unclosed
        message = f"{bracket!r} is never closed"
    lines = text.split("\n")
    content = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    return StatementError(where(line), f"syntax error: {message}" + (f"\n    {content}" if content else ""))


def _unclosed(text: str) -> tuple[str, int] | None:
    opened: list[tuple[str, int]] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.OP and token.string in "([{":
                opened.append((token.string, token.start[0]))
            elif token.type == tokenize.OP and token.string in ")]}" and opened:
                opened.pop()
    except (tokenize.TokenError, SyntaxError, ValueError) as error:
        if "multi-line string" in str(error) or "triple-quoted" in str(error):
            return None
    return opened[0] if opened else None


def _depth(value: object) -> int:
    if isinstance(value, (list, tuple)):
        return 1 + max(map(_depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max((_depth(item) for pair in value.items() for item in pair), default=0)
    return 0


def read(path: Path, recipes: Path) -> Source:
    """Reads a recipe and what it includes; a file that is included more than once counts once, where it came first.

    Args:
        path: the recipe.
        recipes: the folder where includes are looked up that are not beside the including file.

    Raises:
        RecipeError: a file that is missing, unreadable or not gin, or that includes itself.
    """
    source = Source()
    _read_into(source, path, recipes, None, [], set())
    return source


def _read_into(
    source: Source, path: Path, recipes: Path, asked: Where | None, chain: list[Path], done: set[str]
) -> None:
    real = os.path.realpath(path)
    if real in (os.path.realpath(p) for p in chain):
        raise _refusal(asked, f"the file includes itself: {' -> '.join(str(p) for p in [*chain, path])}")
    if real in done:
        return
    if len(chain) > MAX_NESTING:
        raise _refusal(asked, f"includes are nested more than {MAX_NESTING} deep")
    done.add(real)
    text = read_text(path, asked)
    for statement in parse(text, lambda line: Where(str(path), line)):
        if isinstance(statement, Include):
            found = _find_include(statement, path, recipes)
            _read_into(source, found, recipes, statement.where, [*chain, path], done)
        elif isinstance(statement, Import):
            source.imports.append(statement)
        else:
            source.bindings.append(statement)


def _refusal(asked: Where | None, reason: str) -> RecipeError:
    return RecipeError(reason) if asked is None else StatementError(asked, reason)


def read_text(path: Path, asked: Where | None = None) -> str:
    """Reads the text of a recipe file; errors name the include statement that ``asked`` for it, if one did.

    Raises:
        RecipeError: a directory, an unreadable file, or one that is not UTF-8.
    """
    try:
        if os.path.isdir(path):
            inside = sorted(name for name in os.listdir(path) if name.endswith(".gin"))
            hint = f"; recipes in it: {', '.join(inside)}" if inside else ""
            raise _refusal(asked, f"{path} is a directory, not a recipe file{hint}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(asked, f"{path} is not UTF-8 text (byte {error.start}); is it a recipe?") from None
    except OSError as error:
        raise _refusal(asked, f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # a path with a null character
        raise _refusal(asked, f"cannot read {path}: {error}") from None


def _find_include(include: Include, path: Path, recipes: Path) -> Path:
    folders = list(dict.fromkeys([path.parent, recipes]))
    for folder in folders:
        if os.path.exists(folder / include.file):
            return folder / include.file
    known = {os.path.relpath(file, folder) for folder in folders for file in _gin_files(folder)}
    looked = " and ".join(str(folder) for folder in folders)
    raise StatementError(
        include.where, f"no file {include.file!r} to include; looked in {looked}; {nearest(include.file, known)}"
    )


def _gin_files(folder: Path) -> list[Path]:
    # Two levels only: the including file may stand in a home directory.
    return [*folder.glob("*.gin"), *folder.glob("*/*.gin")]


def leaves_of(value: object) -> Iterator[object]:
    """Yields what a value holds that is no container: literals, ``Ref`` and ``Macro``, also as keys of dicts."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves_of(item)
    elif isinstance(value, dict):
        for pair in value.items():
            yield from leaves_of(pair)
    else:
        yield value


def replace_leaves(value: object, change: Callable[[object], object]) -> object:
    """Makes a copy of a value in which ``change`` was applied to each of its ``leaves_of``."""
    if isinstance(value, (list, tuple)):
        return type(value)([replace_leaves(item, change) for item in value])
    if isinstance(value, dict):
        return {replace_leaves(k, change): replace_leaves(v, change) for k, v in value.items()}
    return change(value)


def format_value(value: object, name: Callable[[str], str] = str) -> str:
    """Writes gin text that reads back as exactly this value; ``name`` turns the name of a ``Ref`` into what to write.

    Raises:
        ValueError: a value that gin text cannot hold.
    """
    if isinstance(value, Ref):
        return f"@{value.scope + '/' if value.scope else ''}{name(value.name)}{'()' if value.evaluate else ''}"
    if isinstance(value, Macro):
        return f"%{value.name}"
    if type(value) is list:
        return f"[{', '.join(format_value(item, name) for item in value)}]"
    if type(value) is tuple:
        return f"({', '.join(format_value(item, name) for item in value)}{',' if len(value) == 1 else ''})"
    if type(value) is dict:
        return f"{{{', '.join(f'{format_value(k, name)}: {format_value(v, name)}' for k, v in value.items())}}}"
    if type(value) is float and abs(value) == float("inf"):
        return "1e999" if value > 0 else "-1e999"  # gin reads no inf; a literal that overflows is one
    if type(value) is int and abs(value) >= _LONG_INT:
        return hex(value)  # Python refuses to write, and to read, decimals as long as this
    if value is None or (type(value) in (bool, int, float, str, bytes) and value == value):
        return repr(value)
    raise ValueError(f"a recipe cannot hold a value of type {type(value).__name__}")
