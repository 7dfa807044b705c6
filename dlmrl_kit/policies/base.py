"""The interface of what fills the slot ``policy``; ``dlmrl_kit.core.policy`` says what a policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from dlmrl_kit.core.dependencies import Dependent
from dlmrl_kit.core.validate import check
from dlmrl_kit.policies.options import Checkpointing, Quantisation
from dlmrl_kit.policies.transformers_policy import TransformersPolicy


class PolicySource(Dependent, ABC):
    """Base class of components that load, or build, the denoiser that training starts from."""

    mask_id: int | None = None
    """The mask token's id, where the user had to say it."""
    eos_ids: tuple[int, ...] = ()
    """Ids that end a text, where the user had to say them."""
    lora_rank: int = 0
    """Rank of the LoRA adapter that is trained; 0: the weights themselves are."""
    quantisation: Quantisation = "none"
    """How the weights that are not trained are held."""
    gradient_checkpointing: Checkpointing = False
    """Whether blocks are computed again in the backward pass, in place of storing their activations. ``auto``: training
    chooses how many are, by ``training.activation_memory``; a policy is loaded without any."""
    activation_gib: float | None = None
    """GiB that the activations of a micro-batch may take, by which that is chosen; None: what is free."""

    @abstractmethod
    def load(self) -> TransformersPolicy:
        """Returns the denoiser, on the CPU.

        Raises:
            UserError: it cannot be had.
        """


def check_checkpointing(source: PolicySource, value: object) -> None:
    """Raises ``ParameterError`` if ``value`` means nothing as the ``gradient_checkpointing`` of a source."""
    check(type(value) is bool or value == "auto", source, "gradient_checkpointing", value, "True, False or 'auto'")
