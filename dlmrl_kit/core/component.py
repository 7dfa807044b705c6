"""The base class of components: a TensorDict module with declared keys and declared services.

A component reads its ``in_keys``, adds its ``out_keys``, and never overwrites a key that another one wrote. It may also
declare ``optional_keys``, which cost time or memory: the caller asks for the ones that a later component reads by the
argument ``keys``. What is not data (the policy, a reward function) is a *service*: the component lists its name in
``requires`` and gets it as an argument:

    component(tensordict, policy=policy, keys=[("step", "greedy_ids")])

A component that draws reads the key ``seed``, the seed of each sample, and makes noise by ``core.seeding.uniforms``.

Between calls a component holds nothing but its settings and the modules that it trains, so algorithms can share it.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn

from dlmrl_kit.core.dependencies import Dependent
from dlmrl_kit.core.errors import DeclarationError, MissingKeyError, UserError
from dlmrl_kit.core.keys import Key
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.signatures import constructor_of

SERVICES: dict[str, str] = {
    "policy": "the current denoiser, dlmrl_kit.core.policy.Policy",
    "sampler": "the recipe's sampler (its behaviour distribution and action log-probability)",
    "examples": "examples(example) -> list of dlmrl_kit.tasks.base.Example: the examples of indices int64 [N]",
    "score": "score(ids, example) -> float32 [N]: rewards of completions int64 [N, L] for example indices [N]",
    "restart": "restart(tensordict, step, n) -> float32 [B, K, n]: rewards of n completions sampled from x_step",
}
"""The services that a component may list in ``requires``, and what each of them is."""

REMOVED: dict[str, str] = {
    "generator": "noise comes from the seed of each sample now: list SEED (dlmrl_kit.core.keys) in in_keys and draw by "
    "dlmrl_kit.core.seeding.uniforms(tensordict[SEED], ..., purpose=NAME)"
}
"""Services of earlier versions, and what to do instead."""

DECLARATIONS = ("in_keys", "out_keys", "optional_keys")
"""The attributes that declare keys: each a list or tuple of keys."""

PREFIX = "component:"
"""Prefix to the names of parameters that components train beside the policy."""

C = TypeVar("C")


@dataclass(frozen=True)
class Sizes:
    """Describes how large trajectories are; ``Component.resized`` scales settings from one such size to another.

    Args:
        length: L, the positions of a completion.
        steps: T, the largest number of denoising steps.
        block_length: the positions of a block.
        tokens_per_step: the largest number of positions that a step commits.
        vocab_size: the tokens that a position may hold; None means unknown and large.
    """

    length: int
    steps: int
    block_length: int
    tokens_per_step: int
    vocab_size: int | None = None

    def scale_steps(self, count: int, to: Sizes) -> int:
        """Scales a number of denoising steps in proportion.

        Returns:
            At least 1; fewer than all ``to.steps`` if ``count`` is fewer than all steps here.
        """
        return max(1, min(round(count * to.steps / self.steps), to.steps if count >= self.steps else to.steps - 1))

    def scale_length(self, count: int, to: Sizes) -> int:
        """Scales a number of positions in proportion.

        Returns:
            At least 1; fewer than all ``to.length`` if ``count`` is fewer than all positions here.
        """
        return max(1, min(round(count * to.length / self.length), to.length if count >= self.length else to.length - 1))

    def limit_tokens(self, count: int, to: Sizes) -> int:
        """Limits a number of tokens, such as a top-k, to fewer than the new vocabulary has, but at least 2; 0 stays."""
        return count if to.vocab_size is None else min(count, max(to.vocab_size - 1, 2))


class Resizable(Dependent):
    """The part of every component's base class that says how settings depend on the size of trajectories."""

    not_sizes: ClassVar[tuple[str, ...]] = ()
    """The whole numbers among the settings that count no steps, positions or tokens of a completion, as a number
    of copies. The audit gives no verdict where a whole number is neither named here nor scaled by ``resized``."""

    def resized(self: C, before: Sizes, after: Sizes) -> C:
        """Returns the component for trajectories of another size, such as those of the audit's small problems.

        A component whose settings count denoising steps or positions (k, segments, a block length) must override this:
        one that selects 8 of 64 steps should select about one in eight of any number. Here it returns itself.
        """
        return self


