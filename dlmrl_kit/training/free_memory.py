"""How much memory of a device this process can still get, be it the machine's or that of its container."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def free_memory(device: torch.device) -> float:
    """Returns the bytes of a card that are free or kept by torch for later; on the CPU, a process's share of what is.

    The memory of the CPU is shared by the processes of a machine that ``torchrun`` has started.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    free = min(float(psutil.virtual_memory().available), free_in_cgroup(CGROUPS, OWN_CGROUPS))
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def free_in_cgroup(root: Path, own: Path) -> float:
    """Returns the bytes that the control groups of this process leave it; infinity without them or without a limit.

    What is in use is counted without cached files, which are dropped for what is new. The names of files are those of
    version 2 and of version 1 (Linux, ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/memory.rst``).

    Args:
        root: where control groups are mounted.
        own: the file that names those of this process, ``/proc/self/cgroup``.
    """
    rooms = [math.inf]
    for folder in _groups(root, own):
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        # Above ``memory.high`` a group is slowed down until it holds less.
        for limit in (
            _number(folder / "memory.max", folder / "memory.limit_in_bytes"),
            _number(folder / "memory.high"),
        ):
            if limit is not None and used is not None:
                rooms.append(limit - used + _cached_files(folder))
    return max(min(rooms), 0.0)


def _groups(root: Path, own: Path) -> Iterator[Path]:
    """Yields the folders of the groups that limit this process's memory: its own and those above it."""
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not path or (controllers and "memory" not in controllers.split(",")):
            continue
        top = root / "memory" if controllers else root
        group = top / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _number(*paths: Path) -> float | None:
    """Reads the first of these files that there is; None where there is none, or no number in it, such as ``max``."""
    for path in paths:
        if path.is_file():
            text = path.read_text().strip()
            return float(text) if text.isdecimal() else None
    return None


def _cached_files(folder: Path) -> float:
    """Returns the bytes of files in memory that were not used lately, of the group and those below it."""
    path = folder / "memory.stat"
    lines = path.read_text().splitlines() if path.is_file() else []
    found = {name: value for name, _, value in (line.partition(" ") for line in lines)}
    text = found.get("total_inactive_file", found.get("inactive_file", ""))
    return float(text) if text.isdecimal() else 0.0
