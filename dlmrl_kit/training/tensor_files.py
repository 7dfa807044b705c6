"""Tensors of a checkpoint in files: one safetensors file, or, of sharded tensors, a folder with a part of each process.

``torch.distributed.checkpoint`` writes and reads the parts, as safetensors, too: any number of processes can read what
any other number wrote, sharded or whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from dlmrl_kit.core.errors import FileError
from dlmrl_kit.core.processes import Processes

SUFFIX = ".safetensors"
Like = Callable[[str, torch.Size], Tensor | None]
"""Returns the parameter like which a tensor of this name and shape is to be cut; None: it is to be whole."""


def write_whole(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors to one file, ``<name>.safetensors``."""
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, folder / f"{name}{SUFFIX}")


def write_parts(folder: Path, name: str, tensors: Mapping[str, Tensor], processes: Processes) -> None:
    """Writes the parts of sharded tensors, and whole tensors once, to the folder ``name``; all processes call it.

    Raises:
        FileError: a process cannot write.
    """
    writer = HuggingFaceStorageWriter(str(folder / name), save_distributed=True)
    try:
        save({**tensors}, storage_writer=writer, process_group=processes.group)
    except CheckpointException as error:
        raise FileError(f"cannot write {folder / name}: {_reason(error)}") from error


def read(folder: Path, name: str, like: Like) -> dict[str, Tensor]:
    """Reads tensors that ``write_whole`` or ``write_parts`` wrote, as they are cut now.

    Raises:
        OSError: they cannot be read.
    """
    if (folder / name).is_dir():
        return _read_parts(folder / name, like)
    try:
        found = load_file(folder / f"{name}{SUFFIX}")
    except SafetensorError as error:
        raise OSError(str(error)) from error
    return {key: _cut(value, like(key, value.shape)) for key, value in found.items()}


def _read_parts(folder: Path, like: Like) -> dict[str, Tensor]:
    reader = HuggingFaceStorageReader(str(folder))
    try:
        sizes = reader.read_metadata().state_dict_metadata
        found: dict[str, Tensor] = {}
        for key, entry in sizes.items():
            assert isinstance(entry, TensorStorageMetadata)
            whole = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
            target = like(key, entry.size)
            if isinstance(target, DTensor) and target.shape == entry.size:
                found[key] = torch.empty_like(target, dtype=whole.dtype)
            else:
                found[key] = torch.empty_like(whole, device="cpu")
        # What a process reads depends on its own tensors alone, so that no process needs to plan for others.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load(found, storage_reader=reader, no_dist=True)
    except (CheckpointException, SafetensorError, ValueError, KeyError) as error:
        raise OSError(_reason(error)) from error
    return found


def _cut(whole: Tensor, like: Tensor | None) -> Tensor:
    """Returns the part of a tensor that this process has of one like it."""
    if not isinstance(like, DTensor) or like.shape != whole.shape:
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[-300:] or type(error).__name__
