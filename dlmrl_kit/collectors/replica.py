"""A copy of the policy, with the sampler, in another place: it samples with the weights that it is given."""

from __future__ import annotations

import copy
import itertools

import torch
from tensordict import TensorDictBase

from dlmrl_kit.collectors.base import Sampling, Weights
from dlmrl_kit.core.component import trained
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.policy import autocast
from dlmrl_kit.core.seeding import derive_seed
from dlmrl_kit.policies.transformers_policy import TransformersPolicy


class Replica:
    """Loads the policy as the run did, onto another device, and samples.

    Args:
        sampling: what with; its sampler is copied.
        device: that it samples on.

    Raises:
        UserError: the policy cannot be loaded here.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        torch.manual_seed(derive_seed(sampling.seed, "init"))
        self.sampling, self.device = sampling, device
        self.policy = sampling.source.load()
        self.policy.to(device)
        if sampling.compile is not None:
            self.policy.compile_blocks(sampling.compile)
        self.sampler = copy.deepcopy(sampling.sampler).to(device)
        self._version: int | None = None

    def sample(self, prompts: TensorDictBase, weights: Weights, version: int) -> TensorDictBase:
        """Samples a completion for every prompt, all at once; arguments and result as ``Collector.collect``."""
        self._take(weights, version)
        sampling = self.sampling
        given = {"keys": sampling.keys, "cache": sampling.cache, "may_choose": sampling.may_choose}
        with autocast(self.policy, sampling.precision):
            found: TensorDictBase = self.sampler(prompts.to(self.device), policy=self.policy, **given)
        return found

    def _take(self, weights: Weights, version: int) -> None:
        """Copies weights, unless they are those that it has; they also decide the precision, which training raises.

        Raises:
            UserError: they do not have the names and shapes of those here.
        """
        if version == self._version:
            return
        own = trained(self.policy, [self.sampler])
        shapes = {name: tuple(value.shape) for name, value in weights.items()}
        if shapes != {name: tuple(parameter.shape) for name, parameter in own.items()}:
            odd = {name for name in {*shapes, *own} if name not in own or shapes.get(name) != tuple(own[name].shape)}
            raise UserError(f"the policy that is loaded here has other weights than that of the run: {min(odd)}")
        for name, value in weights.items():
            own[name].data = value.detach().to(self.device, copy=True)
        self._version = version


def fingerprint(policy: TransformersPolicy) -> dict[str, str]:
    """Describes what a policy consists of: shapes of its trained weights; shapes, types and sums of all that is fixed.

    Two policies with the same fingerprint sample the same once they have the same trained weights.
    """
    found = {}
    for name, tensor in itertools.chain(policy.model.named_parameters(), policy.model.named_buffers()):
        total = "trained" if tensor.requires_grad else str(_sum_of_bytes(tensor))
        found[name] = f"{list(tensor.shape)} {total if tensor.requires_grad else f'{tensor.dtype} {total}'}"
    return found


def _sum_of_bytes(tensor: torch.Tensor) -> int:
    """Adds up the bytes of a tensor, each weighed by its place modulo a prime: the same on every device."""
    flat = tensor.detach().contiguous().view(-1)
    if not len(flat):
        return 0
    total = 0
    for part in flat.view(torch.uint8).split(2**24):
        place = torch.arange(len(part), device=part.device, dtype=torch.int32) % 251 + 1
        total += int((part.int() * place).sum())
    return total
