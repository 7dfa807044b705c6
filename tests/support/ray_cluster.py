"""A cluster of Ray on this machine, and actors that die at their work. Ray must be installed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def local_cluster() -> Iterator[str]:
    """Within the context Ray runs on this machine alone, and this process is connected to it; yields its address.

    It listens to this machine only and asks for no token: processes that imported Ray before could not learn it.
    """
    import ray

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        here = {"address": "local", "_node_ip_address": "127.0.0.1"}
        ray.init(**here, num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()
    signal.signal(signal.SIGTERM, before)


def losing(due: list[bool], killed: list[int]) -> type:
    """A pool of actors that kills the one that it has just given work to, once, when that is due."""
    import ray
    from ray.util import ActorPool

    class Losing(ActorPool):  # type: ignore[misc]
        def __init__(self, actors: list[Any]) -> None:
            super().__init__(actors)
            self.pid = ray.get(actors[-1].__ray_call__.remote(lambda actor: os.getpid()))

        def submit(self, call: Any, value: Any) -> None:
            super().submit(call, value)
            if due and not killed:
                killed.append(self.pid)
                os.kill(self.pid, signal.SIGKILL)

    return Losing
