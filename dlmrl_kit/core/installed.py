"""What is installed, read once for as long as nothing is added to the Python path or removed from it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata

PathState = tuple[tuple[str, int], ...]
"""The folders of the Python path, and when something was last added to each or removed; -1 where there is none."""


def path_state() -> PathState:
    """Returns the state of the Python path: what is installed can be another only where this is another."""
    return tuple((place, _changed(place)) for place in map(os.path.abspath, sys.path))


def distributions_of(package: str) -> Sequence[str]:
    """Returns the names of the distributions that a top-level package was installed with; none if pip did not."""
    return _by_package(path_state()).get(package, ())


@functools.lru_cache(maxsize=2)
def _by_package(_: PathState) -> Mapping[str, Sequence[str]]:
    """Reads the list of files of every distribution, which takes some tenths of a second."""
    return metadata.packages_distributions()


def _changed(place: str) -> int:
    try:
        return os.stat(place).st_mtime_ns
    except OSError:
        return -1
