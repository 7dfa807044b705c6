"""The base class of components: a TensorDict module with declared keys, on-demand keys and declared services.

A component reads ``in_keys`` and adds ``out_keys``; it never overwrites a key it did not write. Keys in
``optional_keys`` cost time or memory and are written only after ``ask_for`` named them: the recipe's dataflow check
asks for those that a later component lists in its ``in_keys``. What is not data - the policy, a random generator, a
reward function - is a *service*, listed in ``requires`` and passed by keyword:
``component(tensordict, policy=policy, generator=generator)``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

from tensordict.nn import TensorDictModuleBase

from dlmrl_kit.core.keys import Key

SERVICES: dict[str, str] = {
    "policy": "the current denoiser, dlmrl_kit.policies.base.Policy",
    "sampler": "the recipe's sampler (its behaviour distribution and action log-probability)",
    "generator": "a torch.Generator seeded from (seed, update, component kind)",
    "examples": "examples(example) -> list of dlmrl_kit.tasks.base.Example: the puzzles of indices int64 [N]",
    "score": "score(ids, example) -> float32 [N]: rewards of completions int64 [N, L] for example indices [N]",
    "restart": "restart(tensordict, step, n) -> float32 [B, K, n]: rewards of n completions sampled from x_step",
}


class Component(TensorDictModuleBase):
    """Base class of samplers, selectors, advantages, likelihoods and regularisers.

    Subclasses set ``in_keys`` and ``out_keys`` (class attributes, or in the constructor when they depend on it), and
    implement ``forward(tensordict, **services) -> tensordict``.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    optional_keys: ClassVar[tuple[Key, ...]] = ()
    learning_rate: float | None = None
    """Of the modules it trains itself; None: the trainer's."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: tuple[Key, ...] = ()

    @property
    def asked(self) -> tuple[Key, ...]:
        """The optional keys this component was asked to write."""
        return self._asked

    def ask_for(self, keys: Iterable[Key]) -> None:
        """Asks for optional keys on top of ``out_keys`` (replaces what was asked before).

        Raises:
            ValueError: a key this component cannot write.
        """
        keys = tuple(dict.fromkeys(keys))
        unknown = [k for k in keys if k not in self.optional_keys]
        if unknown:
            raise ValueError(f"{type(self).__name__} cannot write {unknown}; on demand it writes {self.optional_keys}")
        self._asked = keys

    def attach(self, policy: Any) -> None:
        """Called when the policy is loaded: a component that trains modules of its own creates them here.

        Its parameters are then trained beside the policy's, with the same optimiser, and kept in checkpoints. Further
        calls change nothing.

        Args:
            policy: ``dlmrl_kit.policies.base.Policy``, on its device.
        """

    def written_keys(self) -> tuple[Key, ...]:
        """``out_keys`` and the optional keys that were asked for."""
        return (*self.out_keys, *self._asked)


C = TypeVar("C")


def unattached(component: C) -> C:
    """A shallow copy without the modules that ``attach`` created, so that it can be attached to another policy."""
    twin = copy.copy(component)
    modules = getattr(component, "_modules", {})
    twin.__dict__["_modules"] = {name: part if isinstance(part, Component) else None for name, part in modules.items()}
    return twin
