"""The model of a run folder, or any other, and the recipe that goes with it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlmrl_kit.algorithm.algorithm import Algorithm, Pretraining
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.errors import CheckpointError, RecipeError
from dlmrl_kit.core.finite import require_finite, weights_of
from dlmrl_kit.policies.loading import load_policy
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.pretrainers.base import Pretrainer
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.trainers.trainer import Trainer
from dlmrl_kit.training.export import TRAINED_WITH
from dlmrl_kit.training.identity import files_of
from dlmrl_kit.training.start import attach_components, find_device, load_components

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class OpenedModel:
    """Where a model is, and the recipe whose components use it.

    Attributes:
        recipe: of the run that trained the model, or the one that was asked for.
        model: folder, hub id or ``shipped:NAME``.
        is_run: whether it was found in a run folder.
        own_recipe: whether the recipe lies in the model's folder, which may be a stranger's.
    """

    recipe: Recipe
    model: str
    is_run: bool
    own_recipe: bool

    def build(self) -> Algorithm | Pretraining:
        """Builds the recipe.

        Raises:
            UserError: it is broken, or runs code that lies in the model's folder.
        """
        built = self.recipe.build()
        if self.own_recipe:
            _check_no_code_inside(Path(self.model), built)
        return built

    def load(self, built: Algorithm | Pretraining, components: Iterable[Component]) -> TransformersPolicy:
        """Loads the policy onto the device of the built recipe, and ``components`` of it with what they trained.

        Raises:
            UserError: the model cannot be loaded, or does not fit the components.
        """
        policy = load_policy(self.model, mask_id=built.policy.mask_id, eos_ids=built.policy.eos_ids)
        policy.to(find_device(settings_of(built).device))
        self.attach(policy, components)
        return policy

    def attach(self, policy: TransformersPolicy, components: Iterable[Component]) -> None:
        """Attaches components to the loaded policy, with what they trained.

        Raises:
            UserError: the model does not fit them.
        """
        components = list(components)
        attach_components(components, policy)
        load_components(Path(self.model), components)


def settings_of(built: Algorithm | Pretraining) -> Trainer | Pretrainer:
    """Returns the settings of the loop that a built recipe is for."""
    return built.trainer if isinstance(built, Algorithm) else built.pretrainer


def open_model(
    path: str,
    recipe: str | None = None,
    sets: Sequence[str] = (),
    uses: Sequence[str] = (),
    allow_imports: bool = False,
) -> OpenedModel:
    """Finds a model and its recipe; loads no weights.

    Args:
        path: run folder, folder of a model, hub id or ``shipped:NAME``.
        recipe: name or path; default: the run's own recipe, that of the run that made the model if its folder has it,
            else ``egspo_sa``. A model of the hub says nothing: a recipe may name files whose code is run.
        sets, uses, allow_imports: as ``load_recipe``.

    Raises:
        UserError: there is no model at ``path``, or the recipe is broken.
    """
    run, model, is_run = Path(path), path, False
    remembered = str(run / TRAINED_WITH) if recipe is None and (run / TRAINED_WITH).is_file() else None
    recipe = recipe or remembered
    if (run / "recipe.gin").is_file():
        recipe = recipe or str(run / "recipe.gin")
        if not (run / "model").is_dir():
            raise CheckpointError(f"{path} has no finished model yet; finish it with: dlmrl train --resume {path}")
        model, is_run = str(run / "model"), True
    elif not path.startswith("shipped:") and not run.is_dir() and not _HUB_ID.fullmatch(path):
        raise CheckpointError(f"no run or model folder at {path}")
    loaded = load_recipe(recipe or "egspo_sa", sets=sets, uses=uses, allow_imports=allow_imports)
    return OpenedModel(loaded, model, is_run, remembered is not None)


@dataclass(frozen=True)
class OpenedDecoder:
    """A loaded model, and the sampler of a recipe that decodes from it."""

    policy: TransformersPolicy
    sampler: Sampler


def open_decoder(
    path: str,
    recipe: str | None = None,
    sets: Sequence[str] = (),
    uses: Sequence[str] = (),
    allow_imports: bool = False,
) -> OpenedDecoder:
    """Loads a model and the sampler that goes with it; arguments and errors as ``open_model``."""
    opened = open_model(path, recipe, sets, uses, allow_imports)
    built = opened.build()
    policy = opened.load(built, [built.sampler])
    require_finite(weights_of(policy), "the policy cannot be sampled from")
    return OpenedDecoder(policy, built.sampler)


def _check_no_code_inside(model: Path, built: Algorithm | Pretraining) -> None:
    """Checks that the recipe in a model folder, which may be a stranger's, runs no code out of that folder.

    Raises:
        RecipeError: it names a Python file there.
    """
    top = model.resolve()
    inside = [path for path in files_of(built) if path.suffix == ".py" and path.resolve().is_relative_to(top)]
    if inside:
        raise RecipeError(
            f"{model / TRAINED_WITH} runs {inside[0]}, code in the model's own folder; if you trust it, say so: "
            f"--recipe {shlex.quote(str(model / TRAINED_WITH))}"
        )
