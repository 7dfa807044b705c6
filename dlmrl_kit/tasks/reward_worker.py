"""Functions in worker processes with a time limit: for scorers that may hang, crash, or eat memory.

A worker is a fresh Python process (no fork, no ``multiprocessing``: the caller's main script is not imported again, so
torch is not either), started when first needed. It loads a function once and then calls it on one item after another.
An item that takes too long costs the worker its life, a crash does so by itself; the item becomes a ``Failed`` and the
next one gets a new worker. This bounds time and memory. It is no sandbox: a worker has the user's rights.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import traceback
import warnings
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from dlmrl_kit.core.errors import UserError

Load = Callable[[], Callable[[Any], Any]]

START_SECONDS = 120.0
"""Time limit of starting a worker and loading its function."""
MAX_BYTES = 64 * 2**20
"""Largest reply of a worker, pickled."""
MAX_POOLS = 8
"""Pools with running workers at a time; the one that was not used for longest gives way."""
GRACE_SECONDS = 10.0
"""How long after a time limit a worker ends itself, should there be nobody left to end it."""

_LENGTH = struct.Struct(">Q")
_SECONDS = struct.Struct(">d")
_SERVE = "import sys; sys.path[:] = {path!r}; from dlmrl_kit.tasks.reward_worker import serve; serve()"


class WorkerError(UserError):
    """A worker process that cannot be started, or a scorer that must not be used."""


@dataclass(frozen=True)
class Failed:
    """What became of an item without a result.

    ``kind``: ``"timeout"``, ``"crash"`` (the process died) or ``"error"`` (the function raised, or its result cannot be
    sent). ``message``: one line. ``details``: a traceback, where there is one.
    """

    kind: str
    message: str
    details: str = ""


class Failures(Counter[str]):
    """How often each kind of failure occurred; the first of each kind is a warning."""

    def note(self, task: str, failed: Failed, example: str) -> None:
        """Counts a failure of a task at an example."""
        self[failed.kind] += 1
        if self[failed.kind] == 1:
            details = f"\n{failed.details}" if failed.details else ""
            warnings.warn(
                f"{task}: a completion of {example[:80]!r} could not be scored and gets 0: {failed.message} (the first "
                f"{failed.kind}; others are only counted, and their share is logged as 'failed'){details}",
                RuntimeWarning,
                stacklevel=2,
            )


class Pool:
    """Worker processes that call one function. Use ``shared`` to get one.

    Args:
        load: called once in each worker; returns the function. Must be picklable.
        workers: processes, started when first needed.
        memory: address space of each in bytes, where the system can limit it; None: no limit.
    """

    def __init__(self, load: Load, workers: int = 1, memory: int | None = None) -> None:
        self._setup = pickle.dumps((load, memory))
        self._workers: list[_Worker | None] = [None] * workers
        self._lock = threading.Lock()
        self._left: deque[int] = deque()
        self._stopped = False

    def run(self, items: Sequence[Any], timeout: float) -> list[Any]:
        """Results of the function, each ``Failed`` where there is none.

        Args:
            items: arguments, picklable.
            timeout: seconds for each.

        Raises:
            WorkerError: the function cannot be loaded, or ``stop`` was called meanwhile.
        """
        with self._lock:
            results: list[Any] = [None] * len(items)
            self._left = left = deque(range(len(items)))
            self._stopped = False
            slots = range(min(len(self._workers), len(items)))

            def drive(slot: int) -> None:
                try:
                    while left:
                        with contextlib.suppress(IndexError):  # another thread took the last one
                            number = left.popleft()
                            results[number] = self._ask(slot, items[number], timeout)
                except BaseException:
                    left.clear()
                    raise

            if len(slots) <= 1:
                drive(0)
            else:
                with ThreadPoolExecutor(len(slots)) as threads:
                    try:
                        list(threads.map(drive, slots))
                    except BaseException:
                        left.clear()
                        raise
            if self._stopped:
                raise WorkerError("scoring was stopped")
            return results

    def _ask(self, slot: int, item: Any, timeout: float) -> Any:
        worker = self._workers[slot]
        if worker is None or not worker.alive():
            self._workers[slot] = worker = _Worker()
            try:
                worker.load(self._setup)
                if self._stopped:  # before this worker was there to be ended
                    raise WorkerError("scoring was stopped")
            except BaseException:
                worker.kill()
                self._workers[slot] = None
                raise
        return worker.ask(item, timeout)

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
            for slot, worker in enumerate(self._workers):
                if worker is not None:
                    worker.kill()
                self._workers[slot] = None


class _Worker:
    """One process. Replies are read by a thread: waiting with a time limit on a pipe is not portable otherwise."""

    def __init__(self) -> None:
        # The order of sets of strings must not differ between processes, and numerical libraries need no threads here.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE.format(path=search_path())],
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
        """Loads the function; once, before anything is asked."""
        ready = self._exchange(setup, START_SECONDS)
        if isinstance(ready, Failed):
            details = f"\n{ready.details}" if ready.details else ""
            raise WorkerError(f"the scorer cannot be loaded: {ready.message}{details}")

    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, item: Any, timeout: float) -> Any:
        return self._exchange(_SECONDS.pack(timeout) + pickle.dumps(item), timeout)

    def _exchange(self, message: bytes, timeout: float) -> Any:
        try:
            _write(self._stdin, message)
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
            code = self.kill()
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            return Failed("crash", f"the worker process {how}")
        return pickle.loads(reply)

    def _read(self) -> None:
        """Puts each reply into the queue, and None at the end."""
        for message in _messages(self._stdout):
            self._replies.put(message)
        self._replies.put(None)

    def kill(self) -> int:
        """Ends the process and what it started; returns the exit code."""
        process = self._process
        with contextlib.suppress(OSError):
            if os.name == "posix" and process.returncode is None:  # not waited for, so its id is still its own
                os.killpg(process.pid, signal.SIGKILL)
            elif process.returncode is None:
                process.kill()
        code = process.wait()
        self._reader.join(1)
        if not self._reader.is_alive():
            self._stdin.close()
            self._stdout.close()
        return code


def _write(stream: Any, message: bytes) -> None:
    data = memoryview(_LENGTH.pack(len(message)) + message)
    while data:  # an unbuffered stream may take less than it is given
        data = data[stream.write(data) :]


def _messages(stream: Any) -> Iterator[bytes]:
    """The messages of an unbuffered stream, until it ends or breaks."""
    with contextlib.suppress(OSError, ValueError):
        while (head := _exactly(stream, _LENGTH.size)) is not None:
            message = _exactly(stream, *_LENGTH.unpack(head))
            if message is None:
                return
            yield message


def _exactly(stream: Any, length: int) -> bytes | None:
    """That many bytes, None where the stream ends before."""
    data = bytearray()
    while len(data) < length:
        piece = stream.read(length - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)


def search_path() -> list[str]:
    """Where a worker looks for modules: as this process does, then in the current folder."""
    path = [entry or os.getcwd() for entry in sys.path]
    return [*path, os.getcwd()] if os.getcwd() not in path else path


_POOLS: OrderedDict[Any, Pool] = OrderedDict()


def shared(load: Load, workers: int = 1, memory: int | None = None) -> Pool:
    """The pool of this process for these arguments: equal ones, copies of a task for example, share their workers."""
    key = (pickle.dumps(load), workers, memory)
    pool = _POOLS.pop(key, None) or Pool(load, workers, memory)
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


_INHERITED: list[Any] = []


def _forget() -> None:
    """In a forked child: the workers are the parent's."""
    _INHERITED.append(dict(_POOLS))  # kept, for their destructors would look after processes that are not the child's
    _POOLS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def serve() -> None:
    """The main loop of a worker; returns when its standard input ends."""
    stdin, stdout = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    # What a scorer prints must not get between the replies, and there is nothing for it to read.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    messages = _messages(stdin)
    setup = next(messages, None)
    function = None if setup is None else _load(setup, stdout)
    if function is None:
        return
    for message in messages:
        (timeout,) = _SECONDS.unpack_from(message)
        with _deadline(timeout):
            try:
                result = function(pickle.loads(message[_SECONDS.size :]))
            except BaseException as error:  # SystemExit too
                result = _failure(error)
            _reply(stdout, result)


