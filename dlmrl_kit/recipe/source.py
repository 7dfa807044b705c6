"""Reading gin text: every binding with its file and line, includes, and values written back as gin text.

Gin's own parser does the parsing; what it builds here are plain data (``Ref``, ``Macro``), so that reading a recipe
needs no component and runs no code. Three of gin's habits are corrected: an ``include`` is looked up beside the
including file rather than in the working directory, a minus sign before ``%MACRO`` or ``@Component()`` is an error
rather than ignored, and every syntax error names its file and line.
"""

from __future__ import annotations

import io
import os
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gin import config_parser

from dlmrl_kit.core.validate import SHOWN, clipped
from dlmrl_kit.recipe.files import RecipeFolders, read_text, refusal
from dlmrl_kit.recipe.where import StatementError, Where

MAX_NESTING = 50
"""How deep values, macros and components may be nested; keeps every recursion far from Python's own limit."""

MAX_NAME = 120
"""The longest left side of a binding, reference, macro or import, in characters; messages quote them whole."""

QUOTED = 200 - SHOWN
"""The most characters of a line under a syntax error, which may show a value of it besides: 200 in all."""

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
    """``scope/name.parameter = value``; a macro has the name "" and its own name as ``parameter``.

    Attributes:
        scope, name, parameter, value: what is bound.
        where: the statement.
        included: the include statements that led to its file, the outermost first.
    """

    scope: str
    name: str
    parameter: str
    value: object
    where: Where
    included: tuple[Where, ...] = ()

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
    """What a recipe file and everything that it includes say, in the order in which it takes effect.

    Attributes:
        bindings, imports: the statements.
        files: the files that were read, the recipe first.
    """

    bindings: list[Binding] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


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
    _check_names(statement)
    if isinstance(statement, config_parser.BindingStatement):
        if statement.arg_name:
            yield Binding(statement.scope, statement.selector, statement.arg_name, statement.value, where)
        else:
            name = f"{statement.scope}/{statement.selector}" if statement.scope else statement.selector
            yield Binding("", "", name, statement.value, where)
    elif isinstance(statement, config_parser.ImportStatement):
        yield Import(statement.module, statement.format(), where)
    elif isinstance(statement, config_parser.IncludeStatement):
        yield Include(statement.filename, where)


def _check_names(statement: Any) -> None:
    """Checks that every name in a statement is of a length that messages can show; raises SyntaxError."""
    names: list[str] = []
    if isinstance(statement, config_parser.BindingStatement):
        names = ["".join(part or "" for part in (statement.scope, statement.selector, statement.arg_name))]
        # Nesting is checked before, as looking for the names in a value recurses.
        if _depth(statement.value) > MAX_NESTING:
            raise SyntaxError(_TOO_DEEP, (None, statement.location.line_num, None, None))
        for leaf in leaves_of(statement.value):
            names += [leaf.scope + leaf.name] if isinstance(leaf, Ref) else []
            names += [leaf.name] if isinstance(leaf, Macro) else []
    elif isinstance(statement, config_parser.ImportStatement):
        names = [statement.format()]
    if any(len(name) > MAX_NAME for name in names):
        too_long = f"a name is longer than {MAX_NAME} characters"
        raise SyntaxError(too_long, (None, statement.location.line_num, None, None))


def _syntax_error(error: Exception, line: int, text: str, where: Callable[[int], Where]) -> StatementError:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    # Gin has one exception for all that it cannot parse, so only its text tells which it is. What is recognised is
    # explained better; whatever is not is passed on as it is.
    if isinstance(error, tokenize.TokenError):
        message, (line, _) = error.args
    elif isinstance(error, RecursionError):
        message = _TOO_DEEP
    if "Failed to parse token" in message:
        token = clipped(message.rsplit("Failed to parse token", 1)[1].strip())
        message = (
            f"cannot read the value {token}: a value is a number, a quoted string, True, False, None, a list, a tuple, "
            "a dict, @Component() or %MACRO"
        )
    else:
        message = clipped(message, QUOTED)  # some of gin's messages end with a token, which may be a long string
    if "Expected ')'" in message:
        message += " A reference takes no arguments: bind its parameters in lines of their own."
    unclosed = _unclosed(text)
    if unclosed is not None and unclosed[1] <= line:
        bracket, line = unclosed
        message = f"{bracket!r} is never closed"
    lines = text.split("\n")
    content = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    hint = _habit(content) if unclosed is None else ""
    return StatementError(
        where(line), f"syntax error: {hint or message}" + (f"\n    {clipped(content, QUOTED)}" if content else "")
    )


def _habit(line: str) -> str:
    """Says what is wrong with a line that was written as in another language; "" for any other line."""
    if re.match(r"[\w./]+\s*:(?!=)", line):
        return "a name and its value have '=' between them, not ':'"
    if re.match(r"[\w./]+\s*=\s*[^\[({'\"\s][^\[({'\"]*,", line.replace("()", "")):
        return "several values need brackets around them: [a, b]"
    return ""


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


def read(path: Path, recipes: Path, plugins: Callable[[], Iterable[Path]] = tuple) -> Source:
    """Reads a recipe and what it includes; a file that is included more than once counts once, where it came first.

    Args:
        path: the recipe.
        recipes: the kit's recipes, where includes are looked up that are not beside the including file.
        plugins: lists the folders of the plugins' recipes, which may be included, too.

    Raises:
        RecipeError: a file that is missing, unreadable or no recipe, that includes itself, or that may not be included.
    """
    return _Reader(RecipeFolders(path.parent, recipes, plugins)).read(path)


class _Reader:
    """Reads a recipe and its includes, depth first, into one ``Source``."""

    def __init__(self, folders: RecipeFolders) -> None:
        self.folders = folders
        self.source = Source()
        self.done: set[str] = set()

    def read(self, path: Path) -> Source:
        self._read(path, ())
        return self.source

    def _read(self, path: Path, asked: tuple[Where, ...]) -> None:
        """Reads a file; ``asked`` are the include statements that led to it, the outermost first."""
        last = asked[-1] if asked else None
        real = os.path.realpath(path)
        chain = [where.source for where in asked]
        if real in (os.path.realpath(file) for file in chain):
            raise refusal(last, f"the file includes itself: {' -> '.join([*chain, str(path)])}")
        if real in self.done:
            return
        if len(chain) > MAX_NESTING:
            raise refusal(last, f"includes are nested more than {MAX_NESTING} deep")
        self.done.add(real)
        self.source.files.append(path)
        for statement in parse(read_text(path, last), lambda line: Where(str(path), line)):
            if isinstance(statement, Include):
                found = self.folders.find(statement.file, path, statement.where)
                self._read(found, (*asked, statement.where))
            elif isinstance(statement, Import):
                self.source.imports.append(statement)
            else:
                self.source.bindings.append(replace(statement, included=asked))


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
