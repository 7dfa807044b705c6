"""The dataflow check: who writes what is read, in which order components run, and which on-demand keys are needed.

Runs when an ``Algorithm`` is built, before anything expensive: a recipe in which a component reads a key that none
before it writes is refused, with the components that would write it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from dlmrl_kit.advantages.selected import SelectedAdvantage
from dlmrl_kit.algorithm.rewards import FinalReward, Reward, SelectedReward, StepReward
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.keys import (
    EXAMPLE,
    GROUP,
    ITERATION,
    PROGRESS,
    PROMPT_IDS,
    PROMPT_MASK,
    REWARD,
    SEED,
    SELECTED_DISTRIBUTION,
    SELECTED_END,
    SELECTED_OLD_VALUE,
    SELECTED_REWARD,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_ADVANTAGE,
    STEP_GREEDY_IDS,
    STEP_LOG_PROB,
    STEP_REWARD,
)
from dlmrl_kit.filters.base import Filter
from dlmrl_kit.samplers.one_step import RECORDED_ALWAYS
from dlmrl_kit.selectors.base import is_nested
from dlmrl_kit.values.base import OldValue

if TYPE_CHECKING:
    from tensordict import TensorDictBase
    from torch import Tensor

    from dlmrl_kit.algorithm.algorithm import Algorithm
    from dlmrl_kit.core.keys import Key

PROMPT_KEYS: tuple[Key, ...] = (PROMPT_IDS, PROMPT_MASK, GROUP, EXAMPLE, SEED, PROGRESS)
"""Keys of a batch of prompts, before the sampler runs."""


LIVE_KEYS: frozenset[Key] = frozenset({SELECTED_DISTRIBUTION})
"""Likelihood keys too large to keep: computed inside a micro-batch, never stored; they have no ``old_`` twin."""


@dataclass(frozen=True)
class Plan:
    """What to run, in order.

    ``rollout``: components that complete a trajectory (sampler, rewards, selector, advantage).
    ``old``: old key -> the sampler's key that recorded it, or None where the likelihood must be run before the update.
    ``reference``: likelihood keys wanted under the reference policy, computed once per rollout.
    ``live_reference``: the same, computed inside each micro-batch.
    ``late``: components of the rollout that wait for rewards, or for others that do; the rest may run before them.
    ``ahead``: reward stages among them, whose completions are known without any reward.
    ``may_choose``: for ``Sampler.may_choose`` while this plan's rollouts are sampled.
    ``likelihood_early``: whether old and reference log-probabilities wait for no reward, while something else does.
    """

    rollout: tuple[Any, ...]
    old: dict[Key, Key | None] = field(default_factory=dict)
    reference: tuple[Key, ...] = ()
    live_reference: tuple[Key, ...] = ()
    late: tuple[Any, ...] = ()
    ahead: tuple[Any, ...] = ()
    may_choose: Callable[[TensorDictBase], Tensor] | None = None
    likelihood_early: bool = False

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen reference policy is used at all."""
        return bool(self.reference or self.live_reference)


def plan(algorithm: Algorithm) -> Plan:
    """Orders the components of an algorithm and asks each for the on-demand keys that others read.

    Raises:
        RecipeError: a key that is read and never written, or written twice; groups that are not the sampler's.
    """
    _check_groups(algorithm)
    _check_correction(algorithm)
    terms = [algorithm.loss, *algorithm.regularisers]
    likelihood = algorithm.likelihood
    wanted = {key for term in terms for key in term.in_keys}
    wanted_from_likelihood = {plain_key(key) for key in wanted} & set(_can_write(likelihood))
    likelihood.ask_for([key for key in likelihood.optional_keys if key in wanted_from_likelihood])

    old = {
        key: _recorded(algorithm, plain_key(key))
        for key in sorted(wanted, key=str)
        if _prefixed(key, "old_") and plain_key(key) in wanted_from_likelihood - LIVE_KEYS
    }
    reference = [
        plain_key(k) for k in sorted(wanted, key=str) if _prefixed(k, "ref_") and plain_key(k) in wanted_from_likelihood
    ]
    recorded = {source for source in old.values() if source is not None}

    rollout = _rollout_components(algorithm)
    estimators = [likelihood, *algorithm.values]
    _ask_rollout(rollout, wanted | recorded | {key for part in estimators for key in part.in_keys})
    ordered, available = _order(rollout)
    available.add(ITERATION)
    for source in sorted(recorded, key=str):
        _require(likelihood, [source], available, ordered)
    for part in estimators:
        _require(part, part.in_keys, available, ordered)
        _add(part, available)
    available |= set(old) | {twin_key(k, "ref_") for k in reference}
    for term in terms:
        _require(term, term.in_keys, available, [*ordered, *estimators])
    late, ahead, needs_reward = _late(ordered)
    return Plan(
        late=late,
        ahead=ahead,
        may_choose=_may_choose(algorithm.selector, ordered),
        likelihood_early=bool(late) and not needs_reward({*likelihood.in_keys, SELECTED_STEP, SELECTED_WEIGHT}),
        rollout=tuple(ordered),
        old=old,
        reference=tuple(k for k in reference if k not in LIVE_KEYS),
        live_reference=tuple(k for k in reference if k in LIVE_KEYS),
    )


