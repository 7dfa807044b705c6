"""Checks of how a component is made smaller for the audit: settings that are kept, ``resized``, what is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dlmrl_kit.algorithm.algorithm import Swaps
from dlmrl_kit.audit.exact import exact_estimator
from dlmrl_kit.audit.on_problem import OnProblem
from dlmrl_kit.audit.policies import attached
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.audit.sizes import first_left_out, kept_whole, shrunk
from dlmrl_kit.core.component import Component, Resizable, Sizes, rebuilt, settings
from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.selectors.base import Selector
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.subject import parameters_of

LARGE = Sizes(length=64, steps=64, block_length=16, tokens_per_step=1)
"""The sizes that components other than samplers are taken to be made for."""
SMALL = Sizes(length=4, steps=4, block_length=2, tokens_per_step=1, vocab_size=3)
STEPS = 16
"""Steps of the sampler beside a selector; more where the selector leaves nothing out of these."""
MOST_STEPS = 64
"""Steps up to which a selector is asked whether it leaves any out."""
PROBLEMS = tuple(
    Problem(vocab=2, length=length, block_length=1, reward="parity", policy="network", spread=spread)
    for length, spread in ((3, 1.0), (4, 1.0), (4, 0.1), (4, 10.0))
)
"""Problems of 3 and 4 steps, with policies that are uncertain and certain: a selector may look at entropies."""


def check_settings_kept(name: str, component: Component) -> None:
    """Where a component is made again in another size, it keeps every constructor parameter under its own name.

    That is where ``resized`` gives another component, and with components that train modules of their own.
    """
    kept = settings(component)
    lost = [p.name for p in parameters_of(type(component)) if p.name not in kept]
    if not lost or not (_is_made_again(component) or any(True for _ in component.parameters())):
        return
    problem = f"does not keep its parameter {lost[0]!r}, so that it cannot be made again in another size"
    fail(name, problem, f"write self.{lost[0]} = {lost[0]} in the constructor")


def _is_made_again(component: Component) -> bool:
    try:
        return component.resized(LARGE, SMALL) is not component
    except UserError:  # ``rebuilt`` misses a parameter
        return True


def check_resized(name: str, component: Component) -> None:
    """``resized`` gives a component of the same class, leaves the original alone, and changes whole numbers only.

    What has the right size already keeps all of its settings.
    """
    before = _state(component)
    small = _resized(name, component)
    if changed := _changed(before, _state(component)):
        fail(name, f"changes its own {changed[0]} in resized", f"make a new component: {_line(component)}")
    if not isinstance(small, type(component)):
        problem = f"gives a {type(small).__name__} when resized"
        fail(name, problem, f"return a component of the same class: {_line(component)}")
    if isinstance(small, Sampler) and small.completion_length != SMALL.length:
        problem = f"has completions of {small.completion_length} positions when resized to {SMALL.length}"
        fail(name, problem, "return rebuilt(self, **self.fitted(before, after))")
    for subject in (component, *_other_settings(component)):
        _check_keeps_others(name, subject)
    if changed := _changed(settings(small), settings(_resized(name, small, SMALL))):
        problem = f"changes {changed[0]} once more when resized to the sizes that it has"
        fail(name, problem, f"scale by what before and after say: {_line(component)}")


def _check_keeps_others(name: str, component: Component) -> None:
    """Resized, it keeps every setting that is no whole number."""
    given = {key: value for key, value in settings(component).items() if not _is_count(value)}
    found = settings(_resized(name, component))
    if changed := _changed(given, found):
        key = changed[0]
        problem = f"has {key} = {found.get(key)!r} when resized, and {given[key]!r} before"
        fail(name, problem, f"change the sizes alone, rebuilt keeps all other settings: {_line(component)}")


def _other_settings(component: Component) -> Iterator[Component]:
    """Returns the component with one switch or real number changed: another one each time."""
    for key, value in settings(component).items():
        other = not value if isinstance(value, bool) else 0.9 * value if isinstance(value, float) else value
        if other == value:
            continue
        try:
            yield rebuilt(component, **{key: other})
        except (UserError, ValueError):  # a parameter that is not kept; a value out of range
            continue


def _resized(name: str, component: Component, before: Sizes = LARGE) -> Component:
    """Returns the component at the size of a small problem; samplers say themselves how large they are."""
    own = component.sizes if isinstance(component, Sampler) else before
    with attempt(name, "resized for a small problem", f"keep all parameters, and write {_line(component)}"):
        return component.resized(own, SMALL)


def _line(component: Component) -> str:
    """Returns the line of code that resizes the component, as far as its settings say."""
    counts = [key for key, value in settings(component).items() if _is_count(value)] or ["k"]
    scale = "scale_steps" if isinstance(component, Selector) else "scale_length"
    changes = ", ".join(f"{key}=before.{scale}(self.{key}, after)" for key in counts)
    given = "**self.fitted(before, after)" if isinstance(component, Sampler) else changes
    return f"def resized(self, before, after): return rebuilt(self, {given})"


def _state(component: Component) -> dict[str, object]:
    return {**vars(component), **settings(component)}


def _changed(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    return [key for key, value in before.items() if key not in after or not _same(value, after[key])]


def _same(a: object, b: object) -> bool:
    """Tells whether two settings are equal; components within a component are resized, and keep their class."""
    if isinstance(a, Resizable):
        return type(a) is type(b)
    return a is b or (isinstance(a, (bool, int, float, str, tuple)) and a == b)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_leaves_steps_out(name: str, component: Selector) -> None:
    """A selector that leaves steps out still does so when it is resized to 3 or 4 steps."""
    try:
        steps = first_left_out(exact_estimator(LeftToRight(STEPS), Swaps(selector=component)), MOST_STEPS)
        own = exact_estimator(LeftToRight(max(STEPS, steps or 0)), Swaps(selector=component))
        small = [OnProblem(shrunk(own, problem)[0], problem) for problem in PROBLEMS]
    except RecipeError:  # it reads what only other components write
        return
    for one in small:
        attached(one.estimator.sampler, one.policy)
    if steps is not None and (why := kept_whole(own, small)):
        fail(name, why.removeprefix(f"{name} "), _line(component))


CHECKS = (check_settings_kept, check_resized)
SELECTOR_CHECKS = (check_leaves_steps_out,)