class Component(Resizable, TensorDictModuleBase):
    """Base class of samplers, filters, selectors, advantages, likelihoods, value models, losses and regularisers.

    Subclasses set ``in_keys`` and ``out_keys``, as class attributes or in the constructor, and implement
    ``forward(tensordict, **services) -> tensordict``. They store every parameter of the constructor as an attribute of
    the same name, so that ``rebuilt`` can make the component again with other settings.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    """Names of the services that ``forward`` takes; see ``SERVICES``."""
    always_given: ClassVar[tuple[str, ...]] = ()
    """Names of further arguments that ``forward`` takes; those of its kind always get them."""
    optional_keys: ClassVar[tuple[Key, ...]] = ()
    """Keys that ``forward`` writes only if its argument ``keys`` names them."""
    has_gradient: ClassVar[bool] = False
    """Whether what it writes as ``out_keys`` has a gradient where gradients are enabled."""
    implemented: ClassVar[tuple[str, ...]] = ()
    """Methods of a base class of which a subclass that is no base class implements one at least."""
    learning_rate: float | None = None
    """Learning rate of the modules that the component trains; None: the trainer's."""
    initialised: bool = False
    """Whether ``Component.__init__`` has run."""

    def __init__(self) -> None:
        for base in type(self).__mro__:
            names = vars(base).get("implemented", ())
            if names and all(inspect.unwrap(getattr(type(self), name)) is vars(base)[name] for name in names):
                raise TypeError(f"{type(self).__name__} implements none of the methods {', '.join(names)}")
        super().__init__()
        self.initialised = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses malformed keys here, as tensordict would split a string into letters without a word.

        Raises:
            DeclarationError: malformed keys.
        """
        if name in DECLARATIONS and (problem := malformed(value)):
            raise DeclarationError(type(self).__name__, f"{name} {problem}")
        super().__setattr__(name, value)

    def __call__(self, tensordict: TensorDictBase, *args: Any, **services: Any) -> Any:
        """Runs ``forward``, and explains what is missing; ``Update``, whose plan has seen to that, calls it directly.

        Raises:
            MissingKeyError: the tensordict lacks a key that the component reads.
            TypeError: a service that it requires is not given.
        """
        absent = [name for name in self.requires if name not in services]
        if absent:
            what = ", ".join(f"{name}= ({SERVICES[name]})" for name in absent)
            raise TypeError(f"{type(self).__name__} needs {what}")
        try:
            return super().__call__(tensordict, *args, **services)
        except KeyError as error:
            missing = [key for key in self.reads(services.get("keys", ())) if key not in tensordict.keys(True)]
            if not missing:
                raise
            raise MissingKeyError(f"{type(self).__name__} reads {missing[0]!r}, {how_to_get(missing[0])}") from error

    def reads(self, keys: Collection[Key] = ()) -> tuple[Key, ...]:
        """Returns the keys it reads when it is to write the on-demand ``keys``: ``in_keys``, or more in a subclass."""
        return tuple(self.in_keys)

    def writes(self, keys: Collection[Key] = ()) -> tuple[Key, ...]:
        """Returns the keys it writes when called with ``keys``: ``out_keys``, then its optional keys among them."""
        return (*self.out_keys, *(key for key in self.optional_keys if key in keys))

    def attach(self, policy: Policy) -> None:
        """Creates the modules that the component trains, if it has any; called once the policy is loaded.

        The optimiser of the policy trains their parameters, too, and checkpoints hold them. Further calls must change
        nothing.

        Args:
            policy: on its device.
        """


def how_to_get(key: Key) -> str:
    """Says who writes a key that is not there, as the end of a sentence."""
    prefix = next((p for p in ("old_", "ref_") if isinstance(key, tuple) and key[-1].startswith(p)), "")
    if prefix and isinstance(key, tuple):
        plain = (*key[:-1], key[-1].removeprefix(prefix))
        policy = "before the update" if prefix == "old_" else "within policy.reference()"
        return f"which is {plain!r} as the likelihood wrote it {policy}, without gradients: set it"
    on_demand = [cls.__name__ for cls in _below(Component) if key in vars(cls).get("optional_keys", ())]
    if on_demand:
        return (
            f"which was not asked for: call what writes it ({', '.join(on_demand)}, or a class that inherits from it) "
            f"with keys=[{key!r}]"
        )
    return "which the tensordict does not have: no component before it has written it"


def _below(cls: type[Component]) -> Iterator[type[Component]]:
    """Yields a class and all that inherit from it."""
    yield cls
    for sub in cls.__subclasses__():
        yield from _below(sub)


def own_parameters(components: Iterable[Component]) -> dict[str, nn.Parameter]:
    """Returns the parameters that components train beside the policy, by name ``component:<class>.<name>``."""
    return {
        f"{PREFIX}{type(component).__name__}.{name}": parameter
        for component in components
        for name, parameter in component.named_parameters()
        if parameter.requires_grad
    }


def trained(policy: Policy, components: Iterable[Component] = ()) -> dict[str, nn.Parameter]:
    """Returns every parameter that the optimiser updates, by name."""
    return {**dict(policy.trainable()), **own_parameters(components)}


def no_service(requires: Collection[str]) -> tuple[str, str] | None:
    """Returns the first name that is no service, as the end of a sentence, and what to do about it; None: all are."""
    for name in requires:
        if name in REMOVED:
            return f"requires {name!r}, which is no service any more", REMOVED[name]
        if name not in SERVICES:
            return f"requires {name!r}, which is no service", f"there are {', '.join(SERVICES)}"
    return None


def malformed(keys: object) -> str:
    """Says what is wrong with a declaration of keys, as the end of a sentence; "" if nothing is."""
    must = "must be a list of keys, each a str or a tuple of str,"
    if not isinstance(keys, (list, tuple)):
        return f"{must} got {keys!r}" + (f"; write [{keys!r}]" if isinstance(keys, str) else "")
    wrong = [key for key in keys if not _is_key(key)]
    return f"{must} got {wrong[0]!r} among them" if wrong else ""


def _is_key(key: object) -> bool:
    parts = key if isinstance(key, tuple) else (key,)
    return bool(parts) and all(isinstance(part, str) and part for part in parts)


def settings(component: object) -> dict[str, object]:
    """Returns the constructor parameters that a component stores as attributes of the same name, with their values."""
    kept = {name: getattr(component, name, inspect.Parameter.empty) for name in _parameter_names(type(component))}
    return {name: v for name, v in kept.items() if v is not inspect.Parameter.empty and not inspect.isroutine(v)}


def rebuilt(component: C, **changes: Any) -> C:
    """Makes a component again from its own settings with some of them changed, and without the modules it trained.

    Args:
        component: must store every parameter that is not in ``changes`` as an attribute of the same name.
        changes: new values by parameter.

    Raises:
        UserError: it does not store such a parameter.
        ValueError: a value out of range.
    """
    given = {**settings(component), **changes}
    lost = [name for name in _parameter_names(type(component)) if name not in given]
    if lost:
        raise UserError(
            f"{type(component).__name__} cannot be made again with other settings: it does not keep its parameter "
            f"{lost[0]!r} as an attribute of that name"
        )
    return type(component)(**given)


def _parameter_names(cls: type) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, p in constructor_of(cls).parameters.items() if p.kind in kinds]
