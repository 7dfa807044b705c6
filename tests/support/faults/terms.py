"""Losses and regularisers with one mistake each."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import SELECTED_ADVANTAGE, SELECTED_LOG_PROB, SELECTED_WEIGHT
from dlmrl_kit.losses.base import Objective, weighted_sum
from dlmrl_kit.losses.dpo import DPO
from dlmrl_kit.losses.ppo import SequencePPO
from dlmrl_kit.losses.reinforce import Reinforce
from dlmrl_kit.losses.token_ppo import TokenPPO
from dlmrl_kit.regularisers.kl import KLK1


class LeaksGradient(Reinforce):
    """Does not detach the advantage."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        weight = tensordict[SELECTED_WEIGHT]
        product = torch.where(weight > 0, tensordict[SELECTED_ADVANTAGE], 0) * torch.where(
            weight > 0, tensordict[SELECTED_LOG_PROB], 0
        )
        return -weighted_sum(product, weight), {"log_prob": product.mean()}


class NoGradient(Reinforce):
    """Detaches too much."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        total, diagnostics = super().total(tensordict)
        return total.detach(), diagnostics


class WrongCount(Reinforce):
    """Counts one sample too many in every batch."""

    def count(self, tensordict: TensorDictBase) -> Tensor:
        return super().count(tensordict) + 1


class IgnoresWeights(Reinforce):
    """Gives every used segment the weight 1."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        return super().total(tensordict.clone().set(SELECTED_WEIGHT, (tensordict[SELECTED_WEIGHT] > 0).float()))


class MultipliesPadding(Objective):
    """Multiplies by the weight and nothing more."""

    def __init__(self) -> None:
        super().__init__([SELECTED_LOG_PROB, SELECTED_ADVANTAGE, SELECTED_WEIGHT])

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        return -(
            tensordict[SELECTED_WEIGHT].detach()
            * tensordict[SELECTED_ADVANTAGE].detach()
            * tensordict[SELECTED_LOG_PROB]
        ).sum(), {}


class NotScalar(TokenPPO):
    """Returns a diagnostic for every sample. Arguments as ``TokenPPO``."""

    def total(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        total, diagnostics = super().total(tensordict)
        return total, {**diagnostics, "ratio": tensordict[SELECTED_ADVANTAGE].sum(-1)}


class CutsSequences(SequencePPO):
    """Says that it is a sum over segments. Arguments as ``ClippedSequences``."""

    segmentwise = True


class CutsGroups(DPO):
    """Does not say that it compares samples. Arguments as ``DPO``."""

    needs_groups = False


class WrongUnits(TokenPPO):
    """Says that its diagnostics are means over segments. Arguments as ``TokenPPO``."""

    def units(self, tensordict: TensorDictBase) -> Tensor:
        return Objective.units(self, tensordict)


class NotZero(KLK1):
    """A divergence with an offset. Arguments as ``KLEstimator``."""

    def estimate(self, log_ratio: Tensor) -> Tensor:
        return log_ratio + 0.1
