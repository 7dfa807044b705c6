"""Pre-training objectives, with the settings of their loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.core.lazy import lazily

if TYPE_CHECKING:
    from dlmrl_kit.pretrainers.base import DataArguments as DataArguments
    from dlmrl_kit.pretrainers.base import Pretrainer as Pretrainer
    from dlmrl_kit.pretrainers.masked_diffusion import MaskedDiffusion as MaskedDiffusion

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "base": ["DataArguments", "Pretrainer"],
        "masked_diffusion": ["MaskedDiffusion"],
    },
)
