"""Whose fault NaN and infinite numbers are, once a loss or gradient is not finite; until then nobody looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.stages import Stage
from dlmrl_kit.core.blame import is_foreign, named
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.dependencies import Dependent
from dlmrl_kit.core.errors import ComponentError
from dlmrl_kit.core.finite import all_finite
from dlmrl_kit.core.keys import SELECTED_WEIGHT, STEP_VALID, Key


def blame_stages(stages: Iterable[Stage], batch: TensorDictBase) -> None:
    """Refuses what a plugin's component wrote of finite numbers that is not finite.

    Args:
        stages: that ran before the update, without the sampler, whose numbers are the policy's.
        batch: with what they wrote.

    Raises:
        ComponentError: names the component and the key.
    """
    for stage in stages:
        written = {key: batch.get(key, None) for key in stage.writes}
        _blame(stage.component, batch, stage.reads, {key: v for key, v in written.items() if v is not None})


def blame_term(term: Component, batch: TensorDictBase, found: Mapping[Key, Tensor]) -> None:
    """Refuses a term of a plugin that made something not finite of finite numbers; raises as ``blame_stages``.

    Args:
        term: the loss or a regulariser.
        batch: what it read.
        found: what it returned.
    """
    _blame(term, batch, term.in_keys, found)


def _blame(component: Component, batch: TensorDictBase, reads: Iterable[Key], found: Mapping[Key, Tensor]) -> None:
    # A component may leave a part of its work to another one: a normaliser, a schedule, a baseline.
    parts = [component, *(part for part in vars(component).values() if isinstance(part, Dependent))]
    foreign = [type(part) for part in parts if is_foreign(type(part))]
    odd = [key for key, value in found.items() if not all_finite(_used(key, value, batch))]
    if not foreign or not odd:
        return
    read = {key: value for key in reads if isinstance(value := batch.get(key, None), Tensor)}
    if all(all_finite(_used(key, value, batch)) for key, value in read.items()):
        raise ComponentError(
            f"{' or '.join(named(cls) for cls in foreign)}: {odd[0]!r} has NaN or infinite values, although what "
            f"{type(component).__name__} reads has none"
        )


def _used(key: Key, value: Tensor, batch: TensorDictBase) -> Tensor:
    """Returns the entries that count; what is at segments of weight 0 and at steps that did not happen may be any."""
    if value.dim() < 2 or key in (SELECTED_WEIGHT, STEP_VALID):
        return value
    mask = {"selected": SELECTED_WEIGHT, "step": STEP_VALID}.get(key[0])
    used = batch.get(mask, None) if mask is not None else None
    return value if used is None or used.shape != value.shape[:2] else value[used != 0]
