"""Jobs in the background run in one thread, in their order."""

from __future__ import annotations

import functools
import threading

import pytest
from support.watched_task import SECONDS

from dlmrl_kit.rollout.rewards import Background


def test_jobs_run_in_one_thread_in_their_order() -> None:
    jobs = Background()
    seen: list[int] = []

    def job(number: int) -> int:
        seen.append(number)
        return threading.get_ident()

    futures = [jobs.submit(functools.partial(job, number)) for number in range(20)]
    (thread,) = {future.result(SECONDS) for future in futures}
    assert seen == list(range(20))
    assert thread != threading.get_ident()
    assert jobs.close(SECONDS)


def test_what_a_job_raises_is_raised_by_its_future_and_the_others_run() -> None:
    jobs = Background()

    def fail(error: BaseException) -> None:
        raise error

    for error in (ValueError("wrong"), SystemExit(3)):
        bad, good = jobs.submit(functools.partial(fail, error)), jobs.submit(lambda: 1)
        with pytest.raises(type(error)) as raised:
            bad.result(SECONDS)
        assert raised.value is error
        assert good.result(SECONDS) == 1
    jobs.close(SECONDS)


def test_dropped_jobs_do_not_run() -> None:
    jobs, started, go = Background(), threading.Event(), threading.Event()

    def wait() -> bool:
        started.set()
        return go.wait(SECONDS)

    seen: list[int] = []
    running, waiting = jobs.submit(wait), jobs.submit(functools.partial(seen.append, 1))
    assert started.wait(SECONDS)
    jobs.drop()
    assert not jobs.close(0)
    go.set()
    assert jobs.close(SECONDS)
    assert running.result(SECONDS) is True
    assert waiting.cancelled()
    assert seen == []
