"""A plugin with a kind of its own: what a reward becomes before advantages see it."""

from __future__ import annotations

SHAPING = '''
from dlmrl_kit import Slot, declare_key, declare_kind, register
from dlmrl_kit.advantages import LeaveOneOut
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import REWARD
from dlmrl_kit.testing import ConformanceError

SHAPED = declare_key(("shaping", "reward"), "float32", "[B]", "reward after shaping")


def check_keeps_order(name, component):
    """A shaper keeps the order of rewards."""
    if getattr(component, "factor", 1) < 0:
        raise ConformanceError(f"{name} turns the order of rewards round")


@declare_kind("shaper", summary="what a reward becomes", slot=Slot(before="advantage"), checks=(check_keeps_order,))
class Shaper(Component):
    """Base class of shapers."""

    in_keys = [REWARD]
    out_keys = [SHAPED]
    implemented = ("shaped",)

    def shaped(self, tensordict):
        """Returns what the rewards become: [B]."""
        raise NotImplementedError

    def forward(self, tensordict):
        """Writes what the rewards become."""
        return tensordict.set(SHAPED, self.shaped(tensordict))


@register("shaper")
class Multiplied(Shaper):
    """Multiplies each reward.

    Args:
        factor: by what.
    """

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor

    def shaped(self, tensordict):
        """Returns the products."""
        return tensordict[REWARD] * self.factor


@register("advantage")
class ShapedLeaveOneOut(LeaveOneOut):
    """Compares shaped rewards."""

    returns = SHAPED
'''
