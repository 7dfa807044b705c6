"""The interface of collectors, which sample the rollouts of a run in other places than the process that trains.

``open`` says once what is sampled with; ``collect`` gets the prompts of an update with the weights of the policy, and
returns trajectories. Weights travel in each call, so that whoever has lost them, or was replaced, needs no other. The
noise of a sample comes from its ``seed``, which is among the prompts: it does not matter where, when, and with which
others it is sampled, nor whether it is sampled again.

Rewards, selection, advantages and the update stay in the process that trains. Without a collector it also samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.dependencies import Dependent
from dlmrl_kit.core.keys import Key
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.core.promises import Given, promises, shown
from dlmrl_kit.policies.base import PolicySource
from dlmrl_kit.samplers.base import MayChoose, Sampler

Weights: TypeAlias = Mapping[str, Tensor]
"""The trained weights by name: those of the policy as ``Policy.trainable`` names them, and those of modules that the
sampler trains, as ``component:<class>.<name>``."""


@dataclass(frozen=True)
class Sampling:
    """What the rollouts of a run are sampled with; it stays the same, and can be pickled if its components can.

    Attributes:
        source: loads the denoiser that the run starts from.
        sampler: of the algorithm. Its own modules are trained; ``Weights`` hold them.
        keys: the on-demand keys that it is to write.
        cache, may_choose: further arguments of ``Sampler.forward``.
        batch_size: completions that are sampled at once, ``Trainer.rollout_batch_size``; None: any number.
        precision, compile, seed: of the trainer.
    """

    source: PolicySource
    sampler: Sampler
    keys: tuple[Key, ...] = ()
    cache: Cache | None = None
    may_choose: MayChoose | None = None
    batch_size: int | None = None
    precision: str = "float32"
    compile: str | None = None
    seed: int = 0


def _trajectories(result: object, given: Given) -> str:
    prompts = given["prompts"]
    if not isinstance(result, TensorDictBase) or result.batch_size != prompts.batch_size:
        got = f"a TensorDict of {list(result.shape)}" if isinstance(result, TensorDictBase) else shown(result)
        return f"{got}; it should be a TensorDict of {list(prompts.batch_size)}, a trajectory of each prompt"
    return ""


class Collector(Dependent, ABC):
    """Base class of collectors. Subclasses implement ``collect``, and ``open`` and ``close`` where they hold anything.

    Constructors open nothing: building a recipe must not touch the network or start processes.

    Attributes:
        updates_behind: how many updates the weights that a rollout is sampled with are older than the policy that it
            trains. 0: it is of the present policy, as in a run without a collector.
    """

    updates_behind: int = 0

    def open(self, sampling: Sampling, policy: Policy, processes: Processes) -> None:
        """Prepares for ``collect``. Default: does nothing.

        Args:
            sampling: what is sampled with.
            policy: the denoiser that is trained, of this process: what it loads elsewhere must be the same.
            processes: that train together; each has a collector, and opens it.

        Raises:
            UserError: rollouts cannot be sampled there.
        """

    @abstractmethod
    @promises(_trajectories)
    def collect(self, prompts: TensorDictBase, weights: Weights, version: int) -> TensorDictBase:
        """Samples a completion for every prompt; called between ``open`` and ``close``, one call at a time.

        Args:
            prompts: [B], with the ``in_keys`` of the sampler, ``group``, ``example`` and ``progress``.
            weights: that are sampled with. They change when this call has returned: copy what is kept.
            version: the updates that were taken when they were such.

        Returns:
            The prompts, in their order, with all that the sampler writes: ``Sampler.recorded_keys``. On any device.

        Raises:
            UserError: rollouts cannot be sampled.
        """

    def begin(self, prompts: TensorDictBase, weights: Weights, version: int) -> Future[TensorDictBase]:
        """Begins what ``collect`` does, with its arguments. Default: does it, and returns when it is done.

        Returns:
            The future trajectories.
        """
        future: Future[TensorDictBase] = Future()
        future.set_result(self.collect(prompts, weights, version))
        return future

    def close(self) -> None:
        """Lets go of what ``open`` has made, also while a rollout is under way; does nothing if it is not open."""
