"""Regularisers: terms that are added to the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.regularisers.base import Regulariser as Regulariser
    from dlmrl_kit.regularisers.base import StepRegulariser as StepRegulariser
    from dlmrl_kit.regularisers.base import TokenRegulariser as TokenRegulariser
    from dlmrl_kit.regularisers.entropy_bonus import EntropyBonus as EntropyBonus
    from dlmrl_kit.regularisers.kl import KLK1 as KLK1
    from dlmrl_kit.regularisers.kl import KLK2 as KLK2
    from dlmrl_kit.regularisers.kl import KLK3 as KLK3
    from dlmrl_kit.regularisers.kl import KLEstimator as KLEstimator
    from dlmrl_kit.regularisers.kl import SequenceKLEstimator as SequenceKLEstimator
    from dlmrl_kit.regularisers.kl import SequenceKLK1 as SequenceKLK1
    from dlmrl_kit.regularisers.kl import SequenceKLK2 as SequenceKLK2
    from dlmrl_kit.regularisers.kl import SequenceKLK3 as SequenceKLK3
    from dlmrl_kit.regularisers.kl import TokenKLEstimator as TokenKLEstimator
    from dlmrl_kit.regularisers.kl import TokenKLK1 as TokenKLK1
    from dlmrl_kit.regularisers.kl import TokenKLK2 as TokenKLK2
    from dlmrl_kit.regularisers.kl import TokenKLK3 as TokenKLK3
    from dlmrl_kit.regularisers.kl_exact import KLExact as KLExact
    from dlmrl_kit.regularisers.success_nll import SuccessNLL as SuccessNLL
    from dlmrl_kit.regularisers.value_loss import ValueLoss as ValueLoss

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["Regulariser", "StepRegulariser", "TokenRegulariser"],
        "entropy_bonus": ["EntropyBonus"],
        "kl": [
            "KLEstimator",
            "KLK1",
            "KLK2",
            "KLK3",
            "SequenceKLEstimator",
            "SequenceKLK1",
            "SequenceKLK2",
            "SequenceKLK3",
            "TokenKLEstimator",
            "TokenKLK1",
            "TokenKLK2",
            "TokenKLK3",
        ],
        "kl_exact": ["KLExact"],
        "success_nll": ["SuccessNLL"],
        "value_loss": ["ValueLoss"],
    },
)
