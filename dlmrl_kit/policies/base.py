"""The policy kind: where a denoiser comes from. What a policy itself is says ``dlmrl_kit.core.policy``."""

from __future__ import annotations

from abc import ABC, abstractmethod

from dlmrl_kit.policies.transformers_policy import TransformersPolicy


class PolicySource(ABC):
    """Base class of what fills the slot ``policy``: it loads, or builds, the denoiser that training starts from."""

    mask_id: int | None = None
    """The mask token's id, where the user had to say it."""

    @abstractmethod
    def load(self) -> TransformersPolicy:
        """The denoiser, on the CPU.

        Raises:
            UserError: it cannot be had.
        """
