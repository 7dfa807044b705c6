"""A policy whose weights lie in parts with the processes that train it, by ``fully_shard`` of torch (FSDP2).

A block is put together for its forward and its backward, and taken apart again. So a forward of one process needs all
others. They keep in step: each says what it does next, and those that have nothing to do, or something else, do the
same with one token and weight 0 (``Sharding.in_step``). For rollouts, in which some processes need many more forwards
than others, every process puts all weights together once (``Sharding.whole``), where they fit.

Embeddings and the norm behind the last block belong to the body; a head of its own is put together for all of a
minibatch, as it is called any number of times. A head that is tied to the embeddings stays whole in every process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.policies.adapter import blocks
from dlmrl_kit.policies.foreign import quantisation_of
from dlmrl_kit.policies.last_layer import last_layer_at, layer_at_columns, prunable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Next(IntEnum):
    """What a process does next that needs all others. The largest that any of them says is done first, by all."""

    DONE = 0
    BACKWARD = 1
    FORWARD = 2
    WITHOUT_GRADIENT = 3
    REFERENCE = 4


@dataclass(frozen=True)
class Parts:
    """Says how weights are kept and put together.

    Attributes:
        half: whether blocks travel and compute in bfloat16, but for the modules that keep their precision.
        offloaded: whether weights, gradients and moments that a process has a part of lie in the CPU's memory.
        in_blocks: whether rollouts, too, put one block together at a time, as no process has room for all weights.
    """

    half: bool = False
    offloaded: bool = False
    in_blocks: bool = False


class Sharding:
    """The parts of a model, and of the frozen copy that is its reference.

    Args:
        model: on its device, with its adapter; its weights are the same in all processes. It is sharded here.
        frozen: of the same class; None: there is none. It is sharded, too, but for its head.
        processes: that share the weights.
        parts: how they are kept and put together.
        one_token: runs one token, int64 [1, 1], through the body of the model or of its copy; returns its states.
        exact: names of modules in a block that compute in the precision of their weights.

    Attributes:
        how: weights are kept and put together.
        device: that forwards run on.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        frozen: PreTrainedModel | None,
        processes: Processes,
        parts: Parts,
        one_token: Callable[[PreTrainedModel, Tensor], Tensor],
        exact: Iterable[str] = (),
    ) -> None:
        self._processes, self.how, self._one_token, self._exact = processes, parts, one_token, set(exact)
        self.device = next(model.parameters()).device
        group = processes.group or dist.group.WORLD
        assert group is not None
        self._mesh = DeviceMesh.from_group(group, self.device.type)
        pinned = self.device.type == "cuda"
        self._offload = CPUOffloadPolicy(pin_memory=pinned) if parts.offloaded else OffloadPolicy()
        self._model, self._frozen = model, frozen
        self._pruned: dict[int, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {}
        self._parts = self._sharded(model)
        self._head: FSDPModule | None = None
        head = model.get_output_embeddings()
        if head.weight is not model.get_input_embeddings().weight:
            (self._head,) = self._fully([head], MixedPrecisionPolicy())
        copied = [] if frozen is None else self._sharded(frozen)
        for part in (*self._parts, *copied) if parts.in_blocks else ():
            # Torch keeps the tensors into which it puts a block together. Made within a sampler's inference mode, they
            # could not be used in training.
            part.unshard()
            part.reshard()
        self._is_whole = self._is_in_step = False
        self._anchors: list[Tensor] = []
        """Zeros that hang on each forward with a gradient, so that every backward goes through all of them."""
        self._passes = 0

    def _sharded(self, model: PreTrainedModel) -> list[FSDPModule]:
        """Shards the blocks, and the rest of the body; returns what was sharded."""
        full, found, parts = MixedPrecisionPolicy(), blocks(model).values(), []
        prunes, body = prunable(model), model.get_decoder()
        half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        if self.how.half:
            exact = [part for block in found for name, part in block.named_modules() if name in self._exact]
            parts += self._fully(exact, full)
        parts += self._fully(found, half if self.how.half else full)
        tied = {model.get_output_embeddings().weight}  # ignored where it is not among the body's, too
        parts += self._fully([body], full, tied)
        if prunes:
            last = body.layers[-1]
            at = _forward_method(last, "at_columns", partial(layer_at_columns, last))
            self._pruned[id(model)] = _forward_method(body, "at_places", partial(last_layer_at, body, layer_at=at))
        return parts

    def pruned(self, model: nn.Module) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None:
        """Returns what computes the last layer of the model, or of its copy, at the asked places only.

        It is given what ``last_layer.last_layer_at`` is given but for the body. None: this model has no such layer.
        """
        return self._pruned.get(id(model))

    def _fully(
        self, modules: Iterable[nn.Module], precision: MixedPrecisionPolicy, whole: set[nn.Parameter] | None = None
    ) -> list[FSDPModule]:
        parts = []
        for module in modules:
            part = fully_shard(
                module,
                mesh=self._mesh,
                mp_policy=precision,
                offload_policy=self._offload,
                reshard_after_forward=True,
                ignored_params=whole,
            )
            # A loss is a sum over the samples of all processes: gradients are added up, and not averaged.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
            parts.append(part)
        return parts

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Within the context, every process holds all weights of the model, if there is room: then it need not wait."""
        if self.how.in_blocks:
            yield
            return
        parts = [*self._parts, *([] if self._head is None else [self._head])]
        self._processes.gather(None)  # tells in one line of a process that has died, which ``unshard`` does not
        for part in parts:
            part.unshard()
            part.set_reshard_after_forward(False, recurse=False)
        self._is_whole = True
        try:
            yield
        finally:
            self._is_whole = False
            for part in parts:
                part.set_reshard_after_forward(True, recurse=False)
                part.reshard()

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """Within the context processes may call forwards and backwards as they need them; all of them must enter it.

        At its end those that are done wait for the others, and gradients are complete. Within it nothing else may be
        exchanged between processes.
        """
        self._is_in_step, self._passes = True, 0
        head = None if self._is_whole else self._head
        if head is not None:
            self._hold_head(head)
        yield
        self._settle()
        if head is not None:
            self._release_head(head)
        self._is_in_step = False

    def _hold_head(self, head: FSDPModule) -> None:
        """Puts the head together until ``_release_head``; meanwhile its gradient is kept here."""
        head.unshard()
        head.set_reshard_after_forward(False)
        head.set_reshard_after_backward(False)
        head.set_requires_gradient_sync(False)

    def _release_head(self, head: FSDPModule) -> None:
        """Takes the head apart; adds its gradients up if there were any."""
        head.set_reshard_after_forward(True)
        head.set_reshard_after_backward(True)
        head.set_requires_gradient_sync(True)
        weight = self._model.get_output_embeddings().weight
        if self._passes and weight.requires_grad:
            # A backward with weight 0, the only one after which all processes add up what they have.
            logits = self._model.get_output_embeddings()(weight.new_zeros(1, weight.shape[1]))
            logits.flatten()[:0].sum().backward()
        head.reshard()

    def forward(self, model: nn.Module, run: Callable[[], Tensor]) -> Tensor:
        """Calls a forward of the model or of its frozen copy; all processes take part in it.

        Args:
            model: that is run.
            run: returns states, by one forward of the body.
        """
        if model is self._frozen:
            kind = Next.REFERENCE
        elif self._is_whole:
            return run()
        else:
            kind = Next.FORWARD if torch.is_grad_enabled() else Next.WITHOUT_GRADIENT
        assert self._is_in_step, "a forward that other processes do not know of: call it within in_step()"
        self._agree(kind)
        return self._anchored(run())

    def backward(self, loss: Tensor) -> None:
        """Back-propagates a loss; all processes take part in it if it follows a forward."""
        if not self._anchors:
            loss.backward()
            return
        self._agree(Next.BACKWARD)
        anchors, self._anchors = self._anchors, []
        (loss + sum(anchor.to(loss.dtype) for anchor in anchors)).backward()

    def _settle(self) -> None:
        """Takes part in what other processes do, until all of them are done."""
        if self._anchors:
            self.backward(self._anchors[0].new_zeros(()))
        self._agree(Next.DONE)

    def _anchored(self, states: Tensor) -> Tensor:
        if states.requires_grad:
            self._anchors.append(states.flatten()[:0].sum())
            self._passes += 1
        return states

    def _agree(self, kind: Next) -> None:
        """Returns when no process has anything to do that goes before this; takes part in it until then."""
        while (most := max(self._processes.gather(kind))) is not kind:
            if most is Next.BACKWARD:
                anchors, self._anchors = self._anchors, []
                torch.stack(anchors).sum().backward()
            else:
                self._empty_forward(most)

    def _empty_forward(self, kind: Next) -> None:
        """Runs one token through the body, for another process that needs this one's part of the weights."""
        model = self._frozen if kind is Next.REFERENCE else self._model
        assert model is not None
        token = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        mixed = torch.autocast(token.device.type, torch.bfloat16, enabled=self.how.half)
        with torch.set_grad_enabled(kind is Next.FORWARD), mixed:
            self._anchored(self._one_token(model, token))


def _forward_method(module: nn.Module, name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Gives a sharded module another forward beside its own, which puts it together, too; returns that.

    Torch takes it from an attribute of the module, and leaves there what it makes of it.
    """
    setattr(module, name, forward)
    register_fsdp_forward_method(module, name)
    registered: Callable[..., Tensor] = getattr(module, name)
    return registered


def check_shardable(model: nn.Module, reason: str) -> None:
    """Refuses to shard weights of a kind that cannot be sharded.

    Args:
        model: whose weights they are.
        reason: why those of its class of policies cannot be; empty where they can.

    Raises:
        UserError: they cannot.
    """
    if reason:
        raise UserError(f"Trainer.sharding = 'full' {reason}; set it to 'none'")
    if any(quantisation_of(weight) is not None for weight in model.parameters()):
        raise UserError(
            "Trainer.sharding = 'full' is not for weights in 4 bits, which are stored in blocks that cannot be cut "
            "between processes; set it to 'none', or quantisation to 'none'"
        )


def is_sharded(tensor: Tensor) -> bool:
    """Tells whether this process has but a part of a tensor."""
    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """Returns the part of a tensor that this process has: all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def together(tensor: Tensor) -> Tensor:
    """Returns a whole tensor; every process of a sharded one must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
