"""Options of the command line as bindings: ``--use KIND=NAME`` and ``--set BINDING``."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NoReturn

from dlmrl_kit.core.registry import KINDS, nearest
from dlmrl_kit.recipe.names import Names
from dlmrl_kit.recipe.source import Binding, Ref, parse
from dlmrl_kit.recipe.where import StatementError, Where


def place_of_use(use: str) -> Where:
    """Returns the place that errors about an option ``--use`` name."""
    return Where(f"--use {one_line(use)}")


def place_of_set(text: str) -> Where:
    """Returns the place that errors about an option ``--set`` name."""
    return Where(f"--set {one_line(text)}")


def one_line(text: str) -> str:
    """Escapes line breaks and other characters that do not print."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.strip())


def binding_of_use(use: str, names: Names) -> Binding:
    """Makes an option ``--use`` a binding that fills the slot.

    Args:
        use: ``"selector=UniformSteps"``; ``none`` empties a slot, ``A+B`` fills one that takes several.
        names: what recipes may name.

    Raises:
        StatementError: not of this form, no such slot or component, or a slot that cannot be filled like that.
    """
    where = place_of_use(use)
    slot, equals, filling = (part.strip() for part in use.partition("="))
    if not equals or not filling:
        raise StatementError(where, "write --use KIND=NAME, for example --use selector=UniformSteps")
    if slot not in names.slots:
        _no_slot(slot, names, where)
    if filling == "none":
        if slot not in names.optional_slots:
            raise StatementError(where, f"a {slot} is needed; {_some(names.optional_slots)} may be none")
        return Binding("", names.root, slot, None, where)
    parts = filling.split("+")
    if len(parts) > 1 and slot not in names.list_slots:
        raise StatementError(where, f"there is one {slot}; {_some(names.list_slots)} may be several")
    found = [_filling(part.strip(), slot, names, where) for part in parts]
    return Binding("", names.root, slot, found if len(found) > 1 else found[0], where)


def binding_of_set(text: str) -> Binding:
    """Reads the binding of an option ``--set``.

    Raises:
        StatementError: not one binding in gin's syntax.
    """
    where = place_of_set(text)
    statements = parse(text.strip(), lambda _: where)
    if len(statements) != 1 or not isinstance(statements[0], Binding):
        raise StatementError(where, "write one binding, for example --set UniformSteps.k=4")
    return statements[0]


def _some(slots: Collection[str]) -> str:
    return f"only {' and '.join(sorted(slots))}" if slots else "no slot of this recipe"


def _filling(text: str, slot: str, names: Names, where: Where) -> Ref:
    scope, _, name = text.removeprefix("@").removesuffix("()").rpartition("/")
    if not re.fullmatch(r"(\w+(/\w+)*)?", scope):
        raise StatementError(where, f"{scope!r} is no scope; write NAME, or scope/NAME")
    return Ref(scope, names.component(name, where, slot), True)


def _no_slot(slot: str, names: Names, where: Where) -> NoReturn:
    if slot in KINDS:
        raise StatementError(
            where,
            f"{slot} is no slot of {names.display(names.root)} (its slots: {', '.join(names.slots)}); where a "
            f"component takes one as a parameter, write --set Component.parameter=@Name(); {names.of_kind(slot)}",
        )
    raise StatementError(where, f"no slot named {slot!r}; {nearest(slot, names.slots)}")
