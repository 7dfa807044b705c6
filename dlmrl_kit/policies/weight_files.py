"""The files with a checkpoint's weights: which they are, and whether they are whole."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.finite import require_finite
from dlmrl_kit.policies.model_files import AGAIN, foreign, read_bytes, read_json

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Names of files with all weights, in the order in which transformers takes them; ``.index.json`` lists pieces."""

_PLAIN = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")
"""Types of numbers that are what they say, as safetensors and torch call them."""

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
        UserError: as ``weight_files``, ``tensor_types`` and ``require_unquantised``, a tensor is in two files, or one
            of an expert is missing.
    """
    home: dict[str, Path] = {}
    for file in weight_files(folder):
        types = tensor_types(file)
        require_unquantised(types, file)
        for name in types:
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
            names = tensor_types(file)
            with safe_open(file, "pt") as opened:
                require_finite(((name, opened.get_tensor(name)) for name in names), str(file))


def router_precisions(folder: str) -> dict[str, torch.dtype]:
    """Returns the precision in the files of what the routers of a mixture of experts hold, by name.

    Files of other formats than safetensors are left out. Only headers are read.

    Raises:
        UserError: as ``weight_files`` and ``tensor_types``.
    """
    found: dict[str, torch.dtype] = {}
    for file in weight_files(Path(folder)):
        if file.suffix == ".safetensors":
            found |= {name: _DTYPES[kind] for name, kind in tensor_types(file).items() if ".mlp.gate." in name}
    return found


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def require_unquantised(types: Mapping[str, str], file: Path) -> None:
    """Refuses weights that are integers, or floats of 8 bits: what they stand for is said elsewhere.

    Libraries would convert them number by number, without the scales that they are to be multiplied by.

    Args:
        types: of the tensors of a file, as ``tensor_types``.
        file: for the message.

    Raises:
        UserError: names the first such tensor. Numbers of positions and of token types (``position_ids``) are none.
    """
    for name, kind in types.items():
        if kind not in _PLAIN and not name.endswith("_ids"):
            raise UserError(
                f"{file}: the tensor {name} is of type {kind}, as quantised weights are, which the kit does not read: "
                "load a checkpoint in bfloat16, float16 or float32"
            )


def tensor_types(file: Path) -> dict[str, str]:
    """Returns the types of the tensors in a file by their names, as safetensors or torch call them: F32, float32.

    Raises:
        UserError: the file cannot be read, is empty, a Git LFS pointer, cut off, or a file of neither format.
    """
    from safetensors import SafetensorError, safe_open

    start = read_bytes(file, 64)
    if not start:
        raise UserError(f"{file} is empty: {AGAIN}")
    if file.suffix != ".safetensors":
        if not zipfile.is_zipfile(file) and not start.startswith(b"\x80"):  # torch's format, and its format before 1.6
            raise UserError(f"{file} is cut off, damaged or no file of torch: {AGAIN}")
        return _types_of_torch(file)
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is cut off, damaged or no safetensors file ({error}): {AGAIN}") from error


def _types_of_torch(file: Path) -> dict[str, str]:
    with foreign(f"{file} cannot be read"):
        state = torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(state, dict):
        raise UserError(f"{file} holds no tensors by name: {AGAIN}")
    return {str(k): str(v.dtype).removeprefix("torch.") for k, v in state.items() if isinstance(v, torch.Tensor)}
