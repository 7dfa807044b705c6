"""Mixtures of experts: their routers compute in float32, and what they choose in a rollout is counted.

A router that rounds chooses other experts in the update than in the rollout, where two are close. So it computes
outside of mixed precision, on weights in float32, as the published code of LLaDA2 does. The auxiliary losses of
pretraining (load balancing, z-loss) are off: they are no part of the policy gradient, and transformers adds them to its
own loss only. Biases of experts that balance their load are buffers, which no optimiser changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

import torch
from torch import Tensor, nn

from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.policies.adapter import blocks
from dlmrl_kit.policies.block_causal import BlockCausalPolicy
from dlmrl_kit.policies.options import PolicyArguments
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Routed: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""What a router of transformers returns: logits [N, E], weights and numbers of the chosen experts [N, K]."""

ROUTER = "mlp.gate"
"""Name of a router in its block, in every model of transformers that is used here."""


class Float32Router:
    """The forward of a router in float32 that counts, without gradients, how often each expert is chosen.

    It is a class and no closure, so that a copy of a model gets the forward of its own router.

    Args:
        forward: bound method of a router, whose weight is in float32.
        experts: E.
    """

    def __init__(self, forward: Callable[[Tensor], Routed], experts: int) -> None:
        self.forward = forward
        self.experts = experts
        self.chosen: Tensor | None = None
        """How many tokens chose each expert, int64 [E]; None: there was no forward since it was last asked."""

    def __call__(self, hidden: Tensor) -> Routed:
        """Returns what the router returns for hidden states [..., D], in float32, or float64 where they are in it."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits, weights, chosen = self.forward(hidden if hidden.dtype == torch.float64 else hidden.float())
        if not torch.is_grad_enabled():  # no bincount, for which a GPU would be waited for
            before = chosen.new_zeros(self.experts) if self.chosen is None else self.chosen
            self.chosen = before.index_add(0, chosen.flatten(), torch.ones_like(chosen.flatten()))
        return logits, weights, chosen


class Routers:
    """The routers of a model, in float32 from here on.

    Args:
        model: with experts in some of its blocks.
    """

    def __init__(self, model: nn.Module) -> None:
        self.forwards: list[Float32Router] = []
        for block in blocks(model).values():
            found = dict(block.named_modules()).get(ROUTER)
            if found is None:  # a dense block
                continue
            weight = found.get_parameter("weight")
            weight.data = weight.data.float()
            router: Any = found
            router.forward = Float32Router(router.forward, weight.shape[0])
            self.forwards.append(router.forward)

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Within the context nothing is counted."""
        before = [forward.chosen for forward in self.forwards]
        yield
        for forward, chosen in zip(self.forwards, before, strict=True):
            forward.chosen = chosen

    def take_metrics(self, processes: Processes) -> dict[str, float]:
        """Returns how evenly the experts were chosen since the last call, averaged over the layers, and forgets it.

        ``router/imbalance`` is the load of the most chosen expert, in multiples of an equal share: 1 at best, E / K at
        worst. ``router/unused`` is the share of experts that no token chose. Every token of a forward counts, padding
        too, in all processes. Empty where nothing was counted.
        """
        own = [forward.chosen.cpu() for forward in self.forwards if forward.chosen is not None]
        counts = [torch.stack(layer).sum(0) for layer in zip(*filter(None, processes.gather(own)), strict=True)]
        for forward in self.forwards:
            forward.chosen = None
        if not counts:
            return {}
        load = torch.stack(counts).double()
        share = load / load.sum(-1, keepdim=True)
        imbalance = (share.amax(-1) * share.shape[-1]).mean()
        return {"router/imbalance": imbalance.item(), "router/unused": (load == 0).double().mean().item()}


class ExpertsPolicy(TransformersPolicy):
    """A denoiser with a mixture of experts; its routers compute in float32.

    Args:
        model: a transformers decoder with experts.
        tokenizer, arguments: as ``TransformersPolicy``.

    Raises:
        UserError: as ``TransformersPolicy``.
    """

    exact = (ROUTER,)

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **arguments: Unpack[PolicyArguments]
    ) -> None:
        super().__init__(model, tokenizer, **arguments)
        self.routers = Routers(model)

    def take_metrics(self, processes: Processes = ALONE) -> dict[str, float]:
        """Returns how evenly the experts were chosen since the last call; see ``Routers.take_metrics``."""
        return self.routers.take_metrics(processes)

    def one_token(self, model: PreTrainedModel, token: Tensor) -> Tensor:
        """As ``TransformersPolicy.one_token``; the token is not counted."""
        with self.routers.uncounted():
            return super().one_token(model, token)


class BlockCausalExpertsPolicy(ExpertsPolicy, BlockCausalPolicy):
    """A block-causal denoiser with a mixture of experts: see its two base classes."""
