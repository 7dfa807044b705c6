"""The stages of an update, and the places of those that fill slots which plugins declare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import Key
from dlmrl_kit.core.registry import declared_slots

PLACES = ("filter", "selector", "advantage", "likelihood")
"""The slots that a declared one may come before; before ``likelihood`` is the end of the rollout."""


@dataclass(frozen=True)
class Stage:
    """A component at its place in an update.

    Attributes:
        slot: the slot it fills; ``"reward"`` for the reward components, which fill none.
        component: what runs.
        keys: the on-demand keys that it is to write, as others read them.
    """

    slot: str
    component: Component
    keys: tuple[Key, ...] = ()

    @property
    def reads(self) -> tuple[Key, ...]:
        """The keys that the component reads when it is asked for ``keys``."""
        return self.component.reads(self.keys)

    @property
    def writes(self) -> tuple[Key, ...]:
        """The keys that the component writes when it is asked for ``keys``."""
        return self.component.writes(self.keys)

    @property
    def name(self) -> str:
        """The name of the component's class."""
        return type(self.component).__name__


def placed(stages: Sequence[Stage], declared: Iterable[Stage]) -> list[Stage]:
    """Puts the stages of declared slots into recipe order, each before the slot that its declaration names."""
    slots, found = declared_slots(), list(stages)
    for stage in declared:
        later = PLACES[PLACES.index(slots[stage.slot].before) :]  # there may be no filter
        found.insert(next((i for i, other in enumerate(found) if other.slot in later), len(found)), stage)
    return found


def check_places(ordered: Sequence[Stage]) -> None:
    """Checks that no stage of a declared slot had to wait for the slot that it comes before.

    Raises:
        RecipeError: one had to.
    """
    slots = declared_slots()
    for at, stage in enumerate(ordered):
        before = slots[stage.slot].before if stage.slot in slots else ""
        earlier = next((other for other in ordered[:at] if other.slot == before), None)
        if earlier is not None:
            key = next((key for key in stage.reads if key in earlier.writes), None)
            why = (
                f"it reads {key!r}, which {earlier.name} writes" if key else f"what it reads comes after {earlier.name}"
            )
            raise RecipeError(f"{stage.name} fills the slot {stage.slot}, which runs before the {before}, but {why}")
