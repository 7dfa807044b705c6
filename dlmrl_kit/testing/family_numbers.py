"""Checks of what a family computes: logits, padding, asked positions, caches, decoding, precision, devices."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from dlmrl_kit.core.keys import (
    COMPLETION_IDS,
    PROMPT_IDS,
    PROMPT_MASK,
    SEED,
    SELECTED_LOG_PROB,
    STEP_LOG_PROB,
    STEP_VALID,
)
from dlmrl_kit.core.seeding import sample_seeds
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.policies.checkpoint_files import read_config
from dlmrl_kit.policies.loading import family_of
from dlmrl_kit.policies.saving import save_own_layout
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.entropy_bound_renoising import EntropyBoundRenoising
from dlmrl_kit.testing.core import fail
from dlmrl_kit.testing.family_case import FamilyCase
from dlmrl_kit.testing.family_tensors import cast, rewritten, same_tensors, tensors_of

LENGTHS = (11, 8, 13, 3, 1)
"""Tokens of rows, odd and even, one token alone among them; canvases come on top."""

COMPLETION = 10
"""Positions of a completion of a model without canvases."""


def rows(case: FamilyCase, policy: TransformersPolicy) -> tuple[Tensor, Tensor]:
    """Returns left-padded rows of different lengths, ids and mask [B, S]: random tokens, masks, garbage as padding."""
    lengths = torch.tensor(LENGTHS) + 2 * (case.canvas or 0)
    width = int(lengths.max())
    ids = _allowed(policy)[torch.randint(len(_allowed(policy)), (len(lengths), width))]
    mask = torch.arange(width) >= width - lengths[:, None]
    if case.mask_id is not None:
        ids = torch.where((torch.rand(ids.shape) < 0.4) & mask, policy.mask_id, ids)
    return ids, mask


def _allowed(policy: TransformersPolicy) -> Tensor:
    kept = [i for i in range(len(policy.tokenizer)) if i not in policy.forbidden_ids]
    return torch.tensor(kept, device=policy.device)


def expected(case: FamilyCase, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which positions can be predicted, bool [B, S], and the logits there [N, V], row by row."""
    able, found = torch.zeros_like(mask), []
    with torch.no_grad():
        for row, real in enumerate(mask):
            logits = case.logits(ids[row][real])
            there = ~logits.isnan().any(-1)
            able[row, real.nonzero().squeeze(-1)[there]] = True
            found.append(logits[there])
    return able, torch.cat(found)


def near(name: str, found: Tensor, wanted: Tensor, tolerance: float, what: str, fix: str) -> None:
    """Fails where two tensors are of another shape, or differ by more than a tolerance."""
    if found.shape != wanted.shape:
        fail(name, f"gives {what} of shape {tuple(found.shape)}, not {tuple(wanted.shape)}", fix)
    difference = (found - wanted).abs().max().item() if found.numel() else 0.0
    if not difference <= tolerance:
        fail(name, f"gives other {what}: they differ by {difference:.2e}, more than {tolerance:.0e}", fix)


def check_recognised(name: str, case: FamilyCase) -> None:
    """``config.json`` decides the family, and mask, ends, blocks and noise are those of the release."""
    if type(family_of(read_config(str(case.folder)))) is not case.family:
        fail(name, "is loaded by another family", "let recognises answer for this config.json alone")
    policy = case.load()
    facts = {
        "mask_id": (policy.mask_id if policy.noise == "mask" else None, case.mask_id),
        "eos_ids": (policy.eos_ids, case.eos_ids),
        "block_size": (policy.block_size, case.canvas or case.block_size),
    }
    for fact, (found, wanted) in facts.items():
        if found != wanted:
            fail(name, f"has {fact} = {found}, not {wanted}", "read it from config.json, the tokenizer or the release")


def check_logits(name: str, case: FamilyCase) -> None:
    """Every row alone, of odd and even length, has the logits of the independent model."""
    policy = case.load()
    ids, mask = rows(case, policy)
    for row, real in enumerate(mask):
        alone = ids[row][real][None]
        able, wanted = expected(case, alone, torch.ones_like(alone).bool())
        if wanted.numel() and wanted.std() < 0.3:
            fail(name, "has logits that are nearly uniform", "write larger weights, so that differences would be seen")
        with torch.no_grad():
            found = policy(alone, torch.ones_like(alone).bool(), able)
        near(
            name, found, wanted, case.tolerance, "logits", "load the same network: blocks, norms, positions, mask, head"
        )


