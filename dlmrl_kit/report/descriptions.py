"""What ``dlmrl list`` and ``dlmrl show`` say of each component, as plain data that can be kept in a file."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dlmrl_kit.core.registry import Claims, Entry


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
    from dlmrl_kit.core.keys import KEYS, key_text

    found = entry.keys()
    if found is None:
        return None
    texts = {}
    for heading, keys in {"reads": found.reads, "writes": found.writes, "on demand": found.on_demand}.items():
        specs = [(key_text(key), KEYS.get(key)) for key in keys]
        texts[heading] = tuple(
            KeyText(text, f"{spec.dtype} {spec.shape}" if spec else "", spec.meaning if spec else "")
            for text, spec in specs
        )
    return texts
