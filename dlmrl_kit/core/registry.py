"""Kinds, ``@register``, look-up and the catalogue of components.

A *kind* is a slot of an algorithm (sampler, selector, loss, ...); a *component* is a class that fills it. The name of a
component is its class name: in the registry, in gin, in the docs and on the command line. Its gin module is
``<package>.<kind>``, so ``@EntropyTopK()`` is enough in a recipe and ``@acme.selector.EntropyTopK()`` settles a clash.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from dlmrl_kit.core.errors import RegistryError

C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class Kind:
    """A slot of an algorithm. ``folder`` is the subpackage of the kit that holds its components."""

    name: str
    folder: str
    summary: str


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("task", "tasks", "prompts and a verifiable reward"),
        Kind("policy", "policies", "the denoiser: a transformers model behind one interface"),
        Kind("sampler", "samplers", "how a trajectory is generated, and the exact log-probability of what it did"),
        Kind("cache", "caches", "what a rollout reuses of earlier steps, approximately"),
        Kind("correction", "corrections", "weights that correct for samples of another distribution than the policy"),
        Kind("filter", "filters", "which samples of a rollout are trained at all"),
        Kind("selector", "selectors", "which denoising steps are trained, with which weights"),
        Kind("advantage", "advantages", "how much better an action was than expected"),
        Kind("likelihood", "likelihoods", "the log-probability of a step, token or sequence under the current policy"),
        Kind("value", "values", "a value model trained beside the policy"),
        Kind("loss", "losses", "the objective that is minimised"),
        Kind("regulariser", "regularisers", "a term added to the loss: KL, entropy"),
        Kind("normaliser", "normalisers", "what a sum over tokens is divided by"),
        Kind("schedule", "schedules", "a number that depends on the denoising step"),
        Kind("trainer", "trainers", "the training loop: optimiser, batches, checkpoints, evaluation"),
        Kind("logger", "loggers", "where metrics go"),
        Kind("demonstrator", "demonstrators", "whose completions a denoiser is pre-trained on"),
        Kind("pretrainer", "pretrainers", "the pre-training objective and its loop settings"),
    )
}


@dataclass(frozen=True)
class Claims:
    """What a component promises about the gradient; the audit holds it to it.

    ``unbiased``: True, False, or None where the question does not arise. ``scale``: the factor by which the expected
    gradient is scaled, as text (``"1 - 1/G"``). ``under``: the conditions, in words.
    """

    unbiased: bool | None = None
    scale: str = "1"
    under: str = ""


@dataclass(frozen=True)
class Parameter:
    """A constructor parameter as the catalogue shows it."""

    name: str
    default: Any
    annotation: str

    @property
    def required(self) -> bool:
        """Whether a recipe must bind it."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Component:
    """A registered component: the class and what the catalogue says of it."""

    kind: str
    name: str
    cls: type
    package: str
    paper: str
    claims: Claims

    @property
    def gin_name(self) -> str:
        """Full gin selector: ``<package>.<kind>.<name>``."""
        return f"{self.package}.{self.kind}.{self.name}"

    @property
    def summary(self) -> str:
        """First line of the class docstring."""
        return (inspect.getdoc(self.cls) or "").strip().split("\n", 1)[0]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Constructor parameters with defaults, in order."""
        signature = inspect.signature(self.cls)
        return tuple(
            Parameter(
                p.name,
                p.default,
                p.annotation if isinstance(p.annotation, str) else inspect.formatannotation(p.annotation),
            )
            for p in signature.parameters.values()
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        )

    def keys(self) -> Keys | None:
        """Keys a default instance reads and writes; None for components that are not TensorDict modules."""
        return _keys(self.cls)


@dataclass(frozen=True)
class Keys:
    """The dataflow contract of a component: what it reads, what it writes always, and what it writes when asked."""

    reads: tuple[Any, ...]
    writes: tuple[Any, ...]
    on_demand: tuple[Any, ...]


@functools.cache
def _keys(cls: type) -> Keys | None:
    """Builds an instance with defaults (placeholders where there is none) and asks it: keys may depend on arguments."""
    from tensordict.nn import TensorDictModuleBase

    if not issubclass(cls, TensorDictModuleBase):
        return None
    placeholders = {"int": 1, "float": 0.5, "str": "", "bool": False}
    required = {
        p.name: placeholders.get(str(p.annotation))
        for p in inspect.signature(cls).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    try:
        instance = cls(**required)
        return Keys(tuple(instance.in_keys), tuple(instance.out_keys), tuple(getattr(instance, "optional_keys", ())))
    except Exception:  # a plugin's constructor may raise anything; the catalogue then shows no keys
        return None


_COMPONENTS: dict[tuple[str, str], list[Component]] = {}
_KIT = __name__.split(".", 1)[0]


def register(
    kind: str,
    name: str | None = None,
    *,
    paper: str = "",
    unbiased: bool | None = None,
    scale: str = "1",
    under: str = "",
) -> Callable[[C], C]:
    """Class decorator: makes a class a component of ``kind``, usable in recipes under its class name.

    Args:
        kind: one of ``KINDS``.
        name: must equal the class name; may be left out.
        paper: where the component comes from (``"arXiv 2603.12554, eq. 7"``).
        unbiased, scale, under: the component's ``Claims``.

    Raises:
        RegistryError: unknown kind, no class, a name that is not the class name, a second component of the same kind
            and name in one package, or malformed keys.
    """
    if kind not in KINDS:
        raise RegistryError(f"unknown kind {kind!r}; {nearest(str(kind), KINDS)}")

    def decorate(cls: C) -> C:
        if not isinstance(cls, type):
            raise RegistryError(f"@register({kind!r}) is for classes, got {cls!r}")
        if name is not None and name != cls.__name__:
            raise RegistryError(f"{kind} {name!r}: a component's name is its class name, here {cls.__name__!r}")
        package = cls.__module__.split(".", 1)[0]
        component = Component(kind, cls.__name__, cls, package, paper, Claims(unbiased, scale, under))
        entries = _COMPONENTS.setdefault((kind, cls.__name__), [])
        for other in entries:
            if other.package == package:
                raise RegistryError(
                    f"{kind} {cls.__name__!r} is registered twice in package {package!r}: "
                    f"by {other.cls.__module__} and by {cls.__module__}; give one of them another class name"
                )
        if package != _KIT:
            from dlmrl_kit.core import contract

            contract.guard(component)
        _gin_register(component)
        entries.append(component)
        return cls

    return decorate


def _gin_register(component: Component) -> None:
    import gin

    try:
        gin.register(component.cls, module=f"{component.package}.{component.kind}")
    except ValueError as error:
        raise RegistryError(f"{component.kind} {component.name!r} cannot be registered with gin: {error}") from error


def registered() -> list[Component]:
    """All components registered so far; loads nothing."""
    return [component for entries in _COMPONENTS.values() for component in entries]


def unregister(component: Component) -> None:
    """Takes a component out of the registry and out of gin, as if it had never been registered."""
    import gin

    key = (component.kind, component.name)
    _COMPONENTS[key].remove(component)
    if not _COMPONENTS[key]:
        del _COMPONENTS[key]
    gin.config._REGISTRY.pop(component.gin_name)
    gin.config._INVERSE_REGISTRY.pop(component.cls, None)


def nearest(name: str, known: Any) -> str:
    """Text that suggests names close to ``name`` among ``known``, and lists them all."""
    names = sorted(known)
    lowered = {n.lower(): n for n in names}
    close = [lowered[m] for m in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}available: {', '.join(names)}"


def components(kind: str | None = None) -> list[Component]:
    """All registered components (of one kind), sorted by kind and name; loads the kit's own, then the plugins."""
    from dlmrl_kit.recipe import plugins

    load_builtin()
    plugins.load()
    if kind is not None and kind not in KINDS:
        raise RegistryError(f"unknown kind {kind!r}; {nearest(kind, KINDS)}")
    order = list(KINDS)
    found = [c for c in registered() if kind in (None, c.kind)]
    return sorted(found, key=lambda c: (order.index(c.kind), c.name, c.package))


