"""Transformer blocks compiled by ``torch.compile``, one by one and in place: names, weights and checkpoints stay.

Blocks of one class share what is compiled. It is compiled again for what changes the computation: with, without and
with a merged adapter; with gradients, without, in inference mode; with or without padding; a batch of one. Not for
other batch sizes and lengths.

Modes of ``torch.compile`` with CUDA graphs are not for blocks: without gradients, the graph of a block overwrites the
output of the one before, which it reads (pytorch issue 152887, open in torch 2.13).
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

BACKEND = "inductor"
"""What turns graphs into code."""

STATES = 128
"""How often blocks may be compiled: 36 combinations of the above for a kind of block; torch's own limit is 8."""


def compile_blocks(policy: TransformersPolicy, mode: str) -> None:
    """Compiles the transformer blocks of a policy and of its frozen reference, each when it is first used.

    The block that computes the asked positions only (see ``pruning``), forwards with cached keys, embeddings and head
    run as before.

    Args:
        policy: on its device, with its adapter and reference.
        mode: of ``torch.compile``, without CUDA graphs.

    Raises:
        UserError: no blocks, a model whose blocks would be compiled each for itself, or no compiler on this machine.
    """
    from dlmrl_kit.policies.adapter import blocks

    check_compilable(policy)
    models = [policy.model, *([] if policy.frozen is None else [policy.frozen])]
    found = [block for model in models for block in blocks(model).values()]
    check_compiler(policy.device)
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, STATES)
    for block in found:
        block.compile(dynamic=True, mode=mode, backend=BACKEND)
    policy.compiled = True


def check_compilable(policy: TransformersPolicy) -> None:
    """Refuses policies whose blocks cannot share compiled code.

    Raises:
        UserError: such a policy.
    """
    from dlmrl_kit.policies.families.diffusion_gemma import DiffusionGemmaPolicy

    if isinstance(policy, DiffusionGemmaPolicy):
        raise UserError(
            "Trainer.compile is not for DiffusionGemma: its layers look up cached keys by their number, so that each "
            "would be compiled for itself, dozens of times; set it to None"
        )
    if getattr(policy.model.config, "_attn_implementation", None) == "flex_attention":
        raise UserError(
            "Trainer.compile is not for attention = 'flex_attention', which is compiled by itself; take 'sdpa', or set "
            "it to None"
        )


def check_compiler(device: torch.device) -> None:
    """Compiles a sum.

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
