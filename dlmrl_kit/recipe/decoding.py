"""The bindings that say how long a completion is, and in how many denoising steps it is decoded."""

from __future__ import annotations

from dlmrl_kit.core.errors import UserError


def decoder_bindings(length: int | None, steps: int | None, sets: list[str] | None) -> list[str]:
    """Returns the bindings of a recipe that ``--length`` and ``--steps`` stand for, before those of ``--set``.

    Raises:
        UserError: a number of steps without a length, or one that does not divide it.
    """
    found = [] if length is None else [f"Sampler.completion_length = {length}"]
    if steps is not None:
        if length is None or length % steps:
            raise UserError(f"--steps {steps} needs a --length that it divides; got {length}")
        found.append(f"Sampler.tokens_per_step = {length // steps}")
    return [*found, *(sets or [])]
