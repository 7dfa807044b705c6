"""The files with a checkpoint's weights: which they are, and whether they are whole."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.finite import require_finite
from dlmrl_kit.policies.model_files import AGAIN, read_bytes, read_json

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Names of files with all weights, in the order in which transformers takes them; ``.index.json`` lists pieces."""

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")


def weight_files(folder: Path) -> list[Path]:
    """Returns the files with the weights of a checkpoint folder, in the order in which they are read.

    Raises:
        UserError: there are none, an index cannot be read or lists files that are not there, or pieces lie in the
            folder which it does not list.
    """
    for name in WHOLE:
        stem, _, ending = name.partition(".")
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            files = [folder / name]
        elif index.is_file():
            files = _listed(index)
        else:
            continue
        pieces = sorted(set(folder.glob(f"{stem}-*-of-*.{ending}")) - set(files))
        if pieces:
            listing = name if files == [folder / name] else index.name
            raise UserError(
                f"{pieces[0]} would be left out, as {listing} is what counts: remove the files that are not meant"
            )
        return files
    raise UserError(f"{folder} holds no weights ({' or '.join(WHOLE)}, or an index of pieces): copy them there, too")


def _listed(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} has no weight_map, which says where each tensor is: {AGAIN}")
    files = [index.parent / name for name in sorted(set(places.values()))]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, which {index.name} lists: copy or download it, too")
    return files


def check_weights(folder: Path) -> None:
    """Refuses a checkpoint folder whose files of weights are not whole; reads only their headers.

    Raises:
        UserError: as ``weight_files`` and ``tensor_names``, a tensor is in two files, or one of an expert is missing.
    """
    home: dict[str, Path] = {}
    for file in weight_files(folder):
        for name in tensor_names(file):
            if name in home:
                raise UserError(
                    f"the tensor {name} is in {home[name]} and in {file}: remove the file that is not meant"
                )
            home[name] = file
    for name in sorted(_expected_of_experts(home) - home.keys()):
        raise UserError(f"the tensor {name} is missing in {folder}: {AGAIN}")


def _expected_of_experts(names: Iterable[str]) -> set[str]:
    """Returns the tensors that a mixture of experts must have, from those that it has: the same of every expert.

    transformers joins these tensors as it reads them, and does not say which one it lacks.
    """
    parts = [match for name in names if (match := _EXPERT.fullmatch(name))]
    numbers: dict[str, int] = {}
    for match in parts:
        numbers[match[1]] = max(numbers.get(match[1], 0), int(match[2]))
    kinds = {(match[1], match[3]) for match in parts}
    return {f"{layer}.{number}.{kind}" for layer, kind in kinds for number in range(numbers[layer] + 1)}


def require_finite_files(folder: Path) -> None:
    """Reads the files of a checkpoint folder's weights, and refuses NaN and infinite values by tensor and file.

    Files of other formats than safetensors are left out.

    Raises:
        NotFiniteError: there are some.
    """
    from safetensors import safe_open

    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            names = tensor_names(file)
            with safe_open(file, "pt") as opened:
                require_finite(((name, opened.get_tensor(name)) for name in names), str(file))


def router_precisions(folder: str) -> dict[str, torch.dtype]:
    """Returns the precision in the files of what the routers of a mixture of experts hold, by name.

    Files of other formats than safetensors are left out. Only headers are read.

    Raises:
        UserError: as ``weight_files`` and ``tensor_names``.
    """
    from safetensors import safe_open

    found: dict[str, torch.dtype] = {}
    for file in weight_files(Path(folder)):
        if names := [name for name in tensor_names(file) if ".mlp.gate." in name]:
            with safe_open(file, "pt") as opened:
                found |= {name: _DTYPES[opened.get_slice(name).get_dtype()] for name in names}
    return found


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def tensor_names(file: Path) -> list[str]:
    """Returns the names of the tensors in a file of safetensors, none for other formats.

    Raises:
        UserError: the file cannot be read, is empty, a Git LFS pointer, cut off or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    start = read_bytes(file, 64)
    if not start:
        raise UserError(f"{file} is empty: {AGAIN}")
    if file.suffix != ".safetensors":
        if not zipfile.is_zipfile(file) and not start.startswith(b"\x80"):  # torch's format, and its format before 1.6
            raise UserError(f"{file} is cut off, damaged or no file of torch: {AGAIN}")
        return []
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is cut off, damaged or no safetensors file ({error}): {AGAIN}") from error
