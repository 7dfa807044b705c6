"""What ``dlmrl list`` and ``dlmrl show`` say of each component, as plain data that can be kept in a file."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlmrl_kit.core.registry import Claims, Entry, Kind
from dlmrl_kit.core.signatures import constructor_of
from dlmrl_kit.core.version import PACKAGE

if TYPE_CHECKING:
    from dlmrl_kit.core.keys import Key


@dataclass(frozen=True)
class ParameterText:
    """A constructor parameter: name, type and default as text; a ``default`` of None means that it is required."""

    name: str
    type: str
    default: str | None


@dataclass(frozen=True)
class KeyText:
    """A trajectory key, ``step.log_prob``, with type, shape and meaning where the kit knows it ("" elsewhere)."""

    key: str
    type: str
    meaning: str


@dataclass(frozen=True)
class Description:
    """All that is known of a component.

    Attributes:
        kind, name, gin_name, package, paper, summary: as in ``core.registry.Entry``.
        origin: the package and, for a plugin, the distribution with its version.
        claims: what it promises of the gradient, in words; "" where the question does not arise.
        documentation: its docstring, and those of the base classes that this refers to.
        source: the file of the class, or its module where it has no file.
        parameters: of the constructor, in order.
        keys: those that it ``reads``, ``writes`` and writes ``on demand``; None if it has none to tell.
    """

    kind: str
    name: str
    gin_name: str
    package: str
    paper: str
    summary: str
    origin: str
    claims: str
    documentation: tuple[str, ...]
    source: str
    parameters: tuple[ParameterText, ...]
    keys: dict[str, tuple[KeyText, ...]] | None

    @classmethod
    def of(cls, entry: Entry) -> Description:
        """Describes a registered component."""
        from dlmrl_kit.recipe.plugins import origin

        return cls(
            kind=entry.kind,
            name=entry.name,
            gin_name=entry.gin_name,
            package=entry.package,
            paper=entry.paper,
            summary=entry.summary,
            origin=origin(entry),
            claims=_claims(entry.claims),
            documentation=tuple(_documentation(entry.cls)),
            source=_source(entry.cls),
            parameters=tuple(
                ParameterText(p.name, p.annotation, None if p.required else repr(p.default)) for p in entry.parameters
            ),
            keys=_keys(entry),
        )


@dataclass(frozen=True)
class KindDescription:
    """All that is known of a kind of component.

    Attributes:
        name, folder, summary: as in ``core.registry.Kind``.
        origin: the package that declares it.
        base: the full name of the class that its components inherit from.
        place: where the components are in a recipe.
        documentation: the docstring of that class.
        keys: those that the class ``reads`` and ``writes``; None if it does not say.
    """

    name: str
    folder: str
    summary: str
    origin: str
    base: str
    place: str
    documentation: str
    keys: dict[str, tuple[KeyText, ...]] | None

    @classmethod
    def of(cls, kind: Kind) -> KindDescription:
        """Describes a kind."""
        from dlmrl_kit.algorithm.bases import BASE_CLASSES
        from dlmrl_kit.core.blame import distribution_of
        from dlmrl_kit.core.component import Component

        base = BASE_CLASSES[kind.name]
        declares = issubclass(base, Component) and kind.package != PACKAGE
        found = {"reads": vars(base).get("in_keys", ()), "writes": vars(base).get("out_keys", ())}
        return cls(
            name=kind.name,
            folder=kind.folder,
            summary=kind.summary,
            origin=distribution_of(kind.package) or kind.package,
            base=f"{base.__module__}.{base.__qualname__}",
            place=_place(kind),
            documentation=inspect.getdoc(base) or "(no documentation)",
            keys=_texts(found) if declares else None,
        )


def _place(kind: Kind) -> str:
    from dlmrl_kit.algorithm.algorithm import LIST_SLOTS, ROOTS

    if kind.slot is not None:
        takes = "any number of components" if kind.slot.many else "one component"
        return f"slot Algorithm.{kind.name}, {takes}, run before the {kind.slot.before}"
    root = next((name for name, cls in ROOTS.items() if kind.name in constructor_of(cls).parameters), None)
    if root is None:
        return "no slot: a parameter of other components, @Name() in a recipe"
    return f"slot {root}.{kind.name}, {'any number of components' if kind.name in LIST_SLOTS else 'one component'}"


def _claims(claims: Claims) -> str:
    if claims.unbiased is None:
        return ""
    scale = f"; scale {claims.scale}" if claims.unbiased else ""
    under = f", under: {claims.under}" if claims.under else ""
    return f"gradient {'unbiased' if claims.unbiased else 'biased'}{scale}{under}"


def _documentation(cls: type) -> Iterable[str]:
    """Lists the docstring of a class, and those of the base classes that it or one of these refers to.

    A docstring refers to a base class by its name in code: "Arguments as ``Sampler``".
    """
    texts = [inspect.getdoc(cls) or "(no documentation)"]
    for base in inspect.getmro(cls)[1:]:
        if any(f"``{base.__name__}``" in text for text in texts):
            texts.append(f"{base.__name__}: {inspect.getdoc(base)}")
    return texts


def _source(cls: type) -> str:
    try:
        return str(Path(inspect.getfile(cls)))
    except (OSError, TypeError):  # a class made in an interpreter
        return cls.__module__


def _keys(entry: Entry) -> dict[str, tuple[KeyText, ...]] | None:
    found = entry.keys()
    if found is None:
        return None
    return _texts({"reads": found.reads, "writes": found.writes, "on demand": found.on_demand})


def _texts(found: Mapping[str, Iterable[Key]]) -> dict[str, tuple[KeyText, ...]]:
    from dlmrl_kit.core.keys import KEYS, key_text

    texts = {}
    for heading, keys in found.items():
        specs = [(key_text(key), KEYS.get(key)) for key in keys]
        texts[heading] = tuple(
            KeyText(text, f"{spec.dtype} {spec.shape}" if spec else "", spec.meaning if spec else "")
            for text, spec in specs
        )
    return texts
