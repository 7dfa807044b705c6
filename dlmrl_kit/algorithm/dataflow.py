"""Plans an update from the keys that its components read and write, and refuses components that do not fit together.

This happens before anything expensive. ``make_plan`` finds an order in which each component reads only what others have
written before, and the on-demand keys that each has to write. If a key is read that no component writes, the error
names the registered components that would. Components are not changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dlmrl_kit.advantages.selected import SelectedAdvantage
from dlmrl_kit.algorithm.algorithm import Algorithm, GradientEstimator
from dlmrl_kit.algorithm.bases import check_kinds
from dlmrl_kit.algorithm.stages import Stage, check_places, placed
from dlmrl_kit.caches.adaptive_refresh import AdaptiveRefresh
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
    Key,
)
from dlmrl_kit.core.registry import registered
from dlmrl_kit.filters.base import Filter
from dlmrl_kit.rollout.rewards import FinalReward, Reward, SelectedReward, StepReward
from dlmrl_kit.samplers.base import MayChoose
from dlmrl_kit.samplers.one_step import CHOSEN_BY
from dlmrl_kit.samplers.recorder import FOLLOWING
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.values.base import OldValue

PROMPT_KEYS: tuple[Key, ...] = (PROMPT_IDS, PROMPT_MASK, GROUP, EXAMPLE, SEED, PROGRESS)
"""The keys that a batch of prompts has before the sampler runs."""

LIVE_KEYS: frozenset[Key] = frozenset({SELECTED_DISTRIBUTION})
"""Likelihood keys that are too large to store with a trajectory. They are computed inside a micro-batch, those of the
reference policy too, and have no ``old_`` twin."""


@dataclass(frozen=True)
class Plan:
    """The stages of an update in the order in which they run, and where old and reference log-probabilities come from.

    Attributes:
        sampler: makes the trajectories.
        before_rewards: the stages that need no reward.
        with_rewards: the stages that need a reward, directly or through other stages.
        announced: the reward components whose completions are known without any reward, so that they can be scored in
            the background.
        likelihood, values: run under the current policy in each micro-batch.
        old: by ``old_`` key, the sampler's key under which its values are recorded; None if the likelihood computes
            them before the update.
        computed_old: by likelihood key, the ``old_`` key, for those that the likelihood computes.
        scored_again: with a correction, the sampler's keys whose values under the policy it computes, all in the same
            forwards: its own and those of ``old``. In an update that was sampled from the policy itself they are what
            was recorded. Without a correction there are none.
        reference: by likelihood key, the ``ref_`` key, for what is computed once per rollout.
        live_reference: by likelihood key, the ``ref_`` key, for what is computed inside each micro-batch.
        may_choose: tells the sampler which steps may still be selected, see ``Sampler.forward``; None: all.
        likelihood_early: whether old and reference log-probabilities can be computed while rewards are awaited.
    """

    sampler: Stage
    before_rewards: tuple[Stage, ...]
    with_rewards: tuple[Stage, ...]
    announced: tuple[Reward, ...]
    likelihood: Stage
    values: tuple[Stage, ...]
    old: dict[Key, Key | None]
    computed_old: dict[Key, Key]
    scored_again: tuple[Key, ...]
    reference: dict[Key, Key]
    live_reference: dict[Key, Key]
    may_choose: MayChoose | None
    likelihood_early: bool

    @property
    def rollout(self) -> tuple[Stage, ...]:
        """The stages that complete a trajectory, the sampler first."""
        return (self.sampler, *self.before_rewards, *self.with_rewards)

    @property
    def needs_reference(self) -> bool:
        """Whether any component reads log-probabilities under a frozen reference policy."""
        return bool(self.reference or self.live_reference)


def make_plan(algorithm: GradientEstimator) -> Plan:
    """Orders the components of an algorithm, and finds the on-demand keys that each has to write for others.

    Raises:
        RecipeError: a component is of another kind than its slot; a key is read but never written, or is written twice;
            a cache lacks a correction, or the correction does not fit the cache or the other components.
    """
    check_kinds(algorithm.fillings)
    _check_correction(algorithm)
    terms = [Stage("loss", algorithm.loss), *(Stage("regulariser", term) for term in algorithm.regularisers)]
    wanted = {key for term in terms for key in term.reads}
    likelihood = _asked(Stage("likelihood", algorithm.likelihood), {plain_key(key) for key in wanted})
    estimated = {plain_key(key) for key in wanted} & {*likelihood.component.out_keys, *likelihood.keys}
    old = {
        key: _recorded(algorithm, plain_key(key))
        for key in sorted(wanted, key=str)
        if is_twin(key, "old_") and plain_key(key) in estimated - LIVE_KEYS
    }
    twins = [plain_key(k) for k in sorted(wanted, key=str) if is_twin(k, "ref_") and plain_key(k) in estimated]
    sources = {source for source in old.values() if source is not None}
    correction, cache = algorithm.correction, algorithm.cache
    # With a correction, what was recorded is read in exact updates alone.
    recorded = sources if correction is None or (cache is not None and cache.may_be_exact) else set()

    values = tuple(Stage("value", value) for value in algorithm.values)
    later = wanted | recorded | {key for stage in (likelihood, *values) for key in stage.reads}
    ordered, available = _order(_ask_each(_rollout_stages(algorithm), later))
    check_places(ordered)
    available.add(ITERATION)  # ``LogProbs`` writes it, for likelihoods that draw new masks in each pass
    for source in sorted(recorded, key=str):
        _require(likelihood.name, [source], available, ordered)
    for stage in (likelihood, *values):
        _require(stage.name, stage.reads, available, ordered)
        _add(stage, available)
    available |= set(old) | {twin_key(k, "ref_") for k in twins}
    for term in terms:
        _require(term.name, term.reads, available, [*ordered, likelihood, *values])

    waiting = _Waiting(ordered[1:])
    return Plan(
        sampler=ordered[0],
        before_rewards=tuple(stage for stage in ordered[1:] if stage not in waiting.late),
        with_rewards=tuple(waiting.late),
        announced=tuple(waiting.announced),
        likelihood=likelihood,
        values=values,
        old=old,
        computed_old={plain_key(key): key for key, source in old.items() if source is None},
        scored_again=() if correction is None else tuple(sorted({STEP_LOG_PROB, *sources}, key=str)),
        reference={k: twin_key(k, "ref_") for k in twins if k not in LIVE_KEYS},
        live_reference={k: twin_key(k, "ref_") for k in twins if k in LIVE_KEYS},
        may_choose=_may_choose(algorithm.selector, ordered),
        likelihood_early=bool(waiting.late) and not waiting.awaits({*likelihood.reads, SELECTED_STEP, SELECTED_WEIGHT}),
    )


def check_groups(algorithm: Algorithm) -> None:
    """Refuses a trainer whose groups do not fit a sampler that makes the samples of a prompt together.

    Raises:
        RecipeError: the group sizes differ, or the pieces of a rollout would cut groups.
    """
    size, trainer, name = algorithm.sampler.group_size, algorithm.trainer, type(algorithm.sampler).__name__
    if size is None:
        return
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


def _check_correction(algorithm: GradientEstimator) -> None:
    """Refuses a cache without a correction, and a correction that has nothing it could weigh.

    That is one for a sampler that records no log-probability, or one of single steps where the entries of a selection
    stand for several steps. ``AdaptiveRefresh`` needs one that weighs.
    """
    correction = algorithm.correction
    if correction is None:
        if algorithm.cache is not None:
            raise RecipeError(
                f"{type(algorithm.cache).__name__} samples from another distribution than the policy: fill the slot "
                "correction with TruncatedImportance, TrajectoryImportance or Uncorrected (biased)"
            )
        return
    name = type(correction).__name__
    if isinstance(algorithm.cache, AdaptiveRefresh) and not correction.weighs:
        raise RecipeError(
            f"AdaptiveRefresh follows the effective sample size of importance weights, and all weights of {name} are "
            "1: set Algorithm.correction = @TruncatedImportance() or @TrajectoryImportance(), or Algorithm.cache = "
            "@DualCache() or @PrefixCache()"
        )
    if STEP_LOG_PROB not in algorithm.sampler.writes():
        sampler = type(algorithm.sampler).__name__
        raise RecipeError(f"{name} corrects what was sampled from the policy; {sampler} is not")
    if correction.single_steps and SELECTED_END in algorithm.likelihood.in_keys:
        raise RecipeError(
            f"{name} weighs single denoising steps, but {type(algorithm.likelihood).__name__} scores several as one; "
            "take TrajectoryImportance (as many exact forwards as steps), Uncorrected (biased), or no cache"
        )


def _recorded(algorithm: GradientEstimator, key: Key) -> Key | None:
    """Returns the sampler's key of what the likelihood writes as ``key``; None: the likelihood must compute it.

    With a correction the sampler recorded another distribution than the policy's, and the correction computes the
    policy's for the same states: all that follows from what the policy predicts there.
    """
    source = algorithm.likelihood.recorded.get(key)
    if algorithm.correction is not None and source not in FOLLOWING:
        return None
    if source is not None and source[0] == "token" and not algorithm.sampler.records_tokens:
        return None
    return source


def _rollout_stages(algorithm: GradientEstimator) -> list[Stage]:
    """Lists the stages from the sampler to the advantage in recipe order, with the reward components that are read."""
    stages = [Stage("sampler", algorithm.sampler)]
    if REWARD not in algorithm.sampler.out_keys:  # a sampler of offline data brings its own rewards
        stages.append(Stage("reward", FinalReward()))
    stages += [Stage("filter", part) for part in algorithm.filters]
    selector, advantage = Stage("selector", algorithm.selector), Stage("advantage", algorithm.advantage)
    declared = [Stage(slot, part) for slot, filling in algorithm.declared.items() for part in filling]
    reads = {key for stage in (*stages, selector, advantage, *declared) for key in stage.reads}
    if STEP_REWARD in reads:
        stages.append(Stage("reward", StepReward()))
    stages.append(selector)
    if SELECTED_REWARD in reads:
        stages.append(Stage("reward", SelectedReward()))
    if SELECTED_OLD_VALUE in reads:
        stages += [Stage("value", OldValue(value)) for value in algorithm.values]
    stages.append(advantage)
    if STEP_ADVANTAGE in algorithm.advantage.out_keys:
        stages.append(Stage("advantage", SelectedAdvantage()))
    return placed(stages, declared)


def _asked(stage: Stage, reads: Iterable[Key]) -> Stage:
    """Returns the stage asked for those of its on-demand keys that are among ``reads``."""
    return replace(stage, keys=tuple(key for key in stage.component.optional_keys if key in set(reads)))


def _ask_each(stages: list[Stage], later: set[Key]) -> list[Stage]:
    """Asks each stage for the on-demand keys that are read; repeats, as a stage that writes more may also read more."""
    always = {key for stage in stages for key in stage.component.out_keys}
    while True:
        reads = later | {key for stage in stages for key in stage.reads}
        asked = [_asked(stage, reads - always) for stage in stages]
        if asked == stages:
            return stages
        stages = asked


def _order(stages: list[Stage]) -> tuple[list[Stage], set[Key]]:
    """Orders stages so that each reads only what was written before, with the sampler first.

    Among stages that are ready the first in recipe order runs first. Also returns all keys that are there at the end.
    """
    pending, available = list(stages), set(PROMPT_KEYS)
    ordered: list[Stage] = []
    while pending:
        ready = next((stage for stage in pending if set(stage.reads) <= available), pending[0])
        _require(ready.name, ready.reads, available, ordered)
        _add(ready, available)
        ordered.append(ready)
        pending.remove(ready)
    return ordered, available


def _may_choose(selector: Selector, ordered: list[Stage]) -> MayChoose | None:
    """Returns the function by which the sampler knows which steps still need one-step completions; None: all do.

    It can be used if only selected steps need the completions, and if the selector can decide from what the sampler has
    recorded so far without changing its mind later (``Selector.nested``).
    """
    chosen_only = all(
        isinstance(stage.component, SelectedReward) for stage in ordered if STEP_GREEDY_IDS in stage.reads
    )
    known = selector.nested and {*selector.in_keys} <= {*CHOSEN_BY}
    return (lambda so_far: selector.kept(so_far)) if chosen_only and known else None


class _Waiting:
    """Sorts stages by whether they wait for rewards.

    Behind a filter every stage waits, as it runs on the samples that the filter keeps.

    Attributes:
        late: the stages that wait for a reward, or for other stages that do.
        announced: the reward components whose completions are known without any reward.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.late: list[Stage] = []
        self.announced: list[Reward] = []
        self._awaited: set[Key] = set()
        self._filtered = False
        for stage in stages:
            reads_late = bool(self._awaited & {*stage.reads})
            if isinstance(stage.component, Reward) and not reads_late and not self._filtered:
                self.announced.append(stage.component)
            self._filtered = self._filtered or isinstance(stage.component, Filter)
            if reads_late or self._filtered or {"score", "restart"} & {*stage.component.requires}:
                self.late.append(stage)
                self._awaited |= {*stage.writes}

    def awaits(self, keys: set[Key]) -> bool:
        """Returns whether some of ``keys`` are written only after rewards are known."""
        return self._filtered or bool(self._awaited & keys)


