"""Kinds of components that plugins declare: a base class, a slot in the update, conformance checks.

    @declare_kind("shaper", summary="what a reward becomes", slot=Slot(before="advantage"))
    class Shaper(Component): ...

From then on ``@register("shaper")`` makes components of the kind, ``Algorithm.shaper = @Name()`` or ``--use
shaper=Name`` fills its slot, and ``dlmrl list`` and ``dlmrl show`` know it. The tables are those of the kit's own
kinds: ``core.registry.KINDS``, ``algorithm.bases.BASE_CLASSES`` and ``core.keys.KEYS``.

A component in a declared slot runs in the rollout, without gradient: as every other one as soon as the keys that it
reads are there, and before the slot that the declaration names. What it writes is read by later components.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dlmrl_kit.algorithm.bases import BASE_CLASSES
from dlmrl_kit.algorithm.stages import PLACES
from dlmrl_kit.core.component import DECLARATIONS, Component, malformed
from dlmrl_kit.core.errors import RegistryError
from dlmrl_kit.core.keys import KEYS, Key, KeySpec
from dlmrl_kit.core.registry import KINDS, Kind, Slot, skip_or_raise
from dlmrl_kit.core.version import PACKAGE

C = TypeVar("C", bound=type)
K = TypeVar("K")
V = TypeVar("V")

_TAKEN = ("recipe", "recipes", "root", "name")
"""Words that would mean something else on the command line or in a recipe."""


def declare_kind(
    name: str,
    *,
    summary: str,
    slot: Slot | None = None,
    checks: Sequence[Callable[[str, Any], None]] = (),
) -> Callable[[C], C]:
    """Decorates the base class of a new kind of component, which a plugin declares.

    What the class attribute ``out_keys`` of the base class lists, every component of the kind must write.

    Args:
        name: as in ``@register(name)``, and of the slot.
        summary: what components of the kind are for, in a few words.
        slot: where they run; None: they fill no slot, and other components take them as parameters.
        checks: conformance checks ``check(name, component)`` for every component of the kind, which raise by
            ``dlmrl_kit.testing.fail``; they run besides those that every component passes.

    Raises:
        RegistryError: a name that is taken or none, a base class that cannot be one, or a place that there is not.
    """

    def decorate(cls: C) -> C:
        try:
            enter(cls)
        except RegistryError as error:
            skip_or_raise("base class", cls, error)
        return cls

    def enter(cls: type) -> None:
        package = _package_of(cls, name)
        kind = Kind(name, "", summary, package, slot, tuple(checks))
        if problem := _problem(kind, cls):
            raise RegistryError(f"package {package!r} declares the kind {name!r}: {problem}")
        KINDS[name] = kind
        BASE_CLASSES[name] = cls

    return decorate


@dataclass(frozen=True)
class Declarations:
    """The kinds, base classes and keys that there were at some time."""

    kinds: Mapping[str, Kind]
    bases: Mapping[str, type]
    keys: Mapping[Key, KeySpec]

    @classmethod
    def now(cls) -> Declarations:
        """Returns those of this moment."""
        return cls({**KINDS}, {**BASE_CLASSES}, {**KEYS})

    def new_kinds(self) -> list[Kind]:
        """Lists the kinds that were declared since."""
        return [kind for kind in KINDS.values() if self.kinds.get(kind.name) is not kind]

    def restore(self) -> None:
        """Takes back what was declared since."""
        _reset(KINDS, self.kinds)
        _reset(BASE_CLASSES, self.bases)
        _reset(KEYS, self.keys)


def _reset(table: dict[K, V], before: Mapping[K, V]) -> None:
    table.clear()
    table.update(before)


def name_problem(name: str) -> str:
    """Says why a plugin cannot call a kind so; "" if it can."""
    from dlmrl_kit.algorithm.algorithm import SLOTS

    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        return "its name should be a word in small letters, such as reward_shaper"
    return (
        "the name has another meaning in recipes; take another one" if name in (*SLOTS, *_TAKEN, *own_kinds()) else ""
    )


def _package_of(cls: object, name: str) -> str:
    if not isinstance(cls, type):
        raise RegistryError(f"@declare_kind({name!r}) is for the base class of the kind, got {cls!r}")
    return cls.__module__.split(".", 1)[0]


def _problem(kind: Kind, cls: type) -> str:
    """Says what is wrong with the declaration of a kind; "" if nothing is."""
    known = KINDS.get(kind.name)
    if problem := name_problem(kind.name):
        return problem
    if known is not None and not _is_again(cls, BASE_CLASSES[kind.name]):
        base = BASE_CLASSES[kind.name]
        return f"package {known.package!r} has declared it with the base class {base.__module__}.{base.__qualname__}"
    if not isinstance(kind.summary, str) or not kind.summary.strip():
        return f"summary should say what it is for, got {kind.summary!r}"
    if of_kit := next((k for k, base in BASE_CLASSES.items() if k in own_kinds() and issubclass(cls, base)), ""):
        return (
            f"its base class {cls.__name__} is a {of_kit} already; inherit from Component or from no class of the kit"
        )
    return _slot_problem(kind, cls)


def _slot_problem(kind: Kind, cls: type) -> str:
    if kind.slot is None:
        return ""
    if not isinstance(kind.slot, Slot) or kind.slot.before not in PLACES:
        return f"slot should be Slot(before=...) with one of {', '.join(PLACES)}, got {kind.slot!r}"
    if not issubclass(cls, Component):
        return f"{cls.__name__} must inherit from dlmrl_kit.core.component.Component, as the kind has a slot"
    declared = {name: vars(cls).get(name, ()) for name in DECLARATIONS}
    faults = (f"{name} {malformed(keys)}" for name, keys in declared.items() if malformed(keys))
    return next(faults, "")


def own_kinds() -> set[str]:
    """Returns the names of the kit's own kinds."""
    return {kind.name for kind in KINDS.values() if kind.package == PACKAGE}


def _is_again(new: type, old: type) -> bool:
    """Tells whether a class is the same one, defined again by a module that was loaded again or a notebook's cell."""
    return (new.__module__, new.__qualname__) == (old.__module__, old.__qualname__)