def _check_groups(algorithm: Algorithm) -> None:
    """Refuses a trainer whose groups, or pieces of a rollout, are not those that the sampler makes together."""
    size, trainer = getattr(algorithm.sampler, "group_size", None), algorithm.trainer
    if size is None or trainer is None:
        return
    name = _label(algorithm.sampler)
    if trainer.group_size != size:
        raise RecipeError(
            f"{name} makes {size} samples of each prompt together, but Trainer.group_size is {trainer.group_size}; set "
            f"Trainer.group_size = {size}"
        )
    if trainer.rollout_batch_size is not None and trainer.rollout_batch_size % size:
        raise RecipeError(
            f"{name} makes {size} samples of each prompt together, but Trainer.rollout_batch_size = "
            f"{trainer.rollout_batch_size} would cut them apart; make it a multiple of {size}"
        )


def _check_correction(algorithm: Algorithm) -> None:
    """Refuses a correction of samples without log-probability, or of single steps where slots stand for several."""
    correction = algorithm.correction
    if correction is None:
        return
    name = _label(correction)
    if STEP_LOG_PROB not in algorithm.sampler.written_keys():
        raise RecipeError(f"{name} corrects what was sampled from the policy; {_label(algorithm.sampler)} is not")
    if correction.single_steps and SELECTED_END in algorithm.likelihood.in_keys:
        raise RecipeError(
            f"{name} weighs single denoising steps, but {_label(algorithm.likelihood)} scores several as one; take "
            "TrajectoryImportance (as many exact forwards as steps), Uncorrected (biased), or no cache"
        )


def _recorded(algorithm: Algorithm, key: Key) -> Key | None:
    """The sampler's key that holds what the likelihood writes as ``key``; None: it is computed again."""
    if algorithm.correction is not None:  # what was recorded is not the policy's
        return None
    source = algorithm.likelihood.recorded.get(key)
    if source is not None and source[0] == "token" and not getattr(algorithm.sampler, "records_tokens", True):
        return None
    return source  # type: ignore[no-any-return]


def _rollout_components(algorithm: Algorithm) -> list[Any]:
    scored = [] if REWARD in algorithm.sampler.out_keys else [FinalReward()]  # offline data knows what is better
    parts: list[Any] = [algorithm.sampler, *scored, *algorithm.filters, algorithm.selector, algorithm.advantage]
    reads = {key for part in parts for key in part.in_keys}
    if STEP_REWARD in reads:
        parts.insert(parts.index(algorithm.selector), StepReward())
    if SELECTED_REWARD in reads:
        parts.insert(-1, SelectedReward())
    if SELECTED_OLD_VALUE in reads:
        parts[-1:-1] = [OldValue(value) for value in algorithm.values]
    if STEP_ADVANTAGE in algorithm.advantage.out_keys:
        parts.append(SelectedAdvantage())
    return parts


def _ask_rollout(parts: list[Any], wanted: set[Key]) -> None:
    """Asks for optional keys until nothing changes: a component that was asked for more may read more itself."""
    always = {key for part in parts for key in part.out_keys}
    while True:
        reads = wanted | {key for part in parts for key in part.in_keys}
        before = [part.asked for part in parts]
        for part in parts:
            part.ask_for([key for key in part.optional_keys if key in reads - always])
        if before == [part.asked for part in parts]:
            return


