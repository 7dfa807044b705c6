"""Scales a recipe to the size of a small problem, and finds out whether its selector still leaves out steps there.

Each component says how it is scaled (``Component.resized``). A selector that does not, and takes 8 steps where there
are 3, would be audited as if it were AllSteps: ``kept_whole`` finds such selectors by running them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Fillings, GradientEstimator, with_declared
from dlmrl_kit.audit.on_problem import DrawnServices, OnProblem, draw_trajectories
from dlmrl_kit.audit.policies import attached
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.core.component import Resizable, Sizes, rebuilt, settings
from dlmrl_kit.core.keys import SELECTED_END, SELECTED_STEP, SELECTED_WEIGHT, STEP_VALID
from dlmrl_kit.core.signatures import constructor_of
from dlmrl_kit.filters.base import Filter
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.selectors.all_steps import AllSteps

MOST_STEPS = 1024
"""Denoising steps of the longest trajectories on which a selector is run to see whether it leaves out any."""

GROUPS = 4
"""Groups of trajectories, of each prompt, on which it is run; one where they are longer than 64 steps."""

GROUP_SIZE = 2
"""Samples of a group, where nothing else is said."""

_OF_THE_PROBLEM = frozenset({"completion_length", "tokens_per_step", "block_length"})
"""Settings of a sampler that follow from the problem, so that a report need not say how they were scaled."""


@dataclass(frozen=True)
class Scaled:
    """A setting that was scaled.

    Attributes:
        component, parameter: what was scaled.
        before: the value that was made for ``steps`` denoising steps.
        after: the value for the ``small_steps`` denoising steps of a problem.
    """

    component: str
    parameter: str
    before: object
    steps: int
    after: object
    small_steps: int


def scaled_texts(found: Iterable[Scaled]) -> list[str]:
    """Says in one line for each setting how it was scaled to several problems."""
    settings_found: dict[tuple[str, str], list[Scaled]] = {}
    for one in dict.fromkeys(found):
        settings_found.setdefault((one.component, one.parameter), []).append(one)
    return [_text(same) for same in settings_found.values()]


def _text(same: list[Scaled]) -> str:
    first = same[0]
    what = f"{first.component}.{first.parameter} = {first.before!r}"
    if all(one.after == first.after for one in same):
        return f"{what} becomes {first.after!r}"
    after = ", ".join(f"{one.after!r} for {one.small_steps}" for one in same)
    return f"{what} for {first.steps} steps becomes {after}"


def shrunk(estimator: GradientEstimator, problem: Problem) -> tuple[GradientEstimator, list[Scaled]]:
    """Scales all components of an estimator to a problem; returns the small estimator and the settings that changed.

    Raises:
        UserError: a component does not store its settings, so that it cannot be made again.
    """
    block = min(problem.block_length or problem.length, problem.length)
    before = estimator.sampler.sizes
    wanted = Sizes(problem.length, problem.length, block, problem.tokens_per_step, problem.vocab)
    sampler = estimator.sampler.resized(before, wanted)
    after = replace(sampler.sizes, vocab_size=problem.vocab)
    changes: list[Scaled] = []

    def noted(old: Resizable, new: Resizable) -> None:
        then, now = settings(old), settings(new)
        for name, value in then.items():
            if name in now and _differ(value, now[name]) and not (old is estimator.sampler and name in _OF_THE_PROBLEM):
                changes.append(Scaled(type(old).__name__, name, value, before.steps, now[name], after.steps))

    own = estimator.fillings
    small: Fillings = {
        "sampler": sampler,
        "cache": None if own["cache"] is None else own["cache"].resized(before, after),
        "filter": [part.resized(before, after) for part in own["filter"]],
        "selector": own["selector"].resized(before, after),
        "advantage": own["advantage"].resized(before, after),
        "likelihood": own["likelihood"].resized(before, after),
        "correction": None if own["correction"] is None else own["correction"].resized(before, after),
        "value": [rebuilt(part.resized(before, after)) for part in own["value"]],  # its modules fit another policy
        "loss": own["loss"].resized(before, after),
        "regulariser": [part.resized(before, after) for part in own["regulariser"]],
    }
    declared = {s: [part.resized(before, after) for part in filling] for s, filling in estimator.declared.items()}
    made = GradientEstimator(**with_declared(small, declared))
    for old, new in zip(_parts(estimator), _parts(made), strict=True):
        noted(old, new)
    return made, changes


def _parts(estimator: GradientEstimator) -> list[Resizable]:
    """Returns all that is scaled: the components that run on trajectories, then the cache and the correction."""
    beside = (estimator.cache, estimator.correction)
    return [*estimator.components, *(part for part in beside if part is not None)]


def _differ(a: object, b: object) -> bool:
    return isinstance(a, (int, float, str)) and a != b


def unscaled(estimator: GradientEstimator) -> list[str]:
    """Lists the whole numbers among the settings that ``resized`` leaves alone and ``not_sizes`` does not name.

    Such a number may count steps or positions of the recipe's trajectories, of which small problems have fewer: what it
    limits there would not be limited here.

    Returns:
        ``Component.parameter = value`` each; components within components are asked, too. A parameter that is declared
        ``int`` and not kept under its name is listed without a value.
    """
    sizes = estimator.sampler.sizes
    return list(dict.fromkeys(text for part in _parts(estimator) for text in _unscaled(part, sizes)))


def _unscaled(component: Resizable, sizes: Sizes) -> Iterator[str]:
    own = settings(component)
    scaled = [settings(component.resized(sizes, _times(sizes, factor))) for factor in (3, 1 / 3)]
    known = {*component.not_sizes, *(_OF_THE_PROBLEM if isinstance(component, Sampler) else ())}
    for name, value in own.items():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, Resizable):
                yield from _unscaled(part, sizes)
        if _counts(value) and name not in known and all(after.get(name) == value for after in scaled):
            yield f"{type(component).__name__}.{name} = {value!r}"
    for name, parameter in constructor_of(type(component)).parameters.items():
        if name not in own and parameter.annotation in (int, "int") and name not in known:
            yield f"{type(component).__name__}.{name}"


def _times(sizes: Sizes, factor: float) -> Sizes:
    """Returns sizes ``factor`` times as large, with a vocabulary of 3 tokens."""
    length, steps, block = (max(1, round(size * factor)) for size in (sizes.length, sizes.steps, sizes.block_length))
    return Sizes(length, steps, min(block, length), sizes.tokens_per_step, 3)


def _counts(value: object) -> bool:
    """Tells whether a value may count something of which there can be too few: a whole number above 1, or several."""
    if isinstance(value, (list, tuple)):
        return any(_counts(part) for part in value)
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


def keeps_whole(small: OnProblem, group_size: int) -> bool:
    """Tells whether the selector keeps every step of sampled groups, each by itself and all with one weight.

    Filters are not run: which trajectories they leave says nothing of the steps.
    """
    groups = GROUPS if small.estimator.sampler.max_steps <= 64 else 1
    return all(_keeps_group(small, group_size, seed) for seed in range(groups))


def _keeps_group(small: OnProblem, group_size: int, seed: int) -> bool:
    selector = small.estimator.selector
    prompts = small.problem.batch(group_size)
    services = DrawnServices(small.problem, small.estimator.sampler, seed, 0)
    trajectory = draw_trajectories(small, services, prompts, small.plan.sampler.keys)
    with torch.no_grad():
        for stage in small.plan.rollout[1:]:
            if isinstance(stage.component, Filter):
                continue
            asked = {*stage.keys, SELECTED_END} if stage.component is selector else stage.keys
            trajectory = services.call(stage.component, trajectory, tuple(asked))
            if stage.component is selector:
                return _all_alike(_times_kept(trajectory), trajectory[STEP_VALID]) and _single_steps(trajectory)
    return False


def _all_alike(weight: Tensor, valid: Tensor) -> bool:
    """Tells whether the weights [B, T] of all valid steps are one number above 0, and those of the others 0."""
    given = weight[valid]
    return bool((given > 0).all()) and torch.allclose(given, given.mean()) and not bool(weight[~valid].any())


def _times_kept(trajectory: TensorDictBase) -> Tensor:
    """Sums the weights of the segments that each step is in: float64 [B, T]."""
    time = torch.arange(trajectory[STEP_VALID].shape[1])
    step, end = trajectory[SELECTED_STEP][..., None], trajectory[SELECTED_END][..., None]
    return (trajectory[SELECTED_WEIGHT].double()[..., None] * ((step <= time) & (time < end))).sum(1)


def _single_steps(trajectory: TensorDictBase) -> bool:
    used = trajectory[SELECTED_WEIGHT] > 0
    return bool((trajectory[SELECTED_END] == trajectory[SELECTED_STEP] + 1)[used].all())


def first_left_out(estimator: GradientEstimator, most: int = 256, group_size: int = GROUP_SIZE) -> int | None:
    """Finds how many steps a trajectory must have so that the unscaled selector does not just keep every one.

    Args:
        estimator: its sampler is resized, its other components are not.
        most: the largest number of steps to try; those up to 16 are tried one by one, then powers of two and ``most``.
        group_size: samples of a group.

    Returns:
        The number of steps; None if the selector keeps every step of up to ``most``.
    """
    tried = {*range(2, 17), *(2**i for i in range(5, 20)), most}
    for length in sorted(length for length in tried if 2 <= length <= most):
        problem = Problem(vocab=2, length=length, block_length=1, reward="parity", policy="network")
        sampler = estimator.sampler.resized(estimator.sampler.sizes, Sizes(length, length, 1, 1, 2))
        attached(sampler, problem.denoiser)
        values = [rebuilt(part) for part in estimator.values]
        own = estimator.fillings | {"sampler": sampler, "value": values, "regulariser": ()}
        if not keeps_whole(OnProblem(GradientEstimator(**own), problem), group_size):
            return length
    return None


def kept_whole(estimator: GradientEstimator, small: Iterable[OnProblem], group_size: int = GROUP_SIZE) -> str:
    """Says in a sentence why an audit on these problems would measure another selector; "" if it would not.

    Args:
        estimator: at its own size.
        small: the estimator scaled to each problem of the audit, with attached samplers.
        group_size: samples of a group.
    """
    if type(estimator.selector) is AllSteps:  # by definition, and not by its size
        return ""
    problems = list(small)
    if not problems or not all(keeps_whole(one, group_size) for one in problems):
        return ""
    own = first_left_out(estimator, min(estimator.sampler.sizes.steps, MOST_STEPS), group_size)
    if own is None:
        return ""  # it keeps every step of its own trajectories, too
    selector, steps = estimator.selector, max(one.estimator.sampler.max_steps for one in problems)
    counts = {name: value for name, value in settings(selector).items() if isinstance(value, int) and value > 1}
    same = counts.items() <= settings(problems[-1].estimator.selector).items()
    values = f" ({', '.join(f'{name} = {value}' for name, value in counts.items())})" if counts else ""
    return (
        f"{type(selector).__name__} is {'kept as it is' if same else 'scaled'}{values} so that it keeps all {steps} of "
        f"{steps} steps of the small problems, while of {own} steps it does not: this would audit AllSteps. Its method "
        "`resized` must keep its share of the steps"
    )


def unscaled_words(estimator: GradientEstimator, small: Iterable[GradientEstimator]) -> str:
    """Says in a sentence which settings may mean another algorithm on small problems; "" if there are none.

    Args:
        estimator: at its own size.
        small: the estimator scaled to each problem of the audit.
    """
    own = estimator.sampler.sizes
    if all(one.sampler.sizes.steps == own.steps and one.sampler.sizes.length == own.length for one in small):
        return ""
    found = unscaled(estimator)
    if not found:
        return ""
    which = "is kept as it is" if len(found) == 1 else "are kept as they are"
    return (
        f"{', '.join(found)} {which}, although problems are smaller than trajectories of {own.steps} steps. "
        "If it counts steps, positions or tokens, scale it in a method `resized`; if not, name it in `not_sizes`"
    )