def _add(writer: Stage, available: set[Key]) -> None:
    """Adds the keys that a component writes to those that are ``available``.

    Raises:
        RecipeError: the component writes a key that another one has written.
    """
    written = set(writer.writes)
    if written & available:
        twice = _names(sorted(written & available, key=str))
        raise RecipeError(f"{writer.name} writes {twice}, which a component before it has already written")
    available |= written


def _require(reader: str, keys: Iterable[Key], available: set[Key], before: Sequence[Stage]) -> None:
    missing = [key for key in keys if key not in available]
    if not missing:
        return
    key = missing[0]
    if is_twin(key, "old_") and plain_key(key) in LIVE_KEYS:
        raise RecipeError(
            f"{reader} reads {_names([key])}, which is never kept: whole distributions are too large to store with a "
            f"trajectory; there is ('selected', 'ref_{plain_key(key)[1]}')"
        )
    writers = _writers(plain_key(key))
    hint = f"components that write it: {', '.join(writers)}" if writers else "no registered component writes it"
    raise RecipeError(
        f"{reader} reads {_names([key])}, which no component before it writes "
        f"(before it run {', '.join(stage.name for stage in before) or 'none'}); {hint}"
    )


def _writers(key: Key) -> list[str]:
    found = []
    for entry in registered():
        keys = entry.keys()
        if keys is not None and key in (*keys.writes, *keys.on_demand):
            found.append(f"{entry.kind} {entry.name}")
    return found


def _names(keys: Iterable[Key]) -> str:
    return ", ".join(repr(key) for key in keys)


def is_twin(key: Key, prefix: str) -> bool:
    """Returns whether a key holds values under another policy: the old one (``old_``) or the reference (``ref_``)."""
    return isinstance(key, tuple) and key[0] == "selected" and key[-1].startswith(prefix)


def plain_key(key: Key) -> Key:
    """Turns ``("selected", "old_x")`` and ``("selected", "ref_x")`` into ``("selected", "x")``; leaves other keys."""
    for prefix in ("old_", "ref_"):
        if is_twin(key, prefix):
            return (key[0], key[1].removeprefix(prefix))
    return key


def twin_key(key: Key, prefix: str) -> Key:
    """Turns ``("selected", "x")`` into ``("selected", "ref_x")``, for the prefix ``"ref_"``."""
    return (key[0], prefix + key[1])
