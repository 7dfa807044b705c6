"""Functions in worker processes with a time limit: for scorers that may hang, crash, or use up the memory.

A worker is a fresh Python process, started when it is first needed (no fork, no ``multiprocessing``: the caller's main
script is not imported again, and so neither is torch). It loads a function once and then calls it on one item after
another. A worker that takes too long for an item is ended; one that crashes has ended. The item becomes a ``Failed``,
and the next one gets a new worker. What it started ends with it, and it ends with its parent, whatever ends that. This
bounds time and memory. It is no sandbox: a worker has the user's rights, unless it is asked for one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import warnings
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeAlias, TypeVar

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.sandbox.inside.messages import read_messages, write_message
from dlmrl_kit.scoring.process import (
    MAX_BYTES,
    SECONDS,
    START_SECONDS,
    Failed,
    read_reply,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_POOLS = 8
"""Pools that have workers at a time; a further one takes the place of the pool that was not used for longest."""
END_SECONDS = 5.0
"""Seconds in which a worker that was told to end, or whose replies have ended, has to be gone."""
_SERVE = "import sys; sys.path[:] = {path!r}; from dlmrl_kit.scoring.process import serve; serve()"
_SANDBOXED = (
    "import sys; sys.path[:] = {path!r}; from dlmrl_kit.scoring.sandboxed import start; start({path!r}, {seen!r})"
)


class WorkerError(UserError):
    """A worker process that cannot be started, or a scorer that must not be used."""


class Failures(Counter[str]):
    """Counts failures by kind, and warns of the first of each kind."""

    def note(self, task: str, failed: Failed, example: str) -> None:
        """Counts a failure.

        Args:
            task: what the warning calls the task.
            failed: the failure.
            example: the prompt whose completion could not be scored.
        """
        self[failed.kind] += 1
        if self[failed.kind] == 1:
            details = f"\n{failed.details}" if failed.details else ""
            warnings.warn(
                f"{task}: a completion of {example[:80]!r} could not be scored and gets 0: {failed.message} (the first "
                f"{failed.kind}; others are only counted, and their share is logged as 'failed'){details}",
                RuntimeWarning,
                stacklevel=2,
            )


class Pool(Generic[Item, Result]):
    """Worker processes that call one function. Use ``shared`` to get one.

    Args:
        load: is called once in each worker and returns the function. Must be picklable.
        workers: processes, started when first needed.
        memory: address space of each in bytes, where the system can limit it; None: no limit.
        seen: puts each into a sandbox, in which it sees these files and folders, the kit and installed packages; None:
            it has the user's rights.
    """

    def __init__(
        self,
        load: Callable[[], Callable[[Item], Result]],
        workers: int = 1,
        memory: int | None = None,
        seen: tuple[str, ...] | None = None,
    ) -> None:
        self._seen = seen
        self._setup = pickle.dumps((load, memory))
        self._workers: list[_Worker | None] = [None] * workers
        self._lock = threading.Lock()
        self._left: deque[int] = deque()
        self._stopped = False

    def run(self, items: Sequence[Item], timeout: float) -> list[Result | Failed]:
        """Calls the function on every item; returns its results in order, with a ``Failed`` where there is none.

        Args:
            items: arguments, picklable.
            timeout: seconds for each.

        Raises:
            WorkerError: the function cannot be loaded, or ``stop`` was called meanwhile.
        """
        with self._lock:
            results: dict[int, Result | Failed] = {}
            self._left = left = deque(range(len(items)))
            self._stopped = False
            numbers = range(min(len(self._workers), len(items)))

            def drive(worker: int) -> None:
                try:
                    while left:
                        with contextlib.suppress(IndexError):  # another thread took the last one
                            number = left.popleft()
                            results[number] = self._ask(worker, items[number], timeout)
                except BaseException:
                    left.clear()
                    raise

            if len(numbers) <= 1:
                drive(0)
            else:
                with ThreadPoolExecutor(len(numbers)) as threads:
                    try:
                        list(threads.map(drive, numbers))
                    except BaseException:
                        left.clear()
                        raise
            if self._stopped:
                raise WorkerError("scoring was stopped")
            return [results[number] for number in range(len(items))]

    def _ask(self, number: int, item: Item, timeout: float) -> Result | Failed:
        """Asks a worker, which is started if there is none under this number."""
        worker = self._workers[number]
        if worker is None or not worker.alive():
            self._workers[number] = worker = _Worker(self._seen)
            try:
                worker.load(self._setup)
                if self._stopped:  # before this worker was there to be ended
                    raise WorkerError("scoring was stopped")
            except BaseException:
                worker.kill()
                self._workers[number] = None
                raise
        reply: Result | Failed = worker.ask(item, timeout)
        return reply

    def stop(self) -> None:
        """Ends the workers, also those that are working: a ``run`` in another thread raises ``WorkerError``."""
        self._stopped = True
        self._left.clear()
        for worker in list(self._workers):
            if worker is not None:
                worker.kill()

    def close(self) -> None:
        """Ends the workers; the next ``run`` starts new ones."""
        with self._lock:
            for number, worker in enumerate(self._workers):
                if worker is not None:
                    worker.kill()
                self._workers[number] = None


class _Worker:
    """One worker process, and above it its guard (``guard``), which is the process that this one started.

    A thread reads its replies, because there is no other portable way of waiting for a pipe with a time limit.

    Args:
        seen: of ``Pool``.
    """

    def __init__(self, seen: tuple[str, ...] | None = None) -> None:
        # The order of sets of strings must not differ between processes, and numerical libraries need no threads here.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        process = subprocess.Popen(
            [sys.executable, "-c", (_SERVE if seen is None else _SANDBOXED).format(path=search_path(), seen=seen)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **threads, "PYTHONHASHSEED": "0"},
            start_new_session=True,  # Ctrl-C is for the parent, and processes that a scorer starts can be ended with it
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout
        self._replies: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def load(self, setup: bytes) -> None:
        """Loads the function; to be called once, before anything is asked.

        Raises:
            WorkerError: the function cannot be loaded.
        """
        ready = self._exchange(setup, START_SECONDS)
        if isinstance(ready, Failed):
            details = f"\n{ready.details}" if ready.details else ""
            raise WorkerError(f"the scorer cannot be loaded: {ready.message}{details}")

    def alive(self) -> bool:
        """Tells whether the process is running."""
        return self._process.poll() is None

    def ask(self, item: object, timeout: float) -> Any:
        """Returns what the function returns for an item, or a ``Failed``."""
        return self._exchange(SECONDS.pack(timeout) + pickle.dumps(item), timeout)

    def _exchange(self, message: bytes, timeout: float) -> Any:
        try:
            write_message(self._stdin, message)
            reply = self._replies.get(timeout=timeout)
        except OSError:
            reply = None
        except queue.Empty:
            self.kill()
            return Failed("timeout", f"took more than {timeout:g} s")
        except BaseException:  # Ctrl-C: the reply that is still to come must not be taken for the next one
            self.kill()
            raise
        if reply is None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its guard still has to hear of it
                self._process.wait(END_SECONDS)
            code = self.kill()
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            return Failed("crash", f"the worker process {how}")
        try:
            return read_reply(reply)
        except ValueError as error:
            self.kill()
            return Failed("crash", f"the worker process sent what is no reply: {error}")

    def _read(self) -> None:
        """Puts each reply into the queue, and None at the end."""
        for message in read_messages(self._stdout, 2 * MAX_BYTES):
            self._replies.put(message)
        self._replies.put(None)

    def kill(self) -> int:
        """Ends the process and what it started; returns the exit code."""
        process = self._process
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if os.name == "posix" and process.poll() is None:  # not waited for, so its id is still its own
                process.terminate()
                process.send_signal(signal.SIGCONT)  # should it have been stopped
                process.wait(END_SECONDS)
        if process.poll() is None:
            process.kill()
        code = process.wait()
        self._reader.join(1)
        if not self._reader.is_alive():
            self._stdin.close()
            self._stdout.close()
        return code


def search_path() -> list[str]:
    """Returns the folders in which a worker looks for modules: those of this process, then the current one."""
    path = [entry or os.getcwd() for entry in sys.path]
    return [*path, os.getcwd()] if os.getcwd() not in path else path


Key: TypeAlias = tuple[bytes, int, int | None, tuple[str, ...] | None]
_POOLS: OrderedDict[Key, Pool[Any, Any]] = OrderedDict()


def shared(
    load: Callable[[], Callable[[Item], Result]],
    workers: int = 1,
    memory: int | None = None,
    seen: tuple[str, ...] | None = None,
) -> Pool[Item, Result]:
    """Returns this process's pool for these arguments of ``Pool``.

    Equal arguments, those of copies of a task for example, get the same pool, and so share their workers.
    """
    key = (pickle.dumps(load), workers, memory, seen)
    pool: Pool[Item, Result] = _POOLS.pop(key) if key in _POOLS else Pool(load, workers, memory, seen)
    _POOLS[key] = pool
    while len(_POOLS) > MAX_POOLS:
        _POOLS.popitem(last=False)[1].close()
    return pool


def stop_all() -> None:
    """Ends all workers of this process, also those that are working; pools that are run again start new ones."""
    for pool in list(_POOLS.values()):
        pool.stop()


@atexit.register
def close_all() -> None:
    """Ends all workers of this process, and forgets the pools."""
    stop_all()
    while _POOLS:
        _POOLS.popitem()[1].close()


_INHERITED: list[dict[Key, Pool[Any, Any]]] = []


def _forget() -> None:
    """Forgets the pools in a forked child: their workers are the parent's."""
    _INHERITED.append(dict(_POOLS))  # kept, for their destructors would look after processes that are not the child's
    _POOLS.clear()


if sys.platform != "win32":  # where nothing forks
    os.register_at_fork(after_in_child=_forget)
