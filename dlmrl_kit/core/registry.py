"""The kinds of components, ``@register``, and the list of registered components.

A *kind* says what a component is for (sampler, selector, loss, ...); a *component* is a class of that kind. Its name is
its class name: here, in recipes, in the docs and on the command line. Its full name is ``<package>.<kind>.<name>``.
Recipes write ``@EntropyTopK()``, and ``@acme.selector.EntropyTopK()`` if two packages have one of that name.

The registry holds the components that were imported and imports none itself: ``recipe.catalogue`` loads the kit's
components and the plugins.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dlmrl_kit.core.errors import RegistryError
from dlmrl_kit.core.signatures import constructor_of
from dlmrl_kit.core.version import PACKAGE

if TYPE_CHECKING:
    from dlmrl_kit.core.keys import Key

C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class Slot:
    """The slot of an algorithm that a plugin declares for a kind of its own, see ``algorithm.kinds``.

    Attributes:
        before: the slot whose components wait for those of this one.
        many: whether it takes any number of components, and not one at most.
    """

    before: str
    many: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of component.

    Attributes:
        name: as in ``@register(name)``.
        folder: the subpackage of the kit that holds the components of the kind; "" for a kind that a plugin declares.
        summary: what they are for, in a few words.
        package: who declares it.
        slot: that a plugin declares for it; None: the kind has none, or is one of the kit's (``algorithm.SLOTS``).
        checks: conformance checks of the plugin, ``check(name, component)`` each, see ``dlmrl_kit.testing``.
    """

    name: str
    folder: str
    summary: str
    package: str = PACKAGE
    slot: Slot | None = None
    checks: tuple[Callable[[str, Any], None], ...] = ()


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("task", "tasks", "prompts and a verifiable reward"),
        Kind("prompt", "prompts", "how a question becomes what a policy is given"),
        Kind("reward", "rewards", "a number that a completion earns, one part of a task's reward"),
        Kind("policy", "policies", "the denoiser: a transformers model behind one interface"),
        Kind("sampler", "samplers", "how a trajectory is generated, and the exact log-probability of what it did"),
        Kind("cache", "caches", "what a rollout reuses of earlier steps, approximately"),
        Kind("correction", "corrections", "weights that correct for samples of another distribution than the policy"),
        Kind("collector", "collectors", "where rollouts are sampled, other than in the process that trains"),
        Kind("filter", "filters", "which samples of a rollout are trained at all"),
        Kind("selector", "selectors", "which denoising steps are trained, with which weights"),
        Kind("advantage", "advantages", "how much better an action was than expected"),
        Kind("likelihood", "likelihoods", "the log-probability of a step, token or sequence under the current policy"),
        Kind("value", "values", "a value model trained beside the policy"),
        Kind("loss", "losses", "the objective that is minimised"),
        Kind("regulariser", "regularisers", "a term added to the loss: KL, entropy"),
        Kind("normaliser", "normalisers", "what a sum over tokens is divided by"),
        Kind("schedule", "schedules", "a number that depends on the denoising step"),
        Kind("step_schedule", "step_schedules", "how many positions each denoising step commits"),
        Kind("trainer", "trainers", "the training loop: optimiser, batches, checkpoints, evaluation"),
        Kind("logger", "loggers", "where metrics go"),
        Kind("demonstrator", "demonstrators", "whose completions a denoiser is pre-trained on"),
        Kind("pretrainer", "pretrainers", "the pre-training objective and its loop settings"),
    )
}


def declared_slots() -> dict[str, Slot]:
    """Returns the slots of an algorithm that plugins have declared, by name."""
    return {kind.name: kind.slot for kind in KINDS.values() if kind.slot is not None}


TERM_KINDS = frozenset({"loss", "regulariser"})
"""Kinds whose components return what is minimised instead of adding keys to the trajectory."""


