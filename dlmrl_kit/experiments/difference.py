"""Compares two resolved recipes: what differs, and whether the swap of one component explains it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dlmrl_kit.recipe.load import Recipe


@dataclass(frozen=True)
class Difference:
    """How a variant differs from its base.

    Attributes:
        slot: the swapped slot, its component in the base and its component in the variant.
        only_base, only_variant: parameters of components that only one of the two recipes has, with their values.
        equal: how many parameters both have with equal values.
        unwanted: what differs but must not, as text for a message; "" if nothing does.
    """

    slot: tuple[str, str, str]
    only_base: dict[str, str]
    only_variant: dict[str, str]
    equal: int
    unwanted: str = ""

    def __str__(self) -> str:
        slot, old, new = self.slot
        parts = [f"{slot} ({old} -> {new})"]
        parts += [f"{key} = {text} (base only)" for key, text in self.only_base.items()]
        parts += [f"{key} = {text} (variant only)" for key, text in self.only_variant.items()]
        return f"differs in {', '.join(parts)}; the other {self.equal} parameters are equal"

    def to_json(self) -> dict[str, Any]:
        """Returns all but ``unwanted`` for JSON."""
        slot, old, new = self.slot
        return {
            "slot": slot,
            "base": old,
            "variant": new,
            "only_base": self.only_base,
            "only_variant": self.only_variant,
            "equal": self.equal,
        }


def compare(base: Recipe, variant: Recipe, kind: str) -> Difference:
    """Compares every parameter of two recipes that should differ in one slot only.

    Components that both recipes build must have equal parameters, except for the slot itself.
    """
    old, new = _values(base), _values(variant)
    slot = f"{base.root}.{kind}"
    shared = {block.name for block in base.blocks} & {block.name for block in variant.blocks}
    unwanted = [
        f"{key}: {old.get(key, 'not there')} in the base, {new.get(key, 'not there')} here"
        for key in dict.fromkeys([*old, *new])
        if key != slot and key.rpartition(".")[0] in shared and old.get(key) != new.get(key)
    ]
    if base.imports != variant.imports:
        unwanted.append("import statements")
    return Difference(
        slot=(slot, _plain(old[slot]), _plain(new[slot])),
        only_base=_of_others(old, shared),
        only_variant=_of_others(new, shared),
        equal=sum(key in old and old[key] == value for key, value in new.items()),
        unwanted="; ".join(unwanted),
    )


def filling(recipe: Recipe, kind: str) -> str:
    """Writes what fills a slot as on the command line: ``"selector=UniformSteps"``, ``"regulariser=KLK1+KLK2"``."""
    return f"{kind}={_plain(_values(recipe)[f'{recipe.root}.{kind}'])}"


def namesakes(base: Recipe, variant: Recipe) -> list[str]:
    """Writes a note on each parameter name that both swapped components have, but with different values."""
    shared = {block.name for block in base.blocks} & {block.name for block in variant.blocks}
    old, new = _of_others(_values(base), shared), _of_others(_values(variant), shared)
    by_name = {key.rpartition(".")[2]: (key, value) for key, value in old.items()}
    notes = []
    for key, value in new.items():
        other, other_value = by_name.get(key.rpartition(".")[2], (key, value))
        if other_value != value:
            notes.append(f"{key} is {value}, but {other} is {other_value} in the base; --set {key}=... would change it")
    return notes


def _values(recipe: Recipe) -> dict[str, str]:
    return {key: bound.text if bound.text is not None else repr(bound.value) for key, bound in recipe.bindings.items()}


def _of_others(values: dict[str, str], shared: Iterable[str]) -> dict[str, str]:
    return {key: value for key, value in values.items() if key.rpartition(".")[0] not in shared}


def _plain(text: str) -> str:
    """Writes the value of a slot as on the command line: ``"A+B"`` for ``"[@A(), @B()]"``."""
    return "+".join(re.findall(r"@([\w./]+)\(\)", text)) or "none"