def check_left_padding(name: str, case: FamilyCase) -> None:
    """Rows of different lengths in one batch, padded with garbage, have the logits that they have alone."""
    policy = case.load()
    ids, mask = rows(case, policy)
    able, wanted = expected(case, ids, mask)
    fix = "count positions from the first real token, and let nobody attend to padding"
    with torch.no_grad():
        near(name, policy(ids, mask, able), wanted, case.tolerance, "logits under padding", fix)


def check_asked_positions(name: str, case: FamilyCase) -> None:
    """Positions as a mask and as indices give the same logits; the head, with its transform, runs there alone."""
    policy = case.load()
    ids, mask = rows(case, policy)
    able, wanted = expected(case, ids, mask)
    body = set(policy.model.base_model.modules())
    seen: list[int] = []
    for part in policy.model.modules():
        if isinstance(part, nn.Linear) and part not in body:
            part.register_forward_hook(lambda _, args, out: seen.append(out.shape[:-1].numel()))
    asked = able & (torch.rand(able.shape) < 0.5)
    last = mask.shape[1] - 1 - torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0], [0, 0]])
    place = torch.full(able.shape, -1).masked_scatter(able, torch.arange(int(able.sum())))
    fix = "gather hidden states before the head"
    with torch.no_grad():
        near(name, policy(ids, mask, asked), wanted[asked[able]], case.tolerance, "logits at some positions", fix)
        picked = wanted[place.gather(1, last[: len(mask)])]
        near(name, policy(ids, mask, last), picked, case.tolerance, "logits at indices", fix)
        if set(seen) != {int(asked.sum()), last.numel()}:
            fail(name, f"runs its head on {sorted(set(seen))} positions, where {int(asked.sum())} are asked", fix)
        for empty in (policy(ids, mask, torch.zeros_like(able)), policy(ids[:0], mask[:0], able[:0])):
            near(name, empty, wanted[:0], 0, "logits where nothing is asked", "return no rows for no positions")


def check_features(name: str, case: FamilyCase) -> None:
    """What is computed at asked positions alone has the states and gradients of the whole sequence."""
    policy = case.load()
    if case.canvas is not None:
        return
    ids, mask = rows(case, policy)
    asked = mask & (torch.rand(mask.shape) < 0.3)
    row, column = asked.nonzero(as_tuple=True)
    whole, part = policy.hidden(ids, mask)[row, column], policy.hidden_at(ids, mask, row, column)
    fix = "let hidden_at be hidden at these places"
    near(name, part.detach(), whole.detach(), case.tolerance, "hidden states at asked positions", fix)
    weight = torch.randn(whole.shape)
    parameters = [p for _, p in policy.trainable()]
    one, other = (torch.autograd.grad((x * weight).sum(), parameters, allow_unused=True) for x in (whole, part))
    for a, b in zip(one, other, strict=True):
        if (a is None) != (b is None):
            fail(name, "gives other parameters a gradient at asked positions", fix)
        if a is not None and b is not None:
            near(name, b, a, 1e-4 * (1 + a.abs().max().item()), "gradients at asked positions", fix)


def sampler_of(case: FamilyCase) -> Sampler:
    """Returns a sampler that decodes random completions in blocks, of the model's kind."""
    if case.canvas is not None:
        return EntropyBoundRenoising(2 * case.canvas, case.canvas, steps=3, stop_at_eos=False)
    return ConfidenceThreshold(COMPLETION, case.block_size or 4, 0.9, threshold=0.3, stop_at_eos=False)


def prompts(case: FamilyCase, policy: TransformersPolicy) -> TensorDict:
    """Returns left-padded prompts without masks, with a seed for each."""
    lengths = torch.tensor(LENGTHS)
    ids = _allowed(policy)[torch.randint(len(_allowed(policy)), (len(lengths), max(LENGTHS)))]
    mask = torch.arange(max(LENGTHS)) >= max(LENGTHS) - lengths[:, None]
    return TensorDict({PROMPT_IDS: ids, PROMPT_MASK: mask, SEED: sample_seeds(len(lengths), "cpu", 0)}, [len(lengths)])


def check_exact_cache(name: str, case: FamilyCase) -> None:
    """What a rollout recorded, with whatever it reuses, is what full forwards say of its states."""
    policy, sampler = case.load(), sampler_of(case)
    found = sampler(prompts(case, policy), policy=policy)
    valid = found[STEP_VALID]
    steps = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    found["selected"] = TensorDict({"step": steps, "weight": valid.float()}, [len(valid)])
    again = StepLogProb()(found, policy=policy, sampler=sampler)[SELECTED_LOG_PROB].detach()
    fix = "reuse keys and values of what later tokens cannot change, and nothing else"
    near(name, again[valid], found[STEP_LOG_PROB][valid], 1e-4, "log-probabilities in a rollout", fix)


