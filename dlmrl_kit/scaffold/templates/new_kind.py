"""A kind of component of our own: what a reward becomes before advantages compare it."""

from __future__ import annotations

from dlmrl_kit import Slot, declare_key, declare_kind, register
from dlmrl_kit.advantages import LeaveOneOut
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import REWARD
from dlmrl_kit.core.validate import check
from dlmrl_kit.testing import fail
from tensordict import TensorDictBase
from torch import Tensor

SHAPED = declare_key(("acme", "shaper"), "float32", "[B]", "what the reward of each sample becomes")


def check_keeps_order(name: str, component: Shaper) -> None:
    """A higher reward stays the higher one; every component of the kind is held to this, whoever writes it."""
    from dlmrl_kit.testing.world import world

    given = world().full
    reward = given[REWARD]
    becomes = component.shaped(given)
    if ((reward[:, None] > reward) & (becomes[:, None] < becomes)).any():
        fail(name, "turns the order of two rewards round", "return a function of the reward that does not fall")


@declare_kind(
    "shaper",
    summary="what a reward becomes before advantages compare it",
    slot=Slot(before="advantage"),
    checks=(check_keeps_order,),
)
class Shaper(Component):
    """Base class of the kind; subclasses implement ``shaped``.

    Reads ``reward`` [B]. Writes ``("acme", "shaper")`` [B].
    """

    in_keys = (REWARD,)
    out_keys = (SHAPED,)
    implemented = ("shaped",)

    def shaped(self, tensordict: TensorDictBase) -> Tensor:
        """Returns what the reward of each sample becomes, [B]."""
        raise NotImplementedError

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Adds what the rewards become."""
        return tensordict.set(SHAPED, self.shaped(tensordict))


@register("shaper")
class AcmeShaper(Shaper):
    """Takes the reward to a power.

    Args:
        power: above 0; 1 leaves rewards as they are.

    Reads and writes as ``Shaper``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        check(power > 0, self, "power", power, "above 0")
        self.power = power

    def shaped(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the powers of the rewards, [B]."""
        return tensordict[REWARD].clamp(min=0) ** self.power


@register("advantage")
class AcmeShaperAdvantage(LeaveOneOut):
    """Compares with the others of the group what rewards have become; otherwise as ``LeaveOneOut``."""

    returns = SHAPED
