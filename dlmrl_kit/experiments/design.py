"""The design of an ablation: a base recipe, and variants of it that differ in one component.

It is made before anything runs. It resolves the recipe of every run, and verifies that each variant differs from the
base only in the swapped slot and the components that belong to it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.core.version import VERSION
from dlmrl_kit.experiments.difference import Difference, compare, filling, namesakes
from dlmrl_kit.experiments.partial_settings import load_what_concerns, seed_key_of, texts_of_seeds
from dlmrl_kit.loggers.metrics_csv import MetricsCSV
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.recipe.overrides import place_of_use
from dlmrl_kit.recipe.where import StatementError

BASE = "base"

_CAUTIONS = {
    "sampler": "the sampler also decodes the held-out examples, so accuracies differ before training, too; "
    "dlmrl eval RUN/model --recipe OUT/recipes/base.gin decodes any run's model with the base recipe's sampler",
    "task": "variants with different tasks are measured on different examples",
    "policy": "variants with different policies start from different models",
    "trainer": "a trainer holds the training settings: variants may differ in more than one setting",
}


@dataclass(frozen=True)
class Variant:
    """The base or one variant of an ablation.

    Attributes:
        name: ``"base"``, or the swap: ``"selector=UniformSteps"``.
        folder: the name as one for files.
        kind: the swapped slot; "" for the base.
        recipe: the resolved recipe, with the first seed.
        seed_key: the parameter that holds the seed: ``"Trainer.seed"``.
        texts: the text of the resolved recipe, by seed.
        skipped: settings of the command line that concern none of its components.
        updates: training updates of a run.
        difference: from the base; None for the base itself.
    """

    name: str
    folder: str
    kind: str
    recipe: Recipe
    seed_key: str
    texts: dict[int, str]
    skipped: tuple[str, ...] = ()
    updates: int = 0
    difference: Difference | None = None


@dataclass(frozen=True)
class Design:
    """An ablation before it runs.

    Attributes:
        recipe: name of the base recipe.
        variants: the base first, then the variants.
        seeds: of the runs of each variant.
        allow_imports: whether recipes may run import statements.
        notes: what the user should know before the runs start.
    """

    recipe: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    allow_imports: bool = False
    notes: list[str] = field(default_factory=list)

    def label(self, name: str) -> str:
        """Writes the name of a variant for people; that of the base says what it has in the swapped slots."""
        kinds = dict.fromkeys(v.kind for v in self.variants if v.kind)
        own = ", ".join(filling(self.variants[0].recipe, kind) for kind in kinds)
        return f"{name} ({own})" if name == BASE else name

    def to_json(self) -> dict[str, Any]:
        """Returns what identifies the ablation, for JSON: version, seeds and resolved recipes."""
        return {
            "dlmrl_kit": VERSION,
            "recipe": self.recipe,
            "seeds": list(self.seeds),
            "variants": {
                v.name: {"folder": v.folder, "seed": v.seed_key, "recipe": v.texts[self.seeds[0]].splitlines()}
                for v in self.variants
            },
        }


def make_design(
    recipe: str | os.PathLike[str],
    swaps: Iterable[str],
    *,
    seeds: int,
    sets: Iterable[str] = (),
    uses: Iterable[str] = (),
    allow_imports: bool = False,
) -> Design:
    """Loads and builds the base recipe and every variant, and verifies that only the swapped component differs.

    Args:
        recipe: name or path.
        swaps: such as ``"selector=UniformSteps,FirstK"``; each name makes a variant, but the base's own is left out.
        seeds: number of runs of each variant, with seeds 0, 1, ...
        sets, uses, allow_imports: as ``load_recipe``, for all variants. A setting of a component that only some
            variants have is applied to those.

    Raises:
        UserError: a variant cannot be loaded or built, or differs from the base in more than the swap; names it.
    """
    if seeds < 1:
        raise RecipeError(f"an ablation needs at least one seed, got {seeds}")
    pairs = parse_swaps(swaps)
    loader = _Loader(recipe, tuple(uses), tuple(sets), range(seeds), allow_imports)
    base = loader.variant(BASE, "")
    found, notes = {BASE: base}, []
    for kind, name in pairs:
        variant = loader.variant(f"{kind}={name}", kind)
        if variant.name == filling(base.recipe, kind):
            notes.append(f"{variant.name} is the base recipe's own, and is not run twice")
        else:
            found.setdefault(variant.name, variant)
    if len(found) == 1:
        raise RecipeError(f"nothing to compare: {'; '.join(notes)}")
    loader.check_all_used(found.values())
    variants = tuple(_checked(variant, base) for variant in _with_folders(found.values()))
    notes += [*base.recipe.notes, *(note for variant in variants[1:] for note in _notes(variant, base))]
    notes += _partial_settings(loader.sets, variants)
    notes += [f"{kind}: {_CAUTIONS[kind]}" for kind in dict.fromkeys(v.kind for v in variants) if kind in _CAUTIONS]
    return Design(base.recipe.name, variants, tuple(range(seeds)), allow_imports, notes)


def parse_swaps(options: Iterable[str]) -> list[tuple[str, str]]:
    """Reads ``--swap`` options as pairs (kind, component), in order and each once.

    Raises:
        RecipeError: an option is not of the form ``KIND=A,B``, or there is none.
    """
    found: dict[tuple[str, str], None] = {}
    for option in options:
        kind, equals, names = (part.strip() for part in option.partition("="))
        components = [name.strip() for name in names.split(",")]
        if not kind or not equals or not all(components):
            raise RecipeError(
                f"--swap {option}: write --swap KIND=A,B, for example --swap selector=UniformSteps,FirstK"
            )
        found |= {(kind, name): None for name in components}
    if not found:
        raise RecipeError("nothing to compare: give at least one --swap KIND=A,B")
    return list(found)


class _Loader:
    """Loads variants. A ``--set`` that concerns no component of a variant is left out for that variant."""

    def __init__(
        self,
        source: str | os.PathLike[str],
        uses: tuple[str, ...],
        sets: tuple[str, ...],
        seeds: Sequence[int],
        imports: bool,
    ) -> None:
        self.source, self.uses, self.seeds, self.imports = source, uses, seeds, imports
        self.sets = sets
        self.refused: dict[str, RecipeError] = {}

    def variant(self, name: str, kind: str) -> Variant:
        """Resolves the recipe of a variant, or of the base if ``kind`` is "", for every seed.

        Raises:
            UserError: the recipe cannot be loaded, or is not for training; names the variant.
        """
        try:
            return self._variant(name, kind)
        except StatementError as error:
            # The user wrote --swap, but the recipe was loaded with --use, which the message would name.
            reason = error.reason if error.where == place_of_use(name) else str(error)
            raise RecipeError(f"{name}: {reason}") from error
        except UserError as error:
            raise RecipeError(f"{name}: {error}") from error

    def _variant(self, name: str, kind: str) -> Variant:
        uses = (*self.uses, *([name] if kind else []))
        plain, sets, idle = load_what_concerns(self.source, uses, self.sets, allow_imports=self.imports)
        self.refused |= {text: self.refused.get(text, error) for text, error in idle.items()}
        if plain.root != "Algorithm":
            raise RecipeError(f"{plain.name} is a recipe for {plain.root}, not for training")
        if not any(issubclass(block.cls, MetricsCSV) for block in plain.blocks):
            raise RecipeError("an ablation reads metrics.csv, which no logger of this recipe writes: add MetricsCSV")
        seed_key = seed_key_of(plain)
        seeded = (*sets, f"{seed_key}={self.seeds[0]}")
        recipe = load_recipe(self.source, uses=uses, sets=seeded, allow_imports=self.imports)
        canonical = filling(recipe, kind) if kind else name
        skipped = tuple(text for text in self.sets if text not in sets)
        texts = texts_of_seeds(recipe, seed_key, self.seeds)
        return Variant(canonical, "", kind, recipe, seed_key, texts, skipped)

    def check_all_used(self, variants: Iterable[Variant]) -> None:
        """Checks that every setting concerns at least one variant.

        Raises:
            RecipeError: a setting concerns none.
        """
        variants = list(variants)
        for text, error in self.refused.items():
            if all(text in variant.skipped for variant in variants):
                raise RecipeError(f"{error}; no variant uses it either")


def _with_folders(variants: Iterable[Variant]) -> list[Variant]:
    taken: set[str] = set()
    named = []
    for variant in variants:
        stem = re.sub(r"[^\w.+]+", "-", variant.name)
        folder = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, 1000))) if n.lower() not in taken)
        taken.add(folder.lower())
        named.append(replace(variant, folder=folder))
    return named


def _notes(variant: Variant, base: Variant) -> list[str]:
    own = [note for note in variant.recipe.notes if note not in base.recipe.notes]
    own += namesakes(base.recipe, variant.recipe)
    return [f"{variant.name}: {note}" for note in own]


def _partial_settings(sets: Iterable[str], variants: Iterable[Variant]) -> list[str]:
    """Writes a note on each setting that does not concern all variants."""
    variants = list(variants)
    users = {text: [v.name for v in variants if text not in v.skipped] for text in sets}
    return [
        f"--set {text} is for {', '.join(names)} only" for text, names in users.items() if len(names) < len(variants)
    ]


def _checked(variant: Variant, base: Variant) -> Variant:
    """Compares a variant with the base and builds it once; returns it with the difference and its updates."""
    difference = compare(base.recipe, variant.recipe, variant.kind) if variant.kind else None
    if difference is not None and difference.unwanted:
        raise RecipeError(
            f"{variant.name} differs from the base in more than its {variant.kind}: {difference.unwanted}"
        )
    try:
        algorithm = variant.recipe.build_algorithm()
    except UserError as error:
        raise RecipeError(f"{variant.name}: {error}") from error
    return replace(variant, updates=algorithm.trainer.updates, difference=difference)
