"""Worker processes: items that misbehave, order, memory, and what ends with whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.process_ends import gone

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.scoring import pool as worker
from dlmrl_kit.scoring.pool import Failed, WorkerError, shared


def run(pool: worker.Pool, *items: Any, timeout: float = 20) -> list[Any]:
    return [f"{r.kind}: {r.message}" if isinstance(r, Failed) else r for r in pool.run(items, timeout)]


def test_results_and_one_process_for_many_items(functions: ModuleType) -> None:
    pool = shared(functions.load)
    assert run(pool) == []
    assert run(pool, 1, "a", None, [1], {"x": (1, 2)}, "\ud800", b"x" * 10**6) == [
        1, "a", None, [1], {"x": (1, 2)}, "\ud800", b"x" * 10**6
    ]  # fmt: skip
    assert len(set(run(pool, "pid", "pid") + run(pool, "pid"))) == 1
    assert run(pool, "pid")[0] != os.getpid()
    assert run(pool, "modules") == [[]]
    assert shared(functions.load) is pool
    assert shared(functions.load, 2) is not pool


@pytest.mark.parametrize(
    ("item", "result"),
    [
        ("hang", "timeout: took more than 0.5 s"),
        ("loop", "timeout: took more than 0.5 s"),
        ("exit", "crash: the worker process ended with exit code 3"),
        ("abort", "crash: the worker process was ended by signal 6"),
        ("raise", "error: KeyError: 'gone'"),
        ("quit", "error: SystemExit: 0"),
        ("print", "print"),
        ("read", "error: EOFError: EOF when reading a line"),
    ],
)
def test_items_that_misbehave_harm_no_other(functions: ModuleType, item: str, result: str) -> None:
    pool = shared(functions.load)
    run(pool, "warm")
    start = time.perf_counter()
    # Only what is meant to take too long may run into the short limit on a busy machine.
    limit = 0.5 if result.startswith("timeout") else 20
    assert run(pool, item, timeout=limit) == [result]
    assert time.perf_counter() - start < 10
    assert run(pool, 1, item, 2)[::2] == [1, 2] if not result.startswith("timeout") else run(pool, 1) == [1]


def test_results_that_cannot_be_sent(functions: ModuleType) -> None:
    huge, closure, after = run(shared(functions.load), "huge", "closure", 1)
    assert huge.startswith("error: a result of 838")
    assert closure == "error: TypeError: builtins.function is no data that can be sent"
    assert after == 1


def test_memory_is_limited(functions: ModuleType) -> None:
    if sys.platform != "linux":
        pytest.skip("no limit of address space")
    late = "error: MemoryError: it needs more than the worker's 2 GiB"
    assert run(shared(functions.load, memory=2 * 2**30), "memory", 1) == [late, 1]


def test_several_workers_keep_the_order_and_share_the_wait(functions: ModuleType) -> None:
    pool = shared(functions.load, 3)
    run(pool, 1, 2, 3)
    start = time.perf_counter()
    results = run(pool, "hang", 1, "hang", 2, "hang", 3, timeout=2)
    late = "timeout: took more than 2 s"
    assert results == [late, 1, late, 2, late, 3]
    assert time.perf_counter() - start < 5.5  # 6 s one after another
    assert run(pool, *range(50)) == list(range(50))
    pool.close()
    assert run(pool, 1, 2) == [1, 2]
    pool.close()


def test_the_order_of_sets_does_not_depend_on_the_process(functions: ModuleType) -> None:
    pool = shared(functions.load)
    first = run(pool, "set")
    pool.close()
    assert run(pool, "set") == first


def test_functions_that_cannot_be_loaded(functions: ModuleType) -> None:
    for load, message in (
        (functions.load_not, r"the scorer cannot be loaded: ValueError: cannot be loaded\nTraceback(.|\n)*load_not"),
        (functions.load_dead, "the scorer cannot be loaded: the worker process ended with exit code 7"),
    ):
        with pytest.raises(WorkerError, match=message):
            shared(load).run([1], 20)
    assert issubclass(WorkerError, UserError)


def test_what_a_scorer_started_ends_with_it(
    functions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLMRL_TEST_CHILD", str(tmp_path / "pid"))
    pool = shared(functions.load, memory=2**40)  # a pool of its own: the environment is read at the start
    run(pool, 1)
    assert run(pool, "child", timeout=2)[0].startswith("timeout")
    assert gone(int((tmp_path / "pid").read_text()))


def test_ctrl_c_does_not_mix_up_replies(functions: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = shared(functions.load)
    run(pool, 1)

    class Interrupted:
        def get(self, timeout: float) -> bytes:
            raise KeyboardInterrupt

        def put(self, message: bytes | None) -> None: ...

    monkeypatch.setattr(pool._workers[0], "_replies", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        pool.run(["late"], 20)
    assert run(pool, "next") == ["next"]


def test_least_used_pools_give_way(functions: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MAX_POOLS", 1)
    first = shared(functions.load)
    (pid,) = run(first, "pid")
    shared(functions.load, 2)
    assert gone(pid)
    assert run(first, 1) == [1]  # a task that still holds it goes on
    first.close()


def test_no_process_outlives_its_parent(functions: ModuleType) -> None:
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(str(functions.__file__))!r})\n"
        "import os, signal, kit_test_scorers\n"
        "from dlmrl_kit.scoring.pool import shared\n"
        "pool = shared(kit_test_scorers.load)\n"
        "print(*pool.run(['pid'], 20), flush=True)\n"
        "if len(sys.argv) > 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.fork() == 0:\n"
        "    print(*shared(kit_test_scorers.load).run(['pid'], 20), flush=True)\n"
        "    sys.exit()\n"
        "os.wait(); print(*pool.run(['pid'], 20))\n"
    )
    for arguments in ([], ["kill"]):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True, timeout=60
        )
        pids = [int(word) for word in done.stdout.split()]
        assert done.stderr == ""
        assert done.returncode == (-signal.SIGKILL if arguments else 0)
        if not arguments:  # the fork has a worker of its own
            assert len(pids) == 3
            assert pids[0] == pids[2] != pids[1]
        assert all(map(gone, pids))


@pytest.mark.thorough
@pytest.mark.parametrize("written", ["pickle", "text", "long", "half"])
def test_a_scorer_that_writes_replies_itself_runs_nothing_in_the_parent(functions: ModuleType, written: str) -> None:
    pool = shared(functions.load)
    (result,) = pool.run([f"write {written}"], 2 if written == "half" else 20)
    assert isinstance(result, Failed)
    assert result.kind == ("timeout" if written == "half" else "crash")
    assert pool.run([1], 20) == [1]
