"""Writes what a finished run leaves for others (merged model, adapter, model cards), and uploads it to the hub."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from dlmrl_kit.core.checksums import write_checksums
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.files import atomic_folder
from dlmrl_kit.core.results import RunResult
from dlmrl_kit.core.run_folder import RECIPE
from dlmrl_kit.policies.options import write_told
from dlmrl_kit.policies.saving import save_adapter, save_own_layout
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.tasks.base import BaseTask
from dlmrl_kit.training.card_decoding import decoding_without_the_kit
from dlmrl_kit.training.model_card import model_card
from dlmrl_kit.training.start import save_components

TRAINED_WITH = "trained_with.gin"
"""File in a model folder: the recipe of the run that made the model, whose task and sampler evaluate it."""

MODEL, ADAPTER = "model", "adapter"
"""Folders of a run: the model in the layout of its family, and the adapter if it was trained with LoRA."""
BEST = "best_"
"""What the folders of the best model begin with."""


MERGED = "Without dlmrl_kit: merge the adapter into its base first; the card of the merged model has the code."
"""What the card of an adapter says in place of code."""


def export(
    policy: TransformersPolicy,
    result: RunResult,
    recipe: str,
    task: BaseTask,
    sampler: Sampler,
    components: Iterable[Component] = (),
    *,
    prefix: str = "",
) -> None:
    """Writes ``model/``, with any adapter merged, and ``adapter/`` if there is one, each with a model card.

    Args:
        policy: the trained policy.
        result: of the run; says where its folder is.
        recipe: name of the recipe.
        task: the policy was trained on.
        sampler: it was trained with, by which the card decodes.
        components: modules that they trained go into ``model/components.safetensors``.
        prefix: what the names of the folders begin with.
    """
    folders = {MODEL: save_own_layout}
    if policy.adapter is not None:
        folders[ADAPTER] = save_adapter
    for name, save in folders.items():
        adapter = name == ADAPTER
        decoding = MERGED if adapter else decoding_without_the_kit(policy, sampler)
        about = {"recipe": recipe, "task": task.label(), "base": policy.name}
        card = model_card(result, **about, adapter=adapter, decoding=decoding)
        with atomic_folder(result.folder / f"{prefix}{name}") as temporary:
            save(policy, temporary)
            if name == MODEL:
                save_components(temporary, components)
            write_told(temporary, policy.told, decoding=result.after.decoding)
            remember_recipe(temporary, result.folder)
            write_checksums(temporary)
            (temporary / "README.md").write_text(card, encoding="utf-8")  # for readers, who may change it


def remember_recipe(model: Path, run: Path) -> None:
    """Writes the recipe of a run folder, if it has one, into the folder of a model that it made."""
    stored = run / RECIPE
    if stored.is_file():
        (model / TRAINED_WITH).write_text(stored.read_text(encoding="utf-8"), encoding="utf-8")


def check_hub(repo: str) -> None:
    """Refuses an upload that cannot work, before anything is trained.

    Raises:
        UserError: ``repo`` is no repository id, or nobody is logged in.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {repo!r} is no repository id (user/name): {error}") from error
    if not get_token():
        raise UserError("--push-to-hub needs a token of the Hugging Face hub: run 'hf auth login', or set HF_TOKEN")


def push(folder: Path, repo: str) -> str:
    """Uploads a finished run's model to the hub, with its adapter in the folder ``adapter/``.

    A repository that does not exist is created as a private one.

    Args:
        folder: the run folder.
        repo: ``user/name``.

    Returns:
        The repository's address.

    Raises:
        UserError: the upload failed; the run is complete nonetheless.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    message = f"Trained by dlmrl_kit ({folder.name})"
    try:
        address = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder / MODEL, commit_message=message)
        if (folder / ADAPTER).is_dir():
            api.upload_folder(repo_id=repo, folder_path=folder / ADAPTER, path_in_repo=ADAPTER, commit_message=message)
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        again = f"dlmrl train --resume {shlex.quote(str(folder))} --push-to-hub {repo}"
        raise UserError(
            f"the upload to {repo} failed: {str(error).strip() or type(error).__name__}; the run is complete in "
            f"{folder}, upload it later with: {again}"
        ) from error
    return str(address)
