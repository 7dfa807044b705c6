"""Checks of the files of a family: pieces, ties, round trips, what was said, what is missing, and sizes alone."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.policies.checkpoint_files import read_config
from dlmrl_kit.policies.loading import family_of, load_policy
from dlmrl_kit.policies.options import TOLD, LoadOptions
from dlmrl_kit.policies.saving import save_own_layout, save_transformers
from dlmrl_kit.policies.skeleton import scaled_down, skeleton, small_policy
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.testing.core import fail
from dlmrl_kit.testing.family_case import FamilyCase
from dlmrl_kit.testing.family_numbers import expected, near, rows
from dlmrl_kit.testing.family_tensors import rewritten, same_tensors, tensors_of


def facts(policy: TransformersPolicy) -> dict[str, object]:
    """Returns what a checkpoint says besides its weights, by name."""
    return {
        "mask_id": policy.mask_id,
        "eos_ids": policy.eos_ids,
        "pad_id": policy.pad_id,
        "vocab_size": policy.vocab_size,
        "forbidden_ids": policy.forbidden_ids,
        "shift_logits": policy.shift_logits,
        "prefix_ids": policy.prefix_ids,
        "block_size": policy.block_size,
        "text": policy.tokenizer("12_:ab")["input_ids"],
    }


def check_round_trip(name: str, case: FamilyCase) -> None:
    """Loaded and saved, in its own layout every file is as it was, and in transformers' layout the policy is."""
    policy = case.load()
    with tempfile.TemporaryDirectory() as holder:
        own, native = Path(holder) / "own", Path(holder) / "native"
        save_own_layout(policy, own)
        save_transformers(policy, native)
        if (lost := same_tensors(tensors_of(own), tensors_of(case.folder))) is not None:
            fail(name, f"saves another {lost} than it loaded", "write every tensor under its name and precision")
        if case.own_layout:
            _check_kept(name, case.folder, own)
        for folder in (own, native):
            again = load_policy(folder)  # without being told anything again
            for fact, value in facts(again).items():
                if value != facts(policy)[fact]:
                    fail(name, f"has {fact} = {value} when it was saved, not {facts(policy)[fact]}", "save it, too")
            if (lost := same_tensors(dict(again.trainable()), dict(policy.trainable()))) is not None:
                fail(name, f"loads another {lost} than it saved", "write every tensor under its name and precision")
            same_logits(name, case, again, policy, "of what was saved")


def _check_kept(name: str, before: Path, after: Path) -> None:
    """Fails where a small file of a checkpoint is not as it was, or another was added."""
    small = {path.name for path in before.iterdir() if not _weights(path)}
    for file in sorted(small):
        if not (after / file).is_file() or (after / file).read_bytes() != (before / file).read_bytes():
            fail(name, f"does not write {file} as it came", "keep the small files in the family's layout")
    if added := {path.name for path in after.iterdir() if not _weights(path)} - small - {TOLD}:
        fail(name, f"writes {sorted(added)[0]}, which was not there", "write the family's files alone")


def _weights(path: Path) -> bool:
    return path.suffix == ".safetensors" or path.name.endswith(".index.json")


def same_logits(
    name: str, case: FamilyCase, one: TransformersPolicy, other: TransformersPolicy, what: str, tolerance: float = 0.0
) -> None:
    """Fails where two policies of a case differ in their logits."""
    ids, mask = rows(case, other)
    able, _ = expected(case, ids, mask)
    with torch.no_grad():
        near(name, one(ids, mask, able), other(ids, mask, able), tolerance, f"logits {what}", "compute the same")


def check_pieces(name: str, case: FamilyCase) -> None:
    """Weights in one file and in many pieces are the same model, and are saved with the same names."""
    state = tensors_of(case.folder)
    with tempfile.TemporaryDirectory() as holder:
        whole = rewritten(case.folder, Path(holder) / "whole", state)
        pieces = rewritten(case.folder, Path(holder) / "pieces", state, shard="4KB")
        if len(list(pieces.glob("*.safetensors"))) < 2 or len(list(whole.glob("*.safetensors"))) != 1:
            fail(name, "is too small to be cut", "write a larger checkpoint")
        same_logits(name, case, case.load(pieces), case.load(whole), "from pieces")


def check_tied_weights(name: str, case: FamilyCase) -> None:
    """Where the head may be the table of embeddings: it is one tensor, in the model, its gradient and the files."""
    if case.tied is None:
        return
    with tempfile.TemporaryDirectory() as holder:
        folder = Path(holder) / "tied"
        folder.mkdir()
        logits = case.tied(folder)
        policy = case.load(folder)
        ids, mask = rows(case, policy)
        row = ids[0][mask[0]][None]
        full = torch.ones_like(row).bool()
        with torch.no_grad():
            near(name, policy(row, full, full), logits(row[0]), case.tolerance, "logits with tied weights", _TIE)
        if policy.model.get_input_embeddings().weight is not policy.model.get_output_embeddings().weight:
            fail(name, "has two tensors for tied weights", _TIE)
        save_own_layout(policy, Path(holder) / "saved")
        if (lost := same_tensors(tensors_of(Path(holder) / "saved"), tensors_of(folder))) is not None:
            fail(name, f"saves another {lost} than it loaded", "write tied weights once")


_TIE = "pass tie_word_embeddings on"


