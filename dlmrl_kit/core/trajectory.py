"""The trajectory: its keys, and the states rebuilt from (final tokens, step of commit).

Shape letters: B samples, P prompt positions, L completion positions, T denoising steps, K selected steps, C committed
positions of a step, V vocabulary, D levels of a tree. Steps are counted in the order they are taken, t = 0 .. T-1; the
state before step t is x_t, its action leads to x_{t+1}. Position i is masked in x_t iff ``commit_step[i] >= t``;
positions that were never committed (the end-of-text padding of a row that finished early) have ``commit_step = T``:
masked in every state visited.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Key


class KeySpec(NamedTuple):
    """Meaning of a trajectory key; ``shape`` in the letters of this module."""

    dtype: str
    shape: str
    meaning: str


KEYS: dict[Key, KeySpec] = {
    "prompt_ids": KeySpec("int64", "[B, P]", "left-padded prompt"),
    "prompt_mask": KeySpec("bool", "[B, P]", "False at padding"),
    "group": KeySpec("int64", "[B]", "index of the prompt a sample belongs to"),
    "example": KeySpec("int64", "[B]", "index of the puzzle in the task's split"),
    "seed": KeySpec("int64", "[B]", "seed of the sample's own random masks"),
    "iteration": KeySpec("int64", "[B]", "index of the pass over the rollout; set by the update"),
    "progress": KeySpec("float32", "[B]", "share of the run's updates that is done, in [0, 1)"),
    "completion_ids": KeySpec("int64", "[B, L]", "the final tokens"),
    "commit_step": KeySpec("int16", "[B, L]", "step at which each position was committed; T where it never was"),
    ("step", "valid"): KeySpec("bool", "[B, T]", "steps that happened"),
    ("step", "log_prob"): KeySpec("float32", "[B, T]", "behaviour log-probability of the step's action"),
    ("step", "entropy"): KeySpec(
        "float32", "[B, T]", "mean entropy (nats) of the behaviour distribution over the positions committed"
    ),
    ("step", "num_committed"): KeySpec("int64", "[B, T]", "positions committed"),
    ("step", "token_log_prob"): KeySpec("float32", "[B, T]", "its token part: the committed tokens, behaviour"),
    ("step", "model_log_prob"): KeySpec("float32", "[B, T]", "committed tokens at temperature 1, unfiltered"),
    ("step", "state_ids"): KeySpec("int32", "[B, T, L]", "the states x_t, of samplers that renoise"),
    ("step", "accepted"): KeySpec("bool", "[B, T, L]", "positions accepted, of samplers that renoise"),
    ("step", "greedy_ids"): KeySpec("int32", "[B, T, L]", "x_t filled greedily; -1 at steps that cannot be chosen"),
    ("step", "draft_ids"): KeySpec("int32", "[B, T, L]", "x_t with every masked position filled with the step's draws"),
    ("step", "reward"): KeySpec("float32", "[B, T]", "reward of the draft"),
    ("step", "advantage"): KeySpec("float32", "[B, T]", "advantage of every step, before steps are chosen"),
    ("token", "log_prob"): KeySpec("float32", "[B, L]", "behaviour log-probability of each token when committed"),
    ("token", "model_log_prob"): KeySpec("float32", "[B, L]", "the same at temperature 1, unfiltered"),
    ("token", "commit_rank"): KeySpec("int16", "[B, L]", "order of the draw within the step (PlackettLuceOrder)"),
    ("tree", "node"): KeySpec("int64", "[B, D]", "a sample's node at depth 1 .. D of its group's tree"),
    ("tree", "step"): KeySpec("int64", "[B, D]", "first step of each level: the steps that lead to depth 1 .. D"),
    "reward": KeySpec("float32", "[B]", "final reward"),
    "advantage": KeySpec("float32", "[B]", "sequence-level advantage"),
    ("token", "advantage"): KeySpec("float32", "[B, L]", "token-level advantage"),
    ("selected", "step"): KeySpec("int64", "[B, K]", "the steps a selector chose"),
    ("selected", "weight"): KeySpec("float32", "[B, K]", "importance weight of each; 0 pads short rows"),
    ("selected", "correction"): KeySpec(
        "float32", "[B, K]", "factor of the weight for samples of another distribution than the policy"
    ),
    ("selected", "end"): KeySpec("int64", "[B, K]", "a slot stands for the steps from step to before end"),
    ("selected", "reward"): KeySpec("float32", "[B, K]", "reward of the one-step greedy completion of x_t"),
    ("selected", "advantage"): KeySpec("float32", "[B, K]", "advantage of each chosen step"),
    ("selected", "log_prob"): KeySpec("float32", "[B, K]", "recomputed under the current policy, with gradient"),
    ("selected", "old_log_prob"): KeySpec("float32", "[B, K]", "under the policy that generated the trajectory"),
    ("selected", "ref_log_prob"): KeySpec("float32", "[B, K]", "under the frozen reference policy"),
    ("selected", "entropy"): KeySpec("float32", "[B, K]", "as ('step', 'entropy'), current policy, with gradient"),
    ("selected", "token_mask"): KeySpec("bool", "[B, K, C]", "which of the C entries hold a scored token"),
    ("selected", "token_log_prob"): KeySpec("float32", "[B, K, C]", "of each scored token, with gradient"),
    ("selected", "old_token_log_prob"): KeySpec("float32", "[B, K, C]", "the same under the behaviour policy"),
    ("selected", "ref_token_log_prob"): KeySpec("float32", "[B, K, C]", "the same under the reference policy"),
    ("selected", "value"): KeySpec("float32", "[B, K, L]", "value of each token of a slot, by position, with gradient"),
    ("selected", "old_value"): KeySpec("float32", "[B, K, L]", "the same before the update"),
    ("selected", "return"): KeySpec("float32", "[B, K, L]", "what the value of each token should be"),
    ("selected", "token_advantage"): KeySpec("float32", "[B, K, L]", "advantage of each token of a slot, by position"),
    ("sequence", "length"): KeySpec("int64", "[B]", "completion positions that count, by default up to end of text"),
    ("selected", "distribution"): KeySpec(
        "float32", "[B, K, C, V]", "log-probabilities at the committed positions; lives for one micro-batch only"
    ),
    ("selected", "ref_distribution"): KeySpec("float32", "[B, K, C, V]", "the same under the reference policy"),
}


def masked_at(commit_step: Tensor, step: Tensor) -> Tensor:
    """Which positions are masked in x_t.

    Args:
        commit_step: integer [B, L].
        step: int64 [B, K], the t of each asked state.

    Returns:
        bool [B, K, L].
    """
    return commit_step[:, None, :] >= step[:, :, None]


def committed_at(commit_step: Tensor, step: Tensor) -> Tensor:
    """Which positions step t commits: bool [B, K, L] from integer [B, L] and int64 [B, K]."""
    return commit_step[:, None, :] == step[:, :, None]


def state_at(completion_ids: Tensor, commit_step: Tensor, step: Tensor, mask_id: int) -> Tensor:
    """The states x_t: int64 [B, K, L] from int64 [B, L], integer [B, L] and int64 [B, K]."""
    return completion_ids[:, None, :].expand(-1, step.shape[1], -1).masked_fill(masked_at(commit_step, step), mask_id)


def states(tensordict: TensorDictBase, step: Tensor, mask_id: int) -> Tensor:
    """The states x_t of a trajectory, stored or rebuilt: int64 [B, K, L] for int64 [B, K], t up to T."""
    tokens, stored = tensordict["completion_ids"], tensordict.get(("step", "state_ids"), None)
    if stored is None:
        return state_at(tokens, tensordict["commit_step"], step, mask_id)
    happened = step < num_valid(tensordict)[:, None]
    found = gather_steps(stored, step.clamp(max=stored.shape[1] - 1)).long()
    return torch.where(happened[..., None], found, tokens[:, None, :])


def progress(tensordict: TensorDictBase, step: Tensor) -> dict[str, Tensor]:
    """What a state of a renoising sampler is besides its tokens: ``open`` bool [B, K, L], ``steps_in_block`` [B, K].

    Empty for samplers that fill masks, whose states are tokens alone. ``step``: int64 [B, K].
    """
    if tensordict.get(("step", "state_ids"), None) is None:
        return {}
    still_open = masked_at(tensordict["commit_step"], step)
    last = tensordict["commit_step"][:, None, :].long().masked_fill(still_open, -1).amax(-1)
    return {"open": still_open, "steps_in_block": step - 1 - last}


def gather_steps(values: Tensor, step: Tensor) -> Tensor:
    """``values[b, step[b, k], ...]``: [B, K, ...] from [B, T, ...] and int64 [B, K]."""
    index = step.reshape(*step.shape, *([1] * (values.dim() - 2))).expand(*step.shape, *values.shape[2:])
    return values.gather(1, index)


def num_valid(tensordict: TensorDictBase) -> Tensor:
    """Number of steps that happened in each row: int64 [B] (steps happen from 0 on, without gaps)."""
    return tensordict["step", "valid"].sum(-1)


def every_step(tensordict: TensorDictBase) -> TensorDictBase:
    """A copy with all T steps selected, weight 1 where they happened."""
    valid = tensordict["step", "valid"]
    step = torch.arange(valid.shape[1], device=valid.device).expand_as(valid).masked_fill(~valid, 0)
    batch = tensordict.copy()
    return batch.set(("selected", "step"), step).set(("selected", "weight"), valid.to(torch.float64))


def keys_table() -> str:
    """The keys as a Markdown table, as ``docs/trajectory.md`` shows it."""
    names = {key: f'`"{key}"`' if isinstance(key, str) else f"`{key}`".replace("'", '"') for key in KEYS}
    rows = [f"| {names[key]} | {spec.dtype} {spec.shape} | {spec.meaning} |" for key, spec in KEYS.items()]
    return "\n".join(["| key | dtype, shape | meaning |", "|---|---|---|", *rows])
