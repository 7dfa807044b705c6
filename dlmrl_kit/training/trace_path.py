"""Traces of a run folder or a model, with the components of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dlmrl_kit.algorithm.algorithm import Algorithm, Pretraining
from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.training.opening import open_model
from dlmrl_kit.training.start import start_policy
from dlmrl_kit.training.trace import Trace, trace_group


def trace_path(
    path: str,
    *,
    recipe: str | None = None,
    split: str = "heldout",
    indices: Sequence[int] = (0,),
    samples: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    before: bool = True,
    sets: Sequence[str] = (),
    uses: Sequence[str] = (),
    allow_imports: bool = False,
) -> list[Trace]:
    """Samples groups of completions from the model of a run folder, or any other model.

    Args:
        path, recipe, sets, uses, allow_imports: as ``training.evaluate_path``.
        split, samples, temperature, seed: as ``trace_group``.
        indices: of the examples in ``split``.
        before: whether the policy that the recipe starts from is traced, too, with the same noise. It takes the memory
            of one policy at a time.

    Returns:
        The traces of the examples in order; of each, the one before training first.

    Raises:
        UserError: there is no model at ``path``, the recipe is broken or is one of pre-training, or there is no such
            example.
    """
    found: dict[int, list[Trace]] = {index: [] for index in indices}
    for name, algorithm, policy in _policies(path, recipe, before, (sets, uses, allow_imports)):
        for index in found:
            found[index].append(
                trace_group(
                    algorithm,
                    policy,
                    index=index,
                    split=split,
                    samples=samples,
                    temperature=temperature,
                    seed=seed,
                    name=name,
                )
            )
    return [trace for traces in found.values() for trace in traces]


def _policies(
    path: str, recipe: str | None, before: bool, how: tuple[Sequence[str], Sequence[str], bool]
) -> Iterator[tuple[str, Algorithm, Policy]]:
    """Yields each policy with its name and the components that are attached to it."""
    opened = open_model(path, recipe, *how)
    if before and opened.is_run:
        algorithm = _training(opened.build())
        policy, _, _ = start_policy(algorithm.policy, algorithm.trainer, 1, algorithm.components)
        yield "before training", algorithm, policy
        del algorithm, policy
    algorithm = _training(opened.build())
    name = "after training" if opened.is_run else path
    yield name, algorithm, opened.load(algorithm, algorithm.components)


def _training(built: Algorithm | Pretraining) -> Algorithm:
    if isinstance(built, Pretraining):
        raise RecipeError("the recipe is one of pre-training, which samples no groups; give another one: --recipe NAME")
    return built