@dataclass(frozen=True)
class Claims:
    """What a component promises about the gradient; the audit checks it.

    Attributes:
        unbiased: True, False, or None where the question does not arise.
        scale: the factor by which the expected gradient is scaled, as text (``"1 - 1/G"``).
        under: the conditions, in words.
    """

    unbiased: bool | None = None
    scale: str = "1"
    under: str = ""


@dataclass(frozen=True)
class Parameter:
    """A constructor parameter; ``annotation`` is its type as text, "" if it has none."""

    name: str
    default: Any
    annotation: str

    @property
    def required(self) -> bool:
        """Whether a recipe must give it a value."""
        return self.default is inspect.Parameter.empty


def _annotation(annotation: object) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


@dataclass(frozen=True)
class Entry:
    """A registered component: its class, and what ``@register`` was told about it."""

    kind: str
    name: str
    cls: type
    package: str
    paper: str
    claims: Claims

    @property
    def gin_name(self) -> str:
        """The full name that recipes may use: ``<package>.<kind>.<name>``."""
        return f"{self.package}.{self.kind}.{self.name}"

    @property
    def summary(self) -> str:
        """The first line of the class docstring."""
        return (inspect.getdoc(self.cls) or "").strip().split("\n", 1)[0]

    @property
    def ancestors(self) -> tuple[type, ...]:
        """The classes that the component inherits from, nearest first."""
        return inspect.getmro(self.cls)[1:]

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of the constructor, in order."""
        signature = constructor_of(self.cls)
        return tuple(
            Parameter(
                p.name,
                p.default,
                _annotation(p.annotation),
            )
            for p in signature.parameters.values()
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        )

    def keys(self) -> Keys | None:
        """Finds the keys that an instance with default settings reads and writes.

        Returns:
            The keys; None if the class is no ``Component`` or cannot be built with defaults.
        """
        return _keys(self.cls)


@dataclass(frozen=True)
class Keys:
    """The keys that a component reads, that it always writes, and that it writes when asked to."""

    reads: tuple[Key, ...]
    writes: tuple[Key, ...]
    on_demand: tuple[Key, ...]


_PLACEHOLDERS: dict[str, object] = {"int": 1, "float": 0.5, "str": "", "bool": False}
"""Values, by annotation, for parameters without a default when a component is built only to see its keys."""


@functools.cache
def _keys(cls: type) -> Keys | None:
    # Keys may depend on the arguments of the constructor, so an instance is needed.
    from dlmrl_kit.core.component import Component

    if not issubclass(cls, Component):
        return None
    required = {
        p.name: _PLACEHOLDERS.get(str(p.annotation))
        for p in constructor_of(cls).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    try:
        instance = cls(**required)
        return Keys(tuple(instance.in_keys), tuple(instance.out_keys), tuple(instance.optional_keys))
    except Exception:  # a plugin's constructor may raise anything, also at a placeholder
        return None


_ENTRIES: dict[tuple[str, str], list[Entry]] = {}


@dataclass(frozen=True)
class Skipped:
    """A part of a plugin that is left out, while the rest of it works.

    Attributes:
        what: the part, as messages name it: ``selector 'EarlySteps'``.
        name: of the component; "" for a part that is none.
        problem: why.
    """

    what: str
    name: str
    problem: str


_skipped: list[list[Skipped]] = []


@contextlib.contextmanager
def skipping_faults() -> Iterator[list[Skipped]]:
    """Within the context a class that cannot be registered is left out and added to the list, and raises nothing."""
    _skipped.append([])
    try:
        yield _skipped[-1]
    finally:
        _skipped.pop()


def skip_or_raise(what: str, cls: object, error: RegistryError) -> None:
    """Raises an error of a declaration, or notes it within ``skipping_faults``."""
    name = cls.__name__ if isinstance(cls, type) or inspect.isfunction(cls) else repr(cls)
    if not _skipped:
        raise error
    _skipped[-1].append(Skipped(f"{what} {name!r}", name, str(error)))


def register(
    kind: str,
    name: str | None = None,
    *,
    paper: str = "",
    unbiased: bool | None = None,
    scale: str = "1",
    under: str = "",
) -> Callable[[C], C]:
    """Decorates a class to make it a component of ``kind``, which recipes use by its class name.

    A component from outside the kit is checked against its declarations from then on, see ``core.contract``. A class
    that a notebook, or an interactive session, defines again takes the place of the one before.

    Args:
        kind: one of ``KINDS``.
        name: may be left out; must equal the class name.
        paper: where the component comes from (``"arXiv 2603.12554, eq. 7"``).
        unbiased, scale, under: the component's ``Claims``.

    Raises:
        RegistryError: an unknown kind, something else than a class, a name that is not the class name, a second
            component of the same kind and name in one package, claims of other types, or malformed keys.
    """
    if kind not in KINDS and not _skipped:
        raise unknown_kind(kind)

    def decorate(cls: C) -> C:
        try:
            enter(cls)
        except RegistryError as error:
            skip_or_raise(kind, cls, error)
        return cls

    def enter(cls: type) -> None:
        if kind not in KINDS:
            raise unknown_kind(kind)
        if not isinstance(cls, type):
            raise RegistryError(f"@register({kind!r}) is for classes, got {cls!r}")
        if name is not None and name != cls.__name__:
            raise RegistryError(f"{kind} {name!r}: a component's name is its class name, here {cls.__name__!r}")
        if unbiased not in (True, False, None) or not all(isinstance(text, str) for text in (paper, scale, under)):
            raise RegistryError(
                f"{kind} {cls.__name__!r} claims unbiased={unbiased!r}, scale={scale!r}, under={under!r}, "
                f"paper={paper!r}; unbiased should be True, False or None, and the others texts"
            )
        package = cls.__module__.split(".", 1)[0]
        again = [entry for entry in _ENTRIES.get((kind, cls.__name__), []) if _is_cell(entry.cls, cls)]
        for entry in again:
            unregister(entry)
        entry = Entry(kind, cls.__name__, cls, package, paper, Claims(unbiased, scale, under))
        namesakes = _ENTRIES.get((kind, cls.__name__), [])
        for other in namesakes:
            if other.package == package:
                raise RegistryError(
                    f"{kind} {cls.__name__!r} is registered twice in package {package!r}: "
                    f"by {other.cls.__module__} and by {cls.__module__}; give one of them another class name"
                )
        if package != PACKAGE:
            from dlmrl_kit.core import contract

            contract.guard(cls, entry.gin_name, is_term=kind in TERM_KINDS)
        _ENTRIES[kind, cls.__name__] = [*namesakes, entry]

    return decorate


def _is_cell(old: type, new: type) -> bool:
    """Tells whether a class is defined again in the session that defined it, as by a notebook's cell that is edited."""
    return old.__module__ == new.__module__ == "__main__" and old.__qualname__ == new.__qualname__


def registered(kind: str | None = None) -> list[Entry]:
    """Lists the components registered so far, of one kind or all, by kind, name and package. Imports nothing.

    Raises:
        RegistryError: no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise unknown_kind(kind)
    order = list(KINDS)
    found = [entry for entries in _ENTRIES.values() for entry in entries if kind in (None, entry.kind)]
    return sorted(found, key=lambda entry: (order.index(entry.kind), entry.name, entry.package))


def unregister(entry: Entry) -> None:
    """Takes a component out of the registry, as if it had never been registered."""
    key = (entry.kind, entry.name)
    _ENTRIES[key] = [other for other in _ENTRIES[key] if other is not entry]


def unknown_kind(kind: str) -> RegistryError:
    """Makes the error for a kind that does not exist; it suggests the nearest names."""
    return RegistryError(f"unknown kind {kind!r}; {nearest(str(kind), KINDS)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message that suggests the names closest to ``name`` and lists all that are ``known``."""
    names = sorted(known)
    lowered = {n.lower(): n for n in names}
    close = [lowered[m] for m in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}available: {', '.join(names)}"
