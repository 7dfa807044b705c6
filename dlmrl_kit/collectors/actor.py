"""What runs in an actor of Ray: a replica, and one line for what goes wrong in it. It does not import Ray itself."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from tensordict import TensorDictBase

from dlmrl_kit.collectors.base import Sampling
from dlmrl_kit.collectors.replica import Replica, fingerprint
from dlmrl_kit.core.blame import blame, told
from dlmrl_kit.core.errors import ComponentError, TrainingError, UserError

if TYPE_CHECKING:
    import numpy as np


class Order(NamedTuple):
    """What actors sample with.

    Attributes:
        sampling: a pickled ``Sampling``.
        expected: the ``fingerprint`` of the policy of the run.
        paths: where the process of the run finds modules; those that exist here are searched, too.
    """

    sampling: bytes
    expected: dict[str, str]
    paths: tuple[str, ...] = ()


class Actor:
    """Holds a replica, which it loads when it is first needed: also after it took the place of an actor that died.

    So that the one that takes its place needs nothing but the next call, every call brings all that it needs.

    Args:
        number: of the actor.
        device: ``cpu`` or ``cuda``.
        threads: of torch, as many as in the run, as sums over another number differ in the last digit.
    """

    def __init__(self, number: int, device: str, threads: int) -> None:
        self.number, self.device, self.threads = number, device, threads
        self._replica: Replica | None = None

    def start(self, order: Order) -> None:
        """Loads the replica; raises as ``sample``."""
        with self._told():
            self._loaded(order)

    def sample(
        self, order: Order, prompts: TensorDictBase, weights: Mapping[str, np.ndarray], version: int
    ) -> TensorDictBase:
        """Samples a completion for every prompt, on the CPU.

        Args:
            order: what is sampled with.
            prompts, weights, version: as ``Collector.collect``.

        Raises:
            UserError: the replica cannot be loaded, or a component of a plugin failed; says in which actor.
        """
        with self._told():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
                tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
            return self._loaded(order).sample(prompts, tensors, version).cpu()

    def _loaded(self, order: Order) -> Replica:
        if self._replica is None:
            torch.set_num_threads(self.threads)
            sampling = _unpickled(order)
            replica = Replica(sampling, torch.device(self.device))
            found = fingerprint(replica.policy)
            odd = {name for name in {*found, *order.expected} if found.get(name) != order.expected.get(name)}
            if odd:
                raise UserError(
                    f"{type(sampling.source).__name__} loads another model here than in the run ({min(odd)} differs): "
                    "all machines must have the same checkpoint"
                )
            self._replica = replica
        return self._replica

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Names this actor in errors that the user can fix; others stay what they are."""
        try:
            yield
        except Exception as error:
            found = error if isinstance(error, UserError) else blame(error)
            if found is None:
                raise
            kind = ComponentError if isinstance(found, ComponentError) else TrainingError
            raise kind(f"{found} (in actor {self.number} of Ray, on {socket.gethostname()})") from error


def _unpickled(order: Order) -> Sampling:
    """Returns what is sampled with.

    Raises:
        UserError: it needs a module that is not there.
    """
    sys.path.extend(path for path in order.paths if path not in sys.path and os.path.isdir(path))
    try:
        found = pickle.loads(order.sampling)
    except ImportError as error:
        raise UserError(f"a component is of a package that is not installed here: {told(error)}") from error
    assert isinstance(found, Sampling)
    return found
