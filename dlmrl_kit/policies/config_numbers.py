"""Numbers in ``config.json`` with which no model computes anything: refused by name before a model is built of them.

transformers takes most of them, and what comes out is NaN, or an error of torch far from its cause.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.validate import clipped

_LARGEST = 2**31
"""More than any size of a model."""

_DEEPEST = 10_000
"""More layers than any model has; transformers builds them one by one."""

_WHOLE = re.compile(
    r"(num|n)_(hidden_layers|layers|heads|attention_heads|(global_)?(key_value|kv)_heads|experts|experts_per_tok)"
    r"|(n_routed_experts|n_group|topk_group|d_model|(vocab|embedding|(mlp_)?hidden|block|bd)_size)"
    r"|((moe_|expert_|dense_)?intermediate_size)"
    r"|((global_)?head_dim|(original_)?max_position_embeddings|max_sequence_length|canvas_length|local_attention|decoder_sparse_step|dim|hidden_dim)"
    r"|(sliding_window|top_k_experts)"
)
"""Counts and sizes of which there is at least one."""

_ALSO_NONE = re.compile(r"(num|n)_\w+|\w+_(size|length|layers|num_buckets)")
"""Other counts and sizes, which may be 0."""

_RANGES: dict[re.Pattern[str], tuple[Callable[[float], bool], str]] = {
    re.compile(r"\w*_eps|\w*epsilon"): (lambda value: 0 < value < 1, "a number between 0 and 1"),
    re.compile(r"\w*rope_theta"): (lambda value: value >= 1, "a number of at least 1"),
    re.compile(r"\w*scaling_factor|\w*softcapping|query_pre_attn_scalar|factor|mlp_ratio"): (
        lambda value: value > 0,
        "a positive number",
    ),
    re.compile(r"\w*dropout(_prob)?|partial_rotary_factor"): (lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    re.compile(r"initializer_range|init_std"): (lambda value: value >= 0, "a number of at least 0"),
}
"""Other numbers by their names: what they must be."""

_DIVIDES = (
    ("num_attention_heads", "num_key_value_heads"),
    ("n_heads", "n_kv_heads"),
    ("num_experts", "n_group"),
)
"""Settings, the first of which is a multiple of the second."""

_WIDTHS = (("hidden_size", "num_attention_heads"), ("d_model", "n_heads"))
"""Settings, the first of which is a multiple of the second where heads have no size of their own."""

_AT_MOST = (
    ("num_experts_per_tok", "num_experts"),
    ("num_experts_per_tok", "n_routed_experts"),
    ("topk_group", "n_group"),
    ("top_k_experts", "num_experts"),
)
"""Settings, the first of which is at most the second."""


def check_numbers(where: str, config: Mapping[str, Any]) -> None:
    """Checks the numbers of a configuration, and of its parts.

    Args:
        where: the file, for the message.
        config: its content. Other settings than numbers, and names that no family has, are left alone.

    Raises:
        UserError: names the file, the setting, and what it must be.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_numbers(f"{where}: {name}", value)
        elif problem := _problem(name, value):
            raise UserError(f"{where}: {name} must be {problem}, got {clipped(repr(value))}")
    for name, problem in _contradictions(config):
        raise UserError(f"{where}: {name} = {config[name]} {problem}")


def _problem(name: str, value: object) -> str:
    """Says what a number must be; "" if it is, or if there is none."""
    if value is None:
        return ""
    counts = _WHOLE.fullmatch(name) is not None
    if counts or (_is_number(value) and _ALSO_NONE.fullmatch(name)):
        least, most = int(counts), _DEEPEST if name.endswith("layers") else _LARGEST
        return "" if type(value) is int and least <= value <= most else f"a whole number of {least} to {most}"
    for pattern, (fits, wanted) in _RANGES.items():
        if pattern.fullmatch(name):
            return "" if _is_number(value) and fits(value) else wanted
    return ""


def _contradictions(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields settings that do not go with others, and why."""
    widths = _WIDTHS if config.get("head_dim") is None else ()
    for whole, part in (*_DIVIDES, *widths):
        if config.get(whole) and config.get(part) and config[whole] % config[part]:
            yield whole, f"is no multiple of {part} = {config[part]}"
    for less, more in _AT_MOST:
        if config.get(less) and config.get(more) and config[less] > config[more]:
            yield less, f"is more than {more} = {config[more]}"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
