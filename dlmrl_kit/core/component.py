"""The base class of components: a TensorDict module with declared keys and declared services.

A component reads ``in_keys`` and adds ``out_keys``; it never overwrites a key that it did not write. Keys in
``optional_keys`` cost time or memory: a component that has some takes ``keys``, those of them that a later component
reads, and writes these too. What is not data - the policy, a random generator, a reward function - is a *service*,
listed in ``requires`` and passed by name:

    component(tensordict, policy=policy, generator=generator, keys=[("step", "greedy_ids")])

A component keeps nothing between calls but its settings and the modules that it trains, so that algorithms may share
it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from tensordict.nn import TensorDictModuleBase

from dlmrl_kit.core.errors import DeclarationError, UserError
from dlmrl_kit.core.keys import Key
from dlmrl_kit.core.policy import Policy

SERVICES: dict[str, str] = {
    "policy": "the current denoiser, dlmrl_kit.core.policy.Policy",
    "sampler": "the recipe's sampler (its behaviour distribution and action log-probability)",
    "generator": "a torch.Generator seeded from (seed, update, component class)",
    "examples": "examples(example) -> list of dlmrl_kit.tasks.base.Example: the examples of indices int64 [N]",
    "score": "score(ids, example) -> float32 [N]: rewards of completions int64 [N, L] for example indices [N]",
    "restart": "restart(tensordict, step, n) -> float32 [B, K, n]: rewards of n completions sampled from x_step",
}
"""What a component may list in ``requires``."""

DECLARATIONS = ("in_keys", "out_keys", "optional_keys")
"""The attributes that declare keys: each a list or tuple of keys."""

C = TypeVar("C")


@dataclass(frozen=True)
class Sizes:
    """How large the trajectories are that a component's settings were made for.

    Args:
        length: L, positions of a completion.
        steps: T, denoising steps at most.
        block_length: positions of a block.
        tokens_per_step: positions that a step commits at most.
        vocab_size: tokens that a position may hold; None where it is not known, and large.
    """

    length: int
    steps: int
    block_length: int
    tokens_per_step: int
    vocab_size: int | None = None

    def scale_steps(self, count: int, to: Sizes) -> int:
        """A number of denoising steps in proportion: at least 1; fewer than all steps where it was before."""
        return max(1, min(round(count * to.steps / self.steps), to.steps if count >= self.steps else to.steps - 1))

    def scale_length(self, count: int, to: Sizes) -> int:
        """A number of positions in proportion: at least 1; fewer than all where it was before."""
        return max(1, min(round(count * to.length / self.length), to.length if count >= self.length else to.length - 1))

    def limit_tokens(self, count: int, to: Sizes) -> int:
        """A number of tokens of the vocabulary: fewer than all of them, but no fewer than 2; 0 stays 0."""
        return count if to.vocab_size is None else min(count, max(to.vocab_size - 1, 2))


class Component(TensorDictModuleBase):
    """Base class of samplers, filters, selectors, advantages, likelihoods, value models, losses and regularisers.

    Subclasses set ``in_keys`` and ``out_keys`` (class attributes, or in the constructor when they depend on it), and
    implement ``forward(tensordict, **services) -> tensordict``. Every parameter of the constructor is kept under its
    own name, so that ``rebuilt`` can make a component again with other settings.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    """Services that ``forward`` takes; see ``SERVICES``."""
    optional_keys: ClassVar[tuple[Key, ...]] = ()
    """Keys that ``forward`` writes only where its argument ``keys`` names them."""
    learning_rate: float | None = None
    """Of the modules it trains itself; None: the trainer's."""
    initialised: bool = False
    """Whether ``Component.__init__`` has run."""

    def __init__(self) -> None:
        super().__init__()
        self.initialised = True

    def __setattr__(self, name: str, value: Any) -> None:
        """As ever; but malformed keys are refused before tensordict takes them apart.

        Raises:
            DeclarationError: malformed keys.
        """
        if name in DECLARATIONS and (problem := malformed(value)):
            raise DeclarationError(type(self).__name__, f"{name} {problem}")
        super().__setattr__(name, value)

    def reads(self, keys: Collection[Key] = ()) -> tuple[Key, ...]:
        """What it reads when it is asked for the on-demand ``keys``: ``in_keys``, unless a subclass says more."""
        return tuple(self.in_keys)

    def writes(self, keys: Collection[Key] = ()) -> tuple[Key, ...]:
        """``out_keys`` and the on-demand keys among ``keys``, in the order of ``optional_keys``."""
        return (*self.out_keys, *(key for key in self.optional_keys if key in keys))

    def attach(self, policy: Policy) -> None:
        """Called when the policy is loaded: a component that trains modules of its own creates them here.

        Its parameters are then trained beside the policy's, with the same optimiser, and kept in checkpoints. Further
        calls change nothing.

        Args:
            policy: on its device.
        """

    def resized(self: C, before: Sizes, after: Sizes) -> C:
        """The component for trajectories of other sizes, for the audit's small problems; here as it is.

        A component whose settings count denoising steps or positions (k, segments, a block length) overrides it: what
        keeps 8 of 64 steps is to keep about one in eight of any number. The audit names what it could not resize.
        """
        return self


def malformed(keys: object) -> str:
    """What is wrong with a declaration of keys, as the end of a sentence; empty if nothing is."""
    must = "must be a list of keys, each a str or a tuple of str,"
    if not isinstance(keys, (list, tuple)):
        return f"{must} got {keys!r}" + (f"; write [{keys!r}]" if isinstance(keys, str) else "")
    wrong = [key for key in keys if not _is_key(key)]
    return f"{must} got {wrong[0]!r} among them" if wrong else ""


def _is_key(key: object) -> bool:
    parts = key if isinstance(key, tuple) else (key,)
    return bool(parts) and all(isinstance(part, str) and part for part in parts)


def settings(component: object) -> dict[str, object]:
    """The values of a component's constructor parameters, of those that it keeps under their own names."""
    kept = {name: getattr(component, name, inspect.Parameter.empty) for name in _parameter_names(type(component))}
    return {name: v for name, v in kept.items() if v is not inspect.Parameter.empty and not inspect.isroutine(v)}


def rebuilt(component: C, **changes: Any) -> C:
    """A component made again from its own settings, some of them changed; modules it trains are not taken over.

    Args:
        component: keeps every other parameter of its constructor under its own name.
        changes: new values by parameter.

    Raises:
        UserError: it does not keep a parameter.
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
    return [name for name, p in inspect.signature(cls).parameters.items() if p.kind in kinds]


def with_parameters_of(base: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator of a constructor that passes ``*decoding`` and ``**decoding`` on to a base class: it takes those too.

    Recipes, the catalogue and ``rebuilt`` then see the parameters of both; the base's come first.
    """

    def decorate(constructor: Callable[..., None]) -> Callable[..., None]:
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        inherited = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        own = [p for p in inspect.signature(constructor).parameters.values() if p.kind not in kinds]
        both = [*inherited.values(), *(p for p in own if p.name not in inherited)]
        constructor.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]
        return constructor

    return decorate