def check_generation(name: str, case: FamilyCase) -> None:
    """Greedy decoding gives, token by token, what an independent loop over whole rows does."""
    if case.mask_id is None:
        return  # open positions hold noise: see ``check_exact_cache``, and transformers' own generate
    policy = case.load()
    prompt = prompts(case, policy)[[0, 1, 3]]  # odd, whole blocks, less than a block
    size = case.block_size or 4
    for threshold in (0.95, 0.2):
        sampler = ConfidenceThreshold(COMPLETION, size, 0.0, threshold=threshold, stop_at_eos=False)
        found = sampler(prompt.clone(), policy=policy)[COMPLETION_IDS]
        for row in range(len(prompt)):
            start = prompt[PROMPT_IDS][row][prompt[PROMPT_MASK][row]]
            wanted = decoded(case, policy, start, size, threshold)
            if found[row].tolist() != wanted:
                fix = "count blocks, positions and forbidden tokens as the release does"
                fail(name, f"decodes {found[row].tolist()}, not {wanted}", fix)


def decoded(case: FamilyCase, policy: TransformersPolicy, start: Tensor, size: int, threshold: float) -> list[int]:
    """Decodes a completion block by block: all sure tokens of a block at once, or the surest; by the reference."""
    text = torch.cat([start, torch.full((COMPLETION,), policy.mask_id)])
    first = len(start) if case.block_size is None else len(start) // size * size
    for begin in range(first, len(text), size):
        block = range(begin, min(begin + size, len(text)))
        while open_ := [i for i in block if text[i] == policy.mask_id]:
            with torch.no_grad():
                logits = case.logits(text).clone()
            logits[:, list(policy.forbidden_ids)] = -torch.inf
            probability, token = logits.softmax(-1).max(-1)
            sure = [i for i in open_ if probability[i] >= threshold]
            for i in sure or [max(open_, key=lambda i: float(probability[i]))]:
                text[i] = token[i]
    return text[len(start) :].tolist()


def check_bfloat16(name: str, case: FamilyCase) -> None:
    """A checkpoint in bfloat16 is loaded and saved in it; its logits are those of float32 up to rounding."""
    with tempfile.TemporaryDirectory() as holder:
        folder = rewritten(case.folder, Path(holder) / "half", cast(tensors_of(case.folder), torch.bfloat16))
        half, whole = case.load(folder), case.load(folder, dtype="float32")
        ids, mask = rows(case, whole)
        able, _ = expected(case, ids, mask)
        save_own_layout(half, Path(holder) / "saved")
        lost = same_tensors(tensors_of(Path(holder) / "saved"), tensors_of(folder))
        with torch.no_grad():
            found, wanted = half(ids, mask, able).float(), whole(ids, mask, able)
    if half.model.dtype != torch.bfloat16 or whole.model.dtype != torch.float32:
        fail(name, "changes the precision of the weights", "keep the files' precision, unless dtype says another")
    if lost is not None:
        fail(name, f"saves another {lost} than it loaded in bfloat16", "write tensors in the precision of the files")
    # A router may choose another expert where two are close: most logits must agree, not all.
    error = (found - wanted).abs().median().item()
    if error > 0.1 * wanted.std().item():
        fail(name, f"is off by {error:.2f} in bfloat16", "compute norms, softmax and routers in float32")


def check_eager_attention(name: str, case: FamilyCase) -> None:
    """The other attention implementation that takes any mask, ``eager``, gives the same logits."""
    policy = case.load(attention="eager")
    ids, mask = rows(case, policy)
    able, wanted = expected(case, ids, mask)
    with torch.no_grad():
        near(name, policy(ids, mask, able), wanted, case.tolerance, "logits with eager attention", "pass the mask on")


def check_device(name: str, case: FamilyCase) -> None:
    """On a GPU, where there is one, the logits are those of the CPU."""
    if not torch.cuda.is_available():
        return
    here, there = case.load(), case.load().to("cuda")
    ids, mask = rows(case, here)
    able, wanted = expected(case, ids, mask)
    with torch.no_grad():
        found = there(ids.cuda(), mask.cuda(), able.cuda()).cpu()
    near(name, found, wanted, 1e-3, "logits on a GPU", "make tensors on the device of the inputs")


CHECKS = (
    check_recognised,
    check_logits,
    check_left_padding,
    check_asked_positions,
    check_features,
    check_exact_cache,
    check_generation,
    check_bfloat16,
    check_eager_attention,
    check_device,
)
