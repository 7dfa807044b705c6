"""Computes again what a sampler recorded of single actions, and finds where the two differ most."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.finite import distance
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    PROMPT_IDS,
    PROMPT_MASK,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_ACCEPTED,
    STEP_STATE_IDS,
    STEP_VALID,
    TOKEN_COMMIT_RANK,
    Key,
)
from dlmrl_kit.core.policy import Policy, completion_features
from dlmrl_kit.core.trajectory import committed_at
from dlmrl_kit.likelihoods.steps import Replay, pack, replay
from dlmrl_kit.samplers.base import Decision, Sampler, View
from dlmrl_kit.samplers.mask import logit_pieces
from dlmrl_kit.samplers.recorder import Recorder

NEEDED: tuple[Key, ...] = (
    PROMPT_IDS,
    PROMPT_MASK,
    COMPLETION_IDS,
    COMMIT_STEP,
    STEP_VALID,
    TOKEN_COMMIT_RANK,
    STEP_STATE_IDS,
    STEP_ACCEPTED,
)
"""What states and actions are rebuilt from."""


@dataclass(frozen=True)
class Actions:
    """R actions of a batch of trajectories.

    Attributes:
        sample: int64 [R], row of the trajectory.
        step: int64 [R].
    """

    sample: Tensor
    step: Tensor

    def __len__(self) -> int:
        return len(self.sample)

    def at(self, index: Tensor | slice) -> Actions:
        """Returns some of the actions."""
        return Actions(self.sample[index], self.step[index])

    def of(self, trajectory: TensorDictBase) -> TensorDictBase:
        """Returns a batch [R] with the trajectory of each action, in which that action alone is selected."""
        batch = trajectory.select(*NEEDED, strict=False)[self.sample]
        batch.set(SELECTED_STEP, self.step[:, None])
        return batch.set(SELECTED_WEIGHT, torch.ones_like(self.step[:, None], dtype=torch.float64))


def all_actions(trajectory: TensorDictBase) -> Actions:
    """Lists every action of a batch of trajectories, sample by sample."""
    sample, step = trajectory[STEP_VALID].nonzero(as_tuple=True)
    return Actions(sample, step)


def recomputed(batch: TensorDictBase, policy: Policy, sampler: Sampler, keys: Collection[Key]) -> dict[Key, Tensor]:
    """Computes what the sampler would have recorded of the selected action of each row, without gradients.

    Args:
        batch: [R], of ``Actions.of``.
        policy: the denoiser.
        sampler: how the actions were drawn.
        keys: of ``samplers.recorder.FOLLOWING``.

    Returns:
        [R] for keys of steps, [R, L] for keys of tokens, 0 where the action commits none.
    """
    return _as_recorded(replay(batch, policy.mask_id), policy, sampler, keys)


def of_selection(batch: TensorDictBase, policy: Policy, sampler: Sampler, keys: Collection[Key]) -> dict[Key, Tensor]:
    """Computes what the sampler would have recorded of all selected steps, in one forward and without gradients.

    Args:
        batch: [B], trajectories with a selection.
        policy: the denoiser.
        sampler: how the actions were drawn.
        keys: of ``samplers.recorder.FOLLOWING``.

    Returns:
        [B, K] for keys of steps, [B, K, C] for keys of tokens, as ``pack_tokens``; 0 where the weight is.
    """
    steps = replay(batch, policy.mask_id)
    found, committed = _as_recorded(steps, policy, sampler, keys), steps.decision.committed
    for key in [key for key in keys if key[0] == "token"]:
        found[key] = pack(found[key][committed], committed, sampler.max_commits)
    return {key: steps.scatter(value) for key, value in found.items()}


def _as_recorded(steps: Replay, policy: Policy, sampler: Sampler, keys: Collection[Key]) -> dict[Key, Tensor]:
    """Returns what is recorded of R replayed steps: [R] for keys of steps, [R, L] for keys of tokens."""
    recorder = Recorder(policy, torch.zeros_like(steps.decision.committed), 1, keys)
    with torch.no_grad():
        for rows, view, decision in views(steps, policy, sampler):
            recorder.put_step(0, rows, view, decision, sampler.action_log_prob(view, decision))
    found = {key: recorder.out[key] for key in keys}
    return {key: value[:, 0] if key[0] == "step" else value for key, value in found.items()}


def views(steps: Replay, policy: Policy, sampler: Sampler) -> Iterator[tuple[Tensor, View, Decision]]:
    """Predicts replayed steps; yields rows, what the sampler saw in them, and its decisions, in pieces that fit."""
    asked = sampler.asked_positions(policy, steps.prompt, steps.ids)
    prompt_ids, prompt_mask = steps.prompt[PROMPT_IDS], steps.prompt[PROMPT_MASK]
    features = completion_features(policy, prompt_ids, prompt_mask, steps.ids, asked)
    number = torch.arange(len(asked), device=asked.device)
    for rows, place in logit_pieces(asked.sum(-1), policy.vocab_size, policy.device):
        view = sampler.seen(policy, features[place], asked[rows], steps.prompt[rows])
        yield number[rows], view, steps.decision.at(rows)


@dataclass(frozen=True)
class Difference:
    """The largest difference of recorded and recomputed values of a key.

    Attributes:
        key: what is compared.
        size: the difference, in nats; infinite where one is not a number.
        sample, step: where it is.
        position: of the token; None for keys of steps.
        recorded, again: the two values.
        wrong, number: how many actions differ by more than is allowed, and how many were compared.
        samples: the samples with at least two actions, most of which differ by more.
    """

    key: Key
    size: float
    sample: int
    step: int
    position: int | None
    recorded: float
    again: float
    wrong: int
    number: int
    samples: int

    @property
    def where(self) -> str:
        """Says where it is."""
        place = f"sample {self.sample}, step {self.step}"
        return place if self.position is None else f"{place}, position {self.position}"


def differences(
    trajectory: TensorDictBase, actions: Actions, again: Mapping[Key, Tensor], allowed: float
) -> tuple[list[Difference], Tensor]:
    """Compares recorded with recomputed values.

    Args:
        trajectory: [B], what was recorded.
        actions: R of its actions.
        again: of ``recomputed``, for all of them.
        allowed: how far (nats) two values may be apart.

    Returns:
        A difference for each key, and which actions differ by more than is allowed in any: bool [R].
    """
    found, wrong = [], torch.zeros_like(actions.sample, dtype=torch.bool)
    for key, value in again.items():
        if key[0] == "step":
            recorded = trajectory[key][actions.sample, actions.step][:, None]
            value, used = value[:, None], torch.ones_like(recorded, dtype=torch.bool)
        else:
            recorded = trajectory[key][actions.sample]
            used = committed_at(trajectory[COMMIT_STEP][actions.sample], actions.step[:, None]).squeeze(1)
        apart = torch.where(used, distance(value, recorded), 0.0)
        differs = (apart > allowed).any(-1)
        wrong |= differs
        index = int(apart.amax(-1).argmax())
        place = int(apart[index].argmax())
        found.append(
            Difference(
                key,
                apart[index, place].item(),
                int(actions.sample[index]),
                int(actions.step[index]),
                None if key[0] == "step" else place,
                recorded[index, place].item(),
                value[index, place].item(),
                int(differs.sum()),
                len(actions),
                _mostly(actions.sample, differs),
            )
        )
    return found, wrong


def _mostly(sample: Tensor, differs: Tensor) -> int:
    """Counts the samples with at least two actions that differ, and more of them than actions that do not."""
    number = torch.bincount(sample)
    bad = torch.bincount(sample, weights=differs.double())
    return int(((bad >= 2) & (2 * bad > number)).sum())
