r"""Advantages that reward few forwards: a completion of n denoising steps, at most T, costs n forwards of the model.

    PenalisedForwards   R - c n / T                                                    dUltra, arXiv 2512.21446
    DiscountedForwards  R (1 - n / T)^alpha                               learned unmasking, arXiv 2512.09106
    DecoupledForwards   z-score of R  +  c * z-score of tokens per forward         LightningRL, arXiv 2603.13319

The first two compare these returns within the group by an advantage of choice. With a penalty the fastest wrong
completion is the best of a group in which none is right; a discount pays speed where the answer is right alone, and the
full T forwards nothing. The third standardises both rewards by themselves, so that neither is lost beside the other.
"""

from __future__ import annotations

import math
from abc import abstractmethod

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.base import GroupAdvantage
from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.advantages.group_z_score import GroupZScore
from dlmrl_kit.core.keys import GROUP, REWARD, STEP_NUM_COMMITTED, STEP_VALID
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import num_valid, tokens_per_forward
from dlmrl_kit.core.validate import check


class ForwardsReturn(GroupAdvantage):
    """Base class of advantages whose return depends on the forwards of a completion: subclasses implement ``worth``.

    Args:
        baseline: a group advantage, which compares the returns; None means ``GroupMean()``.

    Reads as ``GroupAdvantage``, and ``("step", "valid")`` bool [B, T]; writes as it.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, baseline: GroupAdvantage | None) -> None:
        super().__init__()
        check(baseline is None or isinstance(baseline, GroupAdvantage), self, "baseline", baseline, "a group advantage")
        self.baseline = baseline if baseline is not None else GroupMean()
        self.in_keys = [REWARD, GROUP, STEP_VALID]

    @abstractmethod
    def worth(self, reward: Tensor, share: Tensor) -> Tensor:
        """Returns what each sample is compared by, from its reward and n / T, both float64 [B]."""

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        """Compares returns as ``baseline``."""
        return self.baseline.estimate(returns, group)

    def of_samples(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the advantage of each sample, [B]."""
        reward, most = tensordict[REWARD], tensordict[STEP_VALID].shape[-1]
        share = num_valid(tensordict).double() / most
        return self.estimate(self.worth(reward.double(), share), tensordict[GROUP]).to(reward.dtype)


@register("advantage", paper="arXiv 2512.21446", unbiased=False, under="another objective: forwards cost")
class PenalisedForwards(ForwardsReturn):
    """Credits each sample with its reward less a price of its forwards, compared within the group.

    Args:
        price: c, what the largest number of forwards costs; at least 0.
        baseline: a group advantage, which compares the returns; None means ``GroupMean()``.

    Reads and writes as ``ForwardsReturn``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, price: float = 0.25, baseline: GroupAdvantage | None = None) -> None:
        super().__init__(baseline)
        check(0 <= price < math.inf, self, "price", price, "at least 0 and finite")
        self.price = price

    def worth(self, reward: Tensor, share: Tensor) -> Tensor:
        """Returns R - c n / T."""
        return reward - self.price * share


@register("advantage", paper="arXiv 2512.09106", unbiased=False, under="another objective: forwards cost")
class DiscountedForwards(ForwardsReturn):
    """Credits each sample with its reward times a power of the share of forwards it saved, compared within the group.

    Args:
        power: alpha, at least 0; 0 is the reward alone.
        baseline: a group advantage, which compares the returns; None means ``GroupMean()``.

    Reads and writes as ``ForwardsReturn``.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, power: float = 1.0, baseline: GroupAdvantage | None = None) -> None:
        super().__init__(baseline)
        check(0 <= power < math.inf, self, "power", power, "at least 0 and finite")
        self.power = power

    def worth(self, reward: Tensor, share: Tensor) -> Tensor:
        """Returns R (1 - n / T)^alpha."""
        return reward * (1 - share) ** self.power


@register("advantage", paper="arXiv 2603.13319", unbiased=False, under="another objective: forwards cost")
class DecoupledForwards(GroupAdvantage):
    """Credits each sample with its reward and its tokens per forward, each standardised by itself within the group.

    Args:
        speed: c, weight of the tokens per forward; at least 0.

    Reads as ``GroupAdvantage``, ``("step", "valid")`` bool and ``("step", "num_committed")`` int64 [B, T].
    Writes as it.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, speed: float = 1.0) -> None:
        super().__init__()
        check(0 <= speed < math.inf, self, "speed", speed, "at least 0 and finite")
        self.speed = speed
        self.in_keys = [REWARD, GROUP, STEP_VALID, STEP_NUM_COMMITTED]
        self._standardised = GroupZScore(eps=0.0)

    def estimate(self, returns: Tensor, group: Tensor) -> Tensor:
        """Standardises returns within the group."""
        return self._standardised.estimate(returns, group)

    def of_samples(self, tensordict: TensorDictBase) -> Tensor:
        """Returns the sum of the two z-scores, [B]."""
        reward, group = tensordict[REWARD], tensordict[GROUP]
        speed = self.estimate(tokens_per_forward(tensordict), group)
        return (self.estimate(reward.double(), group) + self.speed * speed).to(reward.dtype)