def check_vocabulary(name: str, case: FamilyCase) -> None:
    """The mask and rows without a token are never committed; ends of a text may be."""
    policy = case.load()
    forbidden = {*policy.forbidden_ids}
    if missing := {policy.mask_id, *range(len(policy.tokenizer), policy.vocab_size)} - forbidden:
        fail(name, f"may commit {sorted(missing)[0]}", "forbid the mask and rows of the embedding that have no token")
    if wrong := forbidden & {*policy.eos_ids}:
        fail(name, f"forbids {sorted(wrong)[0]}, which ends a text", "allow every end")


def check_several_ends(name: str, case: FamilyCase) -> None:
    """Every end that ``generation_config.json`` lists ends a text, behind those of the release."""
    with tempfile.TemporaryDirectory() as holder:
        folder = rewritten(case.folder, Path(holder) / "ends", tensors_of(case.folder))
        path = folder / "generation_config.json"
        before = json.loads(path.read_text()) if path.is_file() else {}
        listed = before.get("eos_token_id", [])
        more = [*(listed if isinstance(listed, list) else [listed]), 5, 3]
        path.write_text(json.dumps({**before, "eos_token_id": more}))
        found = case.load(folder).eos_ids
    if set(found) != {*case.eos_ids, 5, 3} or found[0] != case.eos_ids[0]:
        fail(name, f"ends texts with {found}", "add what generation_config.json lists, and keep the first")


def check_what_was_said(name: str, case: FamilyCase) -> None:
    """What the caller said of a checkpoint is saved with it, and can be said anew."""
    policy = case.load(mask_id=5, forbidden_ids=(3, 7), shift_logits=True)
    with tempfile.TemporaryDirectory() as holder:
        for save in (save_own_layout, save_transformers):
            folder = Path(holder) / save.__name__
            save(policy, folder)
            again = load_policy(folder)
            if facts(again) != facts(policy) or not {3, 5, 7} <= {*again.forbidden_ids}:
                fail(name, "forgets what the caller said", "write it beside the weights")
            more = load_policy(folder, mask_id=6, forbidden_ids=(4,))
            if more.mask_id != 6 or not {3, 4, 6, 7} <= {*more.forbidden_ids}:
                fail(name, "does not let the caller say it anew", "take options over what was saved")


def check_every_tensor_counts(name: str, case: FamilyCase) -> None:
    """A tensor that is missing, left over, of another shape or not finite is refused by its name in the files."""
    state = tensors_of(case.folder)
    kinds = {".".join("*" if part.isdigit() else part for part in path.split(".")): path for path in state}
    with tempfile.TemporaryDirectory() as holder:
        folder = Path(holder)
        for number, path in enumerate(kinds.values()):
            if number % 3 == 0:
                less = {other: tensor for other, tensor in state.items() if other != path}
                _check_refused(name, case, folder, less, (path, "missing"))
                continue
            broken = state[path].clone()
            broken.view(-1)[-1] = (torch.nan, torch.inf)[number % 3 - 1]
            _check_refused(name, case, folder, {**state, path: broken}, (f"{path} has NaN or infinite values",))
        extra = {"extra.weight": torch.ones(2)}
        _check_refused(name, case, folder, {**state, **extra}, ("1 tensors are left over, among them extra.weight",))
        layer = {path: re.sub(r"\.\d+\.", ".46.", path, count=1) for path in state}
        later = {layer[path]: tensor.clone() for path, tensor in state.items() if layer[path] != path}
        _check_refused(name, case, folder, {**state, **later}, ("left over, among them", ".46."))


def _check_refused(
    name: str, case: FamilyCase, folder: Path, state: Mapping[str, Tensor], parts: tuple[str, ...]
) -> None:
    try:
        case.load(rewritten(case.folder, folder, state))
    except UserError as error:
        if "\n" in str(error) or str(folder) not in str(error) or any(part not in str(error) for part in parts):
            fail(name, f"refuses a broken file with {str(error)!r}", f"say {' ... '.join(parts)} in one line")
        return
    fail(name, f"loads a checkpoint of which should be said: {' ... '.join(parts)}", "refuse it by name")


def check_sizes_alone(name: str, case: FamilyCase) -> None:
    """``config.json`` is enough for a model of the checkpoint's sizes, and for a small one of its architecture."""
    config, options = read_config(str(case.folder)), LoadOptions(block_size=case.options.get("block_size"))
    policy = case.load()
    with torch.device("meta"):
        model = skeleton(config, options)
    found = {path: tuple(p.shape) for path, p in model.named_parameters()}
    if found != {path: tuple(p.shape) for path, p in policy.model.named_parameters()}:
        fail(name, "has other parameters by its config.json alone", "let empty_model build what load does")
    if family_of(scaled_down(config)) is not family_of(config):
        fail(name, "is of another family when it is scaled down", "recognise it by what does not depend on sizes")
    small = small_policy(config, options)
    parts = [{type(part).__name__ for part in one.model.modules()} for one in (small, policy)]
    if type(small) is not type(policy) or parts[0] != parts[1]:
        fail(name, "loses a kind of layer when it is scaled down", "add its sizes to policies/skeleton.py")


CHECKS = (
    check_round_trip,
    check_pieces,
    check_tied_weights,
    check_vocabulary,
    check_several_ends,
    check_what_was_said,
    check_every_tensor_counts,
    check_sizes_alone,
)