def _load(setup: bytes, stdout: Any) -> Callable[[Any], Any] | None:
    """The function, None where it cannot be loaded; says which."""
    with _deadline(START_SECONDS):
        try:
            load, memory = pickle.loads(setup)
            _limit(memory)
            function = load()
        except BaseException as error:
            _reply(stdout, _failure(error))
            return None
        _reply(stdout, None)
        return function


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """The process ends itself if this takes much too long: nobody is left to end it where the parent was killed."""
    faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _failure(error: BaseException) -> Failed:
    if isinstance(error, UserError):
        return Failed("error", str(error))
    message = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return Failed("error", message, "".join(traceback.format_exception(error))[-4000:].rstrip())


def _reply(stdout: Any, result: Any) -> None:
    try:
        message = pickle.dumps(result)
        if len(message) > MAX_BYTES:
            message = pickle.dumps(Failed("error", f"a result of {len(message)} bytes; {MAX_BYTES} are the limit"))
    except Exception as error:
        message = pickle.dumps(_failure(error))
    with contextlib.suppress(BrokenPipeError):
        _write(stdout, message)


def _limit(memory: int | None) -> None:
    """Limits address space, and turns off core dumps, where the system can do that."""
    try:
        import resource
    except ImportError:
        return
    for kind, limit in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, memory)):
        if limit is not None:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(kind, (limit, limit))
