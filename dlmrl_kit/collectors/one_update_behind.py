"""Asynchronous rollouts: while an update is computed, the rollout of the next one is sampled, with the weights so far.

Update n trains on samples of the policy before update n - 1, which the literature calls one step off-policy
(arXiv 2410.18252). What the sampler recorded is the log-probability of the behaviour policy mu, which is not the policy
pi that the update starts from. A loss whose old log-probability is the recorded one has mu in its ratio. Elsewhere the
slot ``correction`` weighs steps by pi / mu, and reports how far the two are apart.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from tensordict import TensorDictBase

from dlmrl_kit.collectors.base import Collector, Sampling, Weights
from dlmrl_kit.collectors.ray_actors import Ray
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.core.registry import register


@register("collector", paper="arXiv 2410.18252")
class OneUpdateBehind(Collector):
    """Samples the rollout of the next update while this one is computed.

    Args:
        collector: samples, in a place that does not share the processors of this process; None: Ray, as it is by
            default.
    """

    updates_behind = 1

    def __init__(self, collector: Collector | None = None) -> None:
        self.collector = Ray() if collector is None else collector
        self._thread: ThreadPoolExecutor | None = None

    def open(self, sampling: Sampling, policy: Policy, processes: Processes) -> None:
        """Opens the collector; arguments and errors as ``Collector.open``."""
        self.collector.open(sampling, policy, processes)
        # The number of threads of torch is one of each thread, and sums over another number differ in the last digit.
        threads = torch.get_num_threads()
        self._thread = ThreadPoolExecutor(1, "dlmrl-rollouts", torch.set_num_threads, (threads,))

    def collect(self, prompts: TensorDictBase, weights: Weights, version: int) -> TensorDictBase:
        """Samples, and returns when it is done; as ``Collector.collect``."""
        return self.collector.collect(prompts, weights, version)

    def begin(self, prompts: TensorDictBase, weights: Weights, version: int) -> Future[TensorDictBase]:
        """Begins to sample with a copy of the weights, and returns at once.

        Raises:
            RuntimeError: it is not open.
        """
        if self._thread is None:
            raise RuntimeError("OneUpdateBehind is not open: call open(sampling, policy, processes) before begin()")
        copies = {name: weight.detach().clone() for name, weight in weights.items()}
        return self._thread.submit(self.collector.collect, prompts, copies, version)

    def close(self) -> None:
        """Closes the collector; a rollout under way is given up."""
        self.collector.close()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None
