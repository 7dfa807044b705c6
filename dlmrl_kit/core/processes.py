"""The processes that train one policy together: what they tell each other, and who speaks.

Each process samples, scores and differentiates its share of the prompts. What couples samples (counts, gradients,
metrics) is added up, so that N processes take the updates that one would take, up to rounding. The first process, rank
0, alone writes and speaks. ``torchrun`` starts the processes; ``joined`` lets them find each other.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from dlmrl_kit.core.errors import ProcessLostError, RecipeError, UserError

T = TypeVar("T")

BUCKET = 2**26
"""The most numbers that are added up at once: a copy of all gradients would take as much memory as the gradients."""
PATIENCE = timedelta(days=7)
"""How long a collective may wait. What hangs is found by ``training.watchdog``, with the limit of the recipe."""
GRACE = 3.0
"""Seconds that other processes leave to the first one to report an error that all of them have."""


class Processes:
    """One process, which trains alone; the subclass ``Several`` is one of many.

    Attributes:
        rank: of this process, from 0.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def group(self) -> dist.ProcessGroup | None:
        """Of torch, that these processes are; None: all that there are."""
        return None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes, in the order of their ranks; each process must call it."""
        return [value]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes."""

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by that of the first process."""

    def of_first(self, make: Callable[[], T]) -> T:
        """Calls ``make`` in the first process alone; returns in all of them what it returns, or raises its error."""
        return make()

    @property
    def waits(self) -> bool:
        """Whether this process waits for the others right now."""
        return False

    def speaks(self, follows: bool = False) -> bool:
        """Tells whether this process is the one that reports the error by which all of them end.

        Args:
            follows: whether the error follows from that of another process, which then has precedence.
        """
        return True

    def count(self, what: str) -> None:
        """Counts this process among those to which something has happened."""

    def counted(self, what: str) -> int:
        """Returns how many processes have counted themselves."""
        return 1

    @property
    def name(self) -> str:
        """How messages of this process begin: ``rank 2: ``; "" in the first one."""
        return f"rank {self.rank}: " if self.rank else ""


ALONE = Processes()
"""One process."""


class Several(Processes):
    """One process of several.

    Args:
        rank: its number.
        world: how many there are.
        store: that they share.
        group: of torch, whose first process is that of rank 0; None: all processes.
    """

    def __init__(self, rank: int, world: int, store: Store, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.world = rank, world
        self._store, self._group = store, group
        self._waits = False

    @property
    def group(self) -> dist.ProcessGroup | None:
        """Of torch, that these processes are; None: all that there are."""
        return self._group

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes.

        Raises:
            ProcessLostError: another process has ended.
        """
        found: list[T | None] = [None] * self.world
        with self._together():
            dist.all_gather_object(found, value, group=self._group)
        return found  # type: ignore[return-value]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Adds tensors up, many small ones at once and large ones in parts; raises as ``gather``."""
        for bucket in _buckets(tensors):
            flat = torch.cat(bucket) if len(bucket) > 1 else bucket[0]
            with self._together():
                dist.all_reduce(flat, group=self._group)
            if len(bucket) > 1:
                for part, total in zip(bucket, flat.split([len(part) for part in bucket]), strict=True):
                    part.copy_(total)

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Copies the tensors of the first process; raises as ``gather``."""
        for tensor in tensors:
            with self._together():
                dist.broadcast(tensor.detach(), 0, group=self._group)

    def of_first(self, make: Callable[[], T]) -> T:
        """Calls ``make`` in the first process.

        Raises:
            UserError: what ``make`` raised there, as an error of the same class where that can be sent.
            ProcessLostError: another process has ended, as by any other error in ``make``.
        """
        outcome: list[tuple[T | None, UserError | None] | None] = [None]
        if self.is_first:
            try:
                outcome = [(make(), None)]
            except UserError as error:
                outcome = [(None, _sendable(error))]
        with self._together():
            dist.broadcast_object_list(outcome, 0, group=self._group)
        assert outcome[0] is not None
        value, failure = outcome[0]
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]

    @property
    def waits(self) -> bool:
        """Whether this process waits for the others right now."""
        return self._waits

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Makes one line of what goes wrong when processes talk to each other.

        Raises:
            ProcessLostError: another process has ended.
        """
        self._waits = True
        try:
            yield
        except RuntimeError as error:  # of a backend: there is no class for these alone
            reason = " ".join(str(error).split())[:200]
            raise ProcessLostError(f"another process of this run does not answer any more ({reason})") from error
        finally:
            self._waits = False

    def count(self, what: str) -> None:
        """Counts this process."""
        self._store.add(what, 1)

    def counted(self, what: str) -> int:
        """Returns how many processes have counted themselves."""
        return int(self._store.add(what, 0))

    def speaks(self, follows: bool = False) -> bool:
        """Tells whether no other process reports an error; the first one, and causes, are given precedence."""
        try:
            until = time.monotonic() + GRACE * ((not self.is_first) + 2 * follows)
            while time.monotonic() < until and not self._store.check(["error"]):
                time.sleep(GRACE / 30)
            return int(self._store.add("error", 1)) == 1
        except RuntimeError:  # the process that kept the store has ended
            return self.is_first


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yields flat views of tensors, cut and put together so that each list holds one dtype and at most ``BUCKET``."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        for part in tensor.detach().view(-1).split(BUCKET):
            if bucket and (size + len(part) > BUCKET or part.dtype != bucket[0].dtype):
                yield bucket
                bucket, size = [], 0
            bucket.append(part)
            size += len(part)
    if bucket:
        yield bucket


def _sendable(error: UserError) -> UserError:
    """Returns the error, or one with the same text if other processes could not rebuild it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return UserError(str(error))
    return error


def started_by_torchrun() -> bool:
    """Tells whether this process is one of several that ``torchrun`` has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def restarts() -> int:
    """Returns how often ``torchrun`` has restarted this run: 0 at first, and where there is no ``torchrun``."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def may_restart() -> bool:
    """Tells whether ``torchrun`` starts this run again if one of its processes dies."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Within the context, the processes that ``torchrun`` has started can talk to each other; one alone needs nothing.

    Tensors on a GPU travel by NCCL, everything else by Gloo. Call ``own_gpu`` inside, before anything is on a GPU.
    """
    if not started_by_torchrun():
        yield ALONE
        return
    store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
    # torchrun keeps one store over all restarts; the keys that a killed process left in it would make the next ones
    # wait for it forever.
    store = PrefixStore(f"dlmrl/{restarts()}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    yield Several(rank, world, store)
    dist.destroy_process_group()  # not after an error: it could wait for a process that has ended


def own_gpu() -> None:
    """Makes a GPU of its own the current one of each process of a machine, if the machine has GPUs.

    Raises:
        RecipeError: there are more processes on this machine than GPUs.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if gpus and local >= gpus:
        number = os.environ.get("LOCAL_WORLD_SIZE", str(local + 1))
        raise RecipeError(
            f"{number} processes on a machine with {gpus} GPUs: start {gpus} there, or hide the GPUs to train on the "
            "CPU (CUDA_VISIBLE_DEVICES= )"
        )
    if gpus:
        torch.cuda.set_device(local)
