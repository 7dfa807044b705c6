"""Writing policies: as transformers does, in their family's layout, or the adapter alone."""

from __future__ import annotations

from pathlib import Path

from dlmrl_kit.core.checksums import CHECKSUMS
from dlmrl_kit.policies.adapter import merged_state
from dlmrl_kit.policies.adapter_files import write_adapter
from dlmrl_kit.policies.checkpoint_files import quiet
from dlmrl_kit.policies.foreign import as_unquantised
from dlmrl_kit.policies.layout import Layout
from dlmrl_kit.policies.options import write_told
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

SHARD = "5GB"
"""Largest size of a file of weights."""


def save_transformers(policy: TransformersPolicy, folder: str | Path) -> None:
    """Writes a policy as a folder that transformers loads, without code of the checkpoint; an adapter is merged.

    The folder gets the weights, ``config.json``, generation settings and the tokenizer, and ``dlmrl_kit.json`` with
    what the caller said of the checkpoint. ``load_policy`` loads it too.

    Args:
        policy: is not changed, but for its model's configuration, which learns the mask and the shift of logits.
        folder: is made if it does not exist.
    """
    folder = _opened(folder)
    policy.model.config.mask_token_id = policy.mask_id
    if policy.shift_logits:
        policy.model.config.shift_logits = True
    _save_weights(policy, folder)
    policy.tokenizer.save_pretrained(folder)
    write_told(folder, policy.told)


def save_own_layout(policy: TransformersPolicy, folder: str | Path) -> None:
    """Writes a policy as its family publishes checkpoints; an adapter is merged.

    Tensors have the family's names, and ``config.json``, tokenizer and Python files are those of the checkpoint that
    the policy was loaded from. Tools for the family load the folder, and so does ``load_policy``. A policy of no such
    checkpoint is written as by ``save_transformers``.

    Args:
        policy: is not changed.
        folder: is made if it does not exist.
    """
    folder = _opened(folder)
    layout = policy.layout
    if layout is None:
        save_transformers(policy, folder)
        return
    if layout.renames:
        _save_renamed(policy, layout, folder)
    else:
        _save_weights(policy, folder)
        for path in folder.glob("*.json"):  # transformers' configuration; the family's is among the files below
            if not path.name.endswith(".index.json"):
                path.unlink()
    for name, content in layout.files.items():
        (folder / name).write_bytes(content)
    write_told(folder, policy.told)


def save_adapter(policy: TransformersPolicy, folder: str | Path) -> None:
    """Writes a policy's adapter as a folder that peft loads, with the tokenizer.

    Modules have the family's names, so that the adapter fits the checkpoint as it was published. ``load_policy`` loads
    the folder as its base with the adapter merged.

    Args:
        policy: is not changed.
        folder: is made if it does not exist.

    Raises:
        UserError: the policy has no adapter.
    """
    folder = _opened(folder)
    write_adapter(policy, folder)
    policy.tokenizer.save_pretrained(folder)
    write_told(folder, policy.told)


def _opened(folder: str | Path) -> Path:
    """Makes a folder to write to; checksums of files that were in it do not hold any more."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKSUMS).unlink(missing_ok=True)
    return folder


def _save_renamed(policy: TransformersPolicy, layout: Layout, folder: Path) -> None:
    """Writes the weights under the family's names."""
    from huggingface_hub import save_torch_state_dict

    state = merged_state(policy.model)
    head, embeddings = policy.model.get_output_embeddings(), policy.model.get_input_embeddings()
    if head.weight is embeddings.weight:  # not where config.json says so of a checkpoint that has a head of its own
        state.pop("lm_head.weight")  # a file holds it once
    renamed = {layout.rename(name): tensor for name, tensor in state.items()}
    save_torch_state_dict(renamed, folder, max_shard_size=SHARD, metadata={"format": "pt"})


def _save_weights(policy: TransformersPolicy, folder: Path) -> None:
    """Writes the weights and the configuration as transformers does."""
    # Tensors that were renamed on loading would be named back under a config.json that does not fit them.
    renamed = policy.layout is not None and policy.layout.renames
    state = merged_state(policy.model)
    if policy.layout is not None:
        state = policy.layout.stored(state)
    with quiet(), as_unquantised(policy.model):
        policy.model.save_pretrained(folder, state_dict=state, max_shard_size=SHARD, save_original_format=not renamed)