def _order(parts: list[Any]) -> tuple[list[Any], set[Key]]:
    """Parts in an order in which each reads only what was written before; the sampler's place is first."""
    pending, available = list(parts), set(PROMPT_KEYS)
    ordered: list[Any] = []
    while pending:
        ready = next((part for part in pending if set(part.in_keys) <= available), pending[0])
        _require(ready, ready.in_keys, available, ordered)
        _add(ready, available)
        ordered.append(ready)
        pending.remove(ready)
    return ordered, available


def _may_choose(selector: Any, ordered: list[Any]) -> Callable[[TensorDictBase], Tensor] | None:
    """``Sampler.may_choose``: which steps of a rollout under way may need one-step completions; None: all of them."""
    chosen_only = all(isinstance(part, SelectedReward) for part in ordered if STEP_GREEDY_IDS in part.in_keys)
    known = is_nested(selector) and {*selector.in_keys} <= {*RECORDED_ALWAYS}
    return partial(selector.kept, generator=None) if chosen_only and known else None


def _late(ordered: list[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...], Callable[[set[Key]], bool]]:
    """``Plan.late`` and ``Plan.ahead``, and whether some keys are there only when rewards are.

    Behind a filter everything is late: it runs on the samples that are kept.
    """
    late: list[Any] = []
    ahead: list[Any] = []
    awaited: set[Key] = set()
    filtered = False
    for part in ordered[1:]:
        reads_late = bool(awaited & {*part.in_keys})
        if isinstance(part, Reward) and not reads_late and not filtered:
            ahead.append(part)
        filtered = filtered or isinstance(part, Filter)
        if reads_late or filtered or {"score", "restart"} & {*part.requires}:
            late.append(part)
            awaited |= {*part.written_keys()}
    return tuple(late), tuple(ahead), lambda keys: filtered or bool(awaited & keys)


def _add(writer: Any, available: set[Key]) -> None:
    """Adds what a component writes to the keys there are.

    Raises:
        RecipeError: it writes a key that is there already.
    """
    written = set(writer.written_keys())
    if written & available:
        twice = _names(sorted(written & available, key=str))
        raise RecipeError(f"{_label(writer)} writes {twice}, which a component before it has already written")
    available |= written


def _require(reader: Any, keys: Any, available: set[Key], before: list[Any]) -> None:
    missing = [key for key in keys if key not in available]
    if not missing:
        return
    key = missing[0]
    if _prefixed(key, "old_") and plain_key(key) in LIVE_KEYS:
        raise RecipeError(
            f"{_label(reader)} reads {_names([key])}, which is never kept: whole distributions are too large to store "
            f"with a trajectory; there is ('selected', 'ref_{plain_key(key)[1]}')"
        )
    writers = _writers(plain_key(key))
    hint = f"components that write it: {', '.join(writers)}" if writers else "no registered component writes it"
    raise RecipeError(
        f"{_label(reader)} reads {_names([key])}, which no component before it writes "
        f"(before it run {', '.join(_label(part) for part in before) or 'none'}); {hint}"
    )


def _writers(key: Key) -> list[str]:
    from dlmrl_kit.core.registry import components

    found = []
    for component in components():
        keys = component.keys()
        if keys is not None and key in (*keys.writes, *keys.on_demand):
            found.append(f"{component.kind} {component.name}")
    return found


def _label(part: Any) -> str:
    return type(part).__name__


def _names(keys: Any) -> str:
    return ", ".join(repr(key) for key in keys)


def _can_write(part: Any) -> tuple[Key, ...]:
    return (*part.out_keys, *part.optional_keys)


def _prefixed(key: Key, prefix: str) -> bool:
    return isinstance(key, tuple) and key[0] == "selected" and key[-1].startswith(prefix)


def plain_key(key: Key) -> Key:
    """``("selected", "old_x")`` or ``("selected", "ref_x")`` -> ``("selected", "x")``; other keys unchanged."""
    for prefix in ("old_", "ref_"):
        if _prefixed(key, prefix):
            return (key[0], key[1].removeprefix(prefix))
    return key


def twin_key(key: Key, prefix: str) -> Key:
    """``("selected", "x")`` -> ``("selected", "ref_x")`` for the prefix ``"ref_"``."""
    return (key[0], prefix + key[1])
