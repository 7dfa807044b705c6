"""Transformer blocks compiled by ``torch.compile``, one by one and in place: names, weights and checkpoints stay.

Blocks of one class share what is compiled. It is compiled again for what changes the computation: with, without and
with a merged adapter; with gradients, without, in inference mode; with or without padding; a batch of one. It is not
compiled again for other batch sizes and lengths.

Modes of ``torch.compile`` with CUDA graphs are not for blocks: without gradients, the graph of a block overwrites the
output of the one before, which it reads (pytorch issue 152887, open in torch 2.13).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dlmrl_kit.core.errors import UserError

BACKEND = "inductor"
"""What turns graphs into code."""

STATES = 128
"""How often blocks may be compiled: 36 combinations of the above for a kind of block; torch's own limit is 8."""


def compile_each(blocks: Iterable[nn.Module], mode: str) -> None:
    """Compiles transformer blocks, each when it is first used.

    Args:
        blocks: on their device, with their adapters.
        mode: of ``torch.compile``, without CUDA graphs.
    """
    config = torch._dynamo.config  # torch has no public name for this limit
    config.recompile_limit = max(config.recompile_limit, STATES)
    for block in blocks:
        block.compile(dynamic=True, mode=mode, backend=BACKEND)


def check_compiler(device: torch.device) -> None:
    """Compiles a sum, to find out whether a compiler is there before anything is trained.

    Raises:
        UserError: it did not work, with the reason.
    """
    try:
        torch.compile(_sum, backend=BACKEND)(torch.ones(8, device=device))
    except Exception as error:  # of the compiler, the backend, the operating system ...
        cause = error.__cause__ or error
        reason = str(cause).strip().split("\n")[0][:200]
        raise UserError(
            f"Trainer.compile: torch.compile does not work on {device.type} here ({type(cause).__name__}: {reason}). A "
            "CPU needs a C++ compiler (g++, clang++ or the one that CXX names), a GPU needs Triton; or set it to None"
        ) from error


def _sum(x: Tensor) -> Tensor:
    return x + x


def uncompiled(wanted: bool = True) -> contextlib.AbstractContextManager[object]:
    """Within the context, compiled blocks run as they are; nothing happens where that is not ``wanted``."""
    return torch.compiler.set_stance("force_eager") if wanted else contextlib.nullcontext()
