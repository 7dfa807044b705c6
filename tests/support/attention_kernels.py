"""Which kernel of torch's scaled dot product attention CUDA would take, by rules read in its ``sdp_utils.cpp``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dlmrl_kit.policies import last_layer


@dataclass(frozen=True)
class Call:
    """A call of ``scaled_dot_product_attention``."""

    dtype: torch.dtype
    head_dims: tuple[int, int, int]
    heads: tuple[int, int]
    masked: bool
    grouped: bool
    causal: bool = False
    square: bool = True

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor, attn_mask: Any, is_causal: Any, enable_gqa: Any) -> Call:
        """The call with these arguments."""
        dims = (query.shape[-1], key.shape[-1], value.shape[-1])
        heads, square = (query.shape[1], key.shape[1]), query.shape[2] == key.shape[2]
        return cls(query.dtype, dims, heads, attn_mask is not None, bool(enable_gqa), bool(is_causal), square)


def kernel(call: Call) -> str:
    """``flash``, ``efficient`` or ``math``, the first that admits the call on an A100 or H100.

    - Flash: half precision, no mask, one head size up to 256; a causal mask for as many queries as keys; grouped heads.
    - Memory-efficient: float32 and half precision, any mask. Grouped heads are admitted by the newest sources only, and
      transformers expects that they are not: here they are not.
    - Math: everything. It keeps the scores of all pairs in memory.

    cuDNN's kernel, which some versions prefer, is left out: it admits nothing that flash and efficient do not.
    """
    half, uniform = call.dtype in (torch.float16, torch.bfloat16), len({*call.head_dims}) == 1
    if half and not call.masked and uniform and call.head_dims[0] <= 256 and (call.square or not call.causal):
        return "flash"
    fits = call.heads[0] == call.heads[1] and not call.grouped and call.head_dims[0] == call.head_dims[1]
    return "efficient" if fits and (half or call.dtype == torch.float32) else "math"


@contextlib.contextmanager
def attention_calls() -> Iterator[list[Call]]:
    """Within the context, the list grows by each call, of the kit's own and of transformers'."""
    found: list[Call] = []
    usual = functional.scaled_dot_product_attention

    def noted(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, **given: Any
    ) -> Tensor:
        found.append(Call.of(query, key, value, attn_mask, given.get("is_causal"), given.get("enable_gqa")))
        return usual(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", noted)
        patch.setattr(last_layer, "scaled_dot_product_attention", noted)
        yield found
