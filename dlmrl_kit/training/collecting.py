"""Rollouts that a collector samples elsewhere: which are under way, and of which weights each one is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import Plan
from dlmrl_kit.collectors.base import Collector, Sampling
from dlmrl_kit.core.blame import named
from dlmrl_kit.core.component import trained
from dlmrl_kit.core.errors import ComponentError
from dlmrl_kit.core.keys import GROUP, SEED
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.processes import Processes


class Begun(NamedTuple):
    """A rollout that was begun.

    Attributes:
        version: of its weights: the updates that were taken when it was begun.
        prompts: that are sampled for.
        future: the trajectories.
    """

    version: int
    prompts: TensorDict
    future: Future[TensorDictBase]


class Collecting:
    """Takes the rollouts of a run from a collector, and begins those of later updates ahead of time.

    Args:
        collector: samples.
        sampling: what with.
        policy: that is trained.
        processes: that train together.
        updates: of the whole run.
        prompts: makes those of an update, for this process.
    """

    def __init__(
        self,
        collector: Collector,
        sampling: Sampling,
        policy: Policy,
        processes: Processes,
        *,
        updates: int,
        prompts: Callable[[int], TensorDict],
    ) -> None:
        self.collector, self.sampling, self.policy, self.processes = collector, sampling, policy, processes
        self.updates, self.prompts = updates, prompts
        self._under_way: dict[int, Begun] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Within the context rollouts can be taken."""
        try:
            self.collector.open(self.sampling, self.policy, self.processes)
            yield
        finally:
            self.collector.close()

    def take(self, number: int) -> tuple[TensorDictBase, int]:
        """Returns the rollout of an update, and by how many updates its weights are behind the policy.

        Before that it begins those of the updates up to ``updates_behind`` later.

        Args:
            number: of the update that is to be taken now.

        Raises:
            ComponentError: the collector returned something else than trajectories of the prompts, in their order.
        """
        last = min(number + self.collector.updates_behind, self.updates - 1)
        for later in range(number, last + 1):
            if later not in self._under_way:
                self._under_way[later] = self._begin(later, number)
        begun = self._under_way.pop(number)
        return self._checked(begun).to(self.policy.device), number - begun.version

    def ahead(self) -> dict[str, Tensor]:
        """Returns the rollouts of all processes that were begun and not taken yet: tensors by update, version and key.

        Every process calls it; it waits for the rollouts, and keeps them. One that fails is left out, as its error must
        not cost a checkpoint: ``take`` raises it.
        """
        found = dict[str, Tensor]()
        for number, begun in sorted(self._under_way.items()):
            parts = self.processes.gather(self._part(begun))
            there = [part for part in parts if part is not None and len(part)]
            if len(there) == 0 or any(part is None for part in parts):
                continue
            whole = TensorDict.cat(there)
            whole = whole[whole[GROUP].argsort(stable=True)].flatten_keys("/")
            found |= {f"{number}/{begun.version}/{key}": value for key, value in whole.items()}
        return found

    def _part(self, begun: Begun) -> TensorDictBase | None:
        """Returns the samples of this process, on the CPU; None if sampling failed."""
        return None if begun.future.exception() else self._checked(begun).cpu()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what ``ahead`` has returned, of any number of processes; the rollouts are not sampled again.

        Those that other settings would sample otherwise, which a resumed run may have, are left out.
        """
        leaves: dict[tuple[int, int], dict[str, Tensor]] = {}
        for name, value in tensors.items():
            number, version, key = name.split("/", 2)
            leaves.setdefault((int(number), int(version)), {})[key] = value
        for (update, taken), values in leaves.items():
            whole = TensorDict(values, [len(values[SEED])]).unflatten_keys("/")
            own, prompts = whole[whole[GROUP] % self.processes.world == self.processes.rank], self.prompts(update)
            future = Future[TensorDictBase]()
            future.set_result(own)
            if update - taken <= self.collector.updates_behind and not self._problem(own, prompts):
                self._under_way[update] = Begun(taken, prompts, future)

    def _begin(self, number: int, version: int) -> Begun:
        prompts, future = self.prompts(number), Future[TensorDictBase]()
        if len(prompts):
            future = self.collector.begin(prompts.copy(), trained(self.policy, [self.sampling.sampler]), version)
        else:  # more processes than prompts
            future.set_result(prompts)
        return Begun(version, prompts, future)

    def _checked(self, begun: Begun) -> TensorDictBase:
        """Returns the trajectories, once they are there.

        Raises:
            ComponentError: they are not those of the prompts.
        """
        found = begun.future.result()
        if problem := self._problem(found, begun.prompts):
            raise ComponentError(f"{named(type(self.collector))}: collect returned {problem}")
        return found

    def _problem(self, found: TensorDictBase, prompts: TensorDict) -> str:
        """Says what makes trajectories others than those of the prompts; "" if nothing does."""
        if not len(prompts):
            return ""
        there = set(found.keys(include_nested=True, leaves_only=True))
        written = self.sampling.sampler.recorded_keys(self.sampling.keys)
        missing = [key for key in (*prompts.keys(), *written) if key not in there]
        if missing:
            return f"trajectories without {missing[0]!r}"
        if found.batch_size != prompts.batch_size:
            return f"{len(found)} trajectories for {len(prompts)} prompts"
        same = torch.equal(found[SEED].cpu(), prompts[SEED].cpu())
        return "" if same else "trajectories in another order than that of the prompts"


def collecting(
    algorithm: Algorithm,
    plan: Plan,
    policy: Policy,
    processes: Processes,
    prompts: Callable[[int], TensorDict],
) -> Collecting | None:
    """Returns what takes the rollouts of an algorithm from its collector; None if it has none.

    Args:
        algorithm, plan: the components, and what is asked of them.
        policy, processes, prompts: as ``Collecting``.
    """
    if algorithm.collector is None:
        return None
    sampling, updates = sampling_of(algorithm, plan), algorithm.trainer.updates
    return Collecting(algorithm.collector, sampling, policy, processes, updates=updates, prompts=prompts)


def sampling_of(algorithm: Algorithm, plan: Plan) -> Sampling:
    """Returns what the rollouts of an algorithm are sampled with."""
    trainer = algorithm.trainer
    return Sampling(
        source=algorithm.policy,
        sampler=algorithm.sampler,
        keys=tuple(plan.sampler.keys),
        cache=algorithm.cache,
        may_choose=plan.may_choose,
        batch_size=trainer.rollout_batch_size,
        precision=trainer.precision,
        compile=trainer.compile,
        seed=trainer.seed,
    )