def find(name: str, kind: str | None = None) -> Component:
    """The component called ``name``: a class name, or a gin selector such as ``acme.selector.EarlySteps``.

    Raises:
        RegistryError: no such component (with the nearest names), or more than one.
    """
    if kind is not None and kind not in KINDS:
        raise RegistryError(f"unknown kind {kind!r}; {nearest(kind, KINDS)}")
    candidates = components(kind)
    matches = [c for c in candidates if c.gin_name == name or c.gin_name.endswith("." + name)]
    what = kind or "component"
    if not matches:
        others = [c for c in components() if c.name == name]
        elsewhere = f"{name!r} is a {others[0].kind}. " if others else ""
        from dlmrl_kit.recipe.plugins import hint

        known = nearest(name, {c.name for c in candidates})
        raise RegistryError(f"no {what} named {name!r}; {elsewhere}{known}{hint()}")
    if len(matches) > 1:
        raise RegistryError(
            f"{what} {name!r} is ambiguous: registered by {' and '.join(sorted(m.package for m in matches))}; "
            f"write one of {', '.join(sorted(m.gin_name for m in matches))}"
        )
    return matches[0]


def load_builtin() -> None:
    """Imports every component of the kit (idempotent; imports torch)."""
    for kind in KINDS.values():
        package = importlib.import_module(f"dlmrl_kit.{kind.folder}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
