"""Rollouts in actors of a Ray cluster, on other GPUs or machines (arXiv 1712.05889).

Every actor loads the policy as the run did. The trained weights, those of the adapter alone with LoRA, are put into
Ray's object store once per rollout, and each call to an actor names them. So Ray itself can replace an actor that died
and call it again: the prompts carry the seeds of their samples, and the samples are the same.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDictBase

from dlmrl_kit.collectors.actor import Actor, Order
from dlmrl_kit.collectors.base import Collector, Sampling, Weights
from dlmrl_kit.collectors.replica import fingerprint
from dlmrl_kit.core.blame import named, told
from dlmrl_kit.core.errors import RecipeError, TrainingError, UserError
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.processes import Processes
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import cut, length_order, restored
from dlmrl_kit.core.validate import check
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

INSTALL = "pip install 'dlmrl-kit[ray]'"


@register("collector", paper="arXiv 1712.05889")
class Ray(Collector):
    """Samples in actors of a Ray cluster, each of which holds a copy of the policy.

    A rollout is cut into pieces of ``Trainer.rollout_batch_size``, or into one for each actor; an actor that is done
    gets the next piece.

    Args:
        actors: how many there are, of all processes of the run together.
        cpus_per_actor: processors that Ray reserves for each.
        gpus_per_actor: GPUs that Ray reserves for each; None: 1 where the run itself is on a GPU, else 0.
        address: of the cluster; None: that of ``RAY_ADDRESS``, or one that runs on this machine, or else a new one on
            this machine, which ends with the run.
        max_restarts: how often each actor is replaced when it dies.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        actors: int = 2,
        cpus_per_actor: float = 1.0,
        gpus_per_actor: float | None = None,
        address: str | None = None,
        max_restarts: int = 3,
    ) -> None:
        check(actors >= 1, self, "actors", actors, "at least 1")
        check(cpus_per_actor >= 0, self, "cpus_per_actor", cpus_per_actor, "at least 0")
        positive = gpus_per_actor is None or gpus_per_actor >= 0
        check(positive, self, "gpus_per_actor", gpus_per_actor, "at least 0, or None")
        check(max_restarts >= 0, self, "max_restarts", max_restarts, "at least 0")
        self.actors = actors
        self.cpus_per_actor = cpus_per_actor
        self.gpus_per_actor = gpus_per_actor
        self.address = address
        self.max_restarts = max_restarts
        self._sampling: Sampling | None = None
        self._handles: list[Any] = []
        self._order: Any = None
        self._owns_cluster = False

    def open(self, sampling: Sampling, policy: Policy, processes: Processes) -> None:
        """Connects to the cluster, or starts one, and the actors of this process in it.

        Raises:
            UserError: Ray is not installed, there is no such cluster, or it is too small for the actors; the policy or
                the sampler cannot be sent there; or the policy that is loaded there is another one.
        """
        first = processes.rank * self.actors // processes.world
        last = (processes.rank + 1) * self.actors // processes.world
        if self.actors < processes.world:
            raise RecipeError(f"Ray.actors = {self.actors} is fewer than the {processes.world} processes of the run")
        if not isinstance(policy, TransformersPolicy):
            raise UserError(f"Ray cannot load a {type(policy).__name__} elsewhere: leave the slot collector empty")
        with _signals_kept():
            ray = _ray()
            self._connect(ray, processes)
        on_gpu = policy.device.type != "cpu"
        gpus = float(on_gpu) if self.gpus_per_actor is None else self.gpus_per_actor
        self._check_size(ray, gpus)
        paths = tuple(os.path.abspath(path) for path in sys.path)
        self._order = ray.put(Order(_packed(ray, sampling), fingerprint(policy), paths))
        make = ray.remote(
            num_cpus=self.cpus_per_actor,
            num_gpus=gpus,
            max_restarts=self.max_restarts,
            max_task_retries=self.max_restarts,
        )(Actor)
        device, threads = "cuda" if gpus else "cpu", torch.get_num_threads()
        self._handles = [make.remote(i, device, threads) for i in range(first, last)]
        self._sampling = sampling
        with self._explained(ray):
            ray.get([handle.start.remote(self._order) for handle in self._handles])

    def collect(self, prompts: TensorDictBase, weights: Weights, version: int) -> TensorDictBase:
        """Samples in the actors.

        Raises:
            RuntimeError: it is not open.
            TrainingError: an actor died more often than it may, or something failed in it.
        """
        if self._sampling is None:
            raise RuntimeError("Ray is not open: call open(sampling, policy, processes) before collect()")
        ray = _ray()
        from ray.util import ActorPool

        size = self._sampling.batch_size or self._share(len(prompts))
        given = prompts.cpu()
        order, cuts = self._order, list(cut(given, size, length_order(given, size)))
        pieces = [piece for _, piece in cuts]
        with self._explained(ray):
            sent = ray.put({name: weight.detach().cpu().numpy() for name, weight in weights.items()})
            pool = ActorPool(self._handles)
            found = list(pool.map(lambda actor, piece: actor.sample.remote(order, piece, sent, version), pieces))
        return restored(found, [rows for rows, _ in cuts])

    def close(self) -> None:
        """Ends the actors, and the cluster if it was started for this run."""
        if self._sampling is None and not self._owns_cluster:
            return
        ray = _ray()
        for handle in self._handles:
            ray.kill(handle, no_restart=True)
        self._handles, self._sampling, self._order = [], None, None
        if self._owns_cluster:
            ray.shutdown()
            self._owns_cluster = False

    def _share(self, samples: int) -> int:
        """Returns the samples of a piece where each actor is to have one, without cutting what is made together."""
        assert self._sampling is not None
        together = self._sampling.sampler.group_size or 1
        return -(-samples // (len(self._handles) * together)) * together

    def _connect(self, ray: Any, processes: Processes) -> None:
        if ray.is_initialized():  # by the program that calls the kit
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers about the cluster
        several = processes.world > 1
        try:
            ray.init(
                address=self.address or ("auto" if several else None),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = self.address or "this machine"
            advice = "start one with 'ray start --head'; where a cluster asks for a token, set RAY_AUTH_MODE=token"
            raise UserError(f"Ray: no cluster can be reached at {where} ({told(error)}); {advice}") from error
        self._owns_cluster = True

    def _check_size(self, ray: Any, gpus: float) -> None:
        there = ray.cluster_resources()
        for name, each in (("CPU", self.cpus_per_actor), ("GPU", gpus)):
            if self.actors * each > there.get(name, 0):
                raise RecipeError(
                    f"Ray.actors = {self.actors} with {each:g} {name} each need {self.actors * each:g}, but the "
                    f"cluster has {there.get(name, 0):g}; set Ray.actors or Ray.{name.lower()}s_per_actor lower, or "
                    "add machines with 'ray start --address'"
                )

    @contextlib.contextmanager
    def _explained(self, ray: Any) -> Iterator[None]:
        """Makes one line of what goes wrong in actors or with them.

        Raises:
            TrainingError: see ``collect``.
        """
        try:
            yield
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from error
            raise
        except ray.exceptions.RayActorError as error:
            raise TrainingError(
                f"an actor of Ray died more often than Ray.max_restarts = {self.max_restarts} allows, perhaps for want "
                f"of memory ({told(error)})"
            ) from error
        except ray.exceptions.RayError as error:
            raise TrainingError(f"Ray cannot go on ({told(error)})") from error


def _ray() -> Any:
    """Imports Ray.

    Raises:
        UserError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(f"Ray is not installed here: {INSTALL}") from error
    return ray


def _packed(ray: Any, sampling: Sampling) -> bytes:
    """Pickles what is sampled with.

    Raises:
        UserError: a part of it cannot be pickled; says which.
    """
    sampling = replace(sampling, sampler=copy.deepcopy(sampling.sampler).cpu())
    for part in (sampling.source, sampling.sampler, sampling.cache):
        try:
            ray.cloudpickle.dumps(part)
        except Exception as error:  # whatever a plugin's component raises
            raise UserError(f"{named(type(part))} cannot be sent to another process: {told(error)}") from error
    packed: bytes = ray.cloudpickle.dumps(sampling)
    return packed


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Within the context, Ray sets its own handler of SIGTERM; afterwards it is again what it was."""
    if threading.current_thread() is not threading.main_thread():  # there it sets none
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
