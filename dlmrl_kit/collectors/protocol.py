"""The messages of served rollouts: what an engine is asked and what it answers, as JSON (docs/served-rollouts.md).

Numbers are written so that they are read back bit for bit. What is not of this form is refused with the place of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.collectors.base import Sampling
from dlmrl_kit.core.component import settings
from dlmrl_kit.core.errors import TrainingError
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    GROUP,
    KEYS,
    PROMPT_IDS,
    PROMPT_MASK,
    SEED,
    STEP_DRAFT_IDS,
    STEP_ENTROPY,
    STEP_GREEDY_IDS,
    STEP_LOG_PROB,
    STEP_MARGIN,
    STEP_MODEL_ENTROPY,
    STEP_MODEL_LOG_PROB,
    STEP_NUM_COMMITTED,
    STEP_TOKEN_LOG_PROB,
    STEP_VALID,
    TOKEN_COMMIT_RANK,
    TOKEN_LOG_PROB,
    TOKEN_MODEL_LOG_PROB,
    Key,
)
from dlmrl_kit.core.policy import Policy, Vocabulary
from dlmrl_kit.core.validate import clipped
from dlmrl_kit.samplers.mask import StateScoreSampler

PROTOCOL = 1
"""Version of the messages."""
ORDER_LOG_PROB = "order_log_prob"
"""The part of an action's log-probability that is not that of its tokens: why these positions were committed."""
FIELDS: dict[Key, str] = {
    COMPLETION_IDS: "tokens",
    COMMIT_STEP: "commit_step",
    STEP_LOG_PROB: "log_prob",
    STEP_ENTROPY: "entropy",
    TOKEN_LOG_PROB: "token_log_prob",
    STEP_TOKEN_LOG_PROB: "step_token_log_prob",
    STEP_MODEL_LOG_PROB: "step_model_log_prob",
    STEP_MODEL_ENTROPY: "step_model_entropy",
    STEP_MARGIN: "step_margin",
    TOKEN_MODEL_LOG_PROB: "token_model_log_prob",
    TOKEN_COMMIT_RANK: "commit_rank",
    STEP_GREEDY_IDS: "greedy_ids",
    STEP_DRAFT_IDS: "draft_ids",
}
"""Keys of a trajectory by the name of their field in a completion."""
ALWAYS: tuple[Key, ...] = (COMPLETION_IDS, COMMIT_STEP, STEP_LOG_PROB, STEP_ENTROPY, TOKEN_LOG_PROB)
"""What every completion must have; the engine is asked for the others."""
DERIVED: tuple[Key, ...] = (STEP_VALID, STEP_NUM_COMMITTED)
"""What follows from the commit steps."""
ROUNDING = 1e-2
"""How far (nats) the parts of a log-probability may be from the whole; training.guard compares it more closely."""


def described(sampling: Sampling, vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns the settings that samples depend on besides weights, as JSON: those of sampler, cache and vocabulary."""
    return {
        "sampler": _plain(sampling.sampler),
        "cache": _plain(sampling.cache),
        "precision": sampling.precision,
        "vocabulary": {
            "size": vocabulary.vocab_size,
            "mask_id": vocabulary.mask_id,
            "eos_ids": list(vocabulary.eos_ids),
            "filler_id": vocabulary.filler_id,
            "forbidden_ids": sorted(vocabulary.forbidden_ids),
        },
    }


def _plain(value: object) -> Any:
    """Returns a setting as JSON; components are their name with their settings."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return {"name": type(value).__name__} | {name: _plain(part) for name, part in settings(value).items()}


def difference_of(wanted: Any, given: Any, path: str = "") -> str:
    """Says where two JSON values differ first: ``sampler.temperature is 1.0, not 0.9``; "" if they are equal."""
    if isinstance(wanted, dict) and isinstance(given, dict):
        for name in (*wanted, *(name for name in given if name not in wanted)):
            if name not in given or name not in wanted:
                return f"{path}{name} is {'missing' if name in wanted else 'not a setting here'}"
            if found := difference_of(wanted[name], given[name], f"{path}{name}."):
                return found
        return ""
    return "" if wanted == given else f"{path.removesuffix('.')} is {_short(given)}, not {_short(wanted)}"


def _short(value: object) -> str:
    return clipped(repr(value), 60)


def question(prompts: TensorDictBase, weights: str, sampling: Mapping[str, Any], keys: Iterable[Key]) -> dict[str, Any]:
    """Returns the request for the completions of prompts.

    Args:
        prompts: [B], with ``prompt_ids``, ``prompt_mask``, ``seed`` and ``group``.
        weights: name of the weights to sample with.
        sampling: of ``described``.
        keys: to record.
    """
    rows = zip(*(prompts[key].tolist() for key in (PROMPT_IDS, PROMPT_MASK, SEED, GROUP)), strict=True)
    return {
        "protocol": PROTOCOL,
        "weights": weights,
        "sampling": sampling,
        "record": [FIELDS[key] for key in keys],
        "prompts": [
            {"tokens": [i for i, real in zip(ids, mask, strict=True) if real], "seed": str(seed), "group": group}
            for ids, mask, seed, group in rows
        ],
    }


def completions(trajectory: TensorDictBase, keys: Collection[Key]) -> list[dict[str, Any]]:
    """Returns trajectories [B] as JSON, with the fields of ``keys`` and the log-probability of the order."""
    valid, steps = trajectory[STEP_VALID], trajectory[STEP_VALID].shape[1]
    order = trajectory[STEP_LOG_PROB] - trajectory[STEP_TOKEN_LOG_PROB]
    columns = {FIELDS[key]: trajectory[key].tolist() for key in keys} | {ORDER_LOG_PROB: order.tolist()}
    of_steps = {ORDER_LOG_PROB} | {FIELDS[key] for key in keys if key[0] == "step"}
    found = []
    for row, count in enumerate(valid.sum(-1).tolist()):
        entry = {name: values[row][:count] if name in of_steps else values[row] for name, values in columns.items()}
        entry["commit_step"] = [None if step == steps else step for step in entry["commit_step"]]
        found.append({"seed": str(int(trajectory[SEED][row])), **entry})
    return found


def parsed(text: bytes) -> dict[str, Any]:
    """Reads a message.

    Raises:
        TrainingError: it is no JSON object, or holds NaN or infinity.
    """

    def refuse(name: str) -> None:
        raise TrainingError(f"it holds {name}, which is no number of JSON")

    try:
        found = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"it is no JSON ({error}): {_short(text[:60].decode(errors='replace'))}") from error
    if not isinstance(found, dict):
        raise TrainingError(f"it is no JSON object but {_short(found)}")
    if found.get("protocol") != PROTOCOL:
        raise TrainingError(f"its protocol is {_short(found.get('protocol'))}, not {PROTOCOL}")
    return found


def trajectories(
    answer: Mapping[str, Any], prompts: TensorDictBase, sampling: Sampling, policy: Policy
) -> TensorDictBase:
    """Reads completions.

    Args:
        answer: a message with ``completions``.
        prompts: [B], what was asked.
        sampling: what with; says what must have been recorded.
        policy: for its precision, device, and the number of steps.

    Returns:
        The prompts with all keys that the sampler records.

    Raises:
        TrainingError: fields are missing, or are not what they should be; says where.
    """
    given, sampler = answer.get("completions"), sampling.sampler
    if not isinstance(given, list) or len(given) != len(prompts):
        got = f"{len(given)} completions" if isinstance(given, list) else f"completions = {_short(given)}"
        raise TrainingError(f"it has {got} for {len(prompts)} prompts")
    keys = dict.fromkeys([*ALWAYS, *(key for key in sampler.recorded_keys(sampling.keys) if key not in DERIVED)])
    steps, device = sampler.num_steps(policy), policy.device
    state_scored = isinstance(sampler, StateScoreSampler)
    rows: list[dict[Key, Tensor]] = []
    for index, (entry, seed) in enumerate(zip(given, prompts[SEED].tolist(), strict=True)):
        where = f"completions[{index}]"
        if not isinstance(entry, dict):
            raise TrainingError(f"{where} is {_short(entry)}, not an object")
        if entry.get("seed") != str(seed):
            raise TrainingError(
                f"{where}.seed is {_short(entry.get('seed'))}, not {str(seed)!r}: in the order of prompts"
            )
        rows.append(_Row(entry, where, sampler.completion_length, steps, policy).read(keys, state_scored))
    found = TensorDict({key: torch.stack([row[key] for row in rows]).to(device) for key in rows[0]}, [len(rows)])
    wanted = (*prompts.keys(), *sampler.recorded_keys(sampling.keys))
    return TensorDict(dict(prompts.to(device).items()), [len(rows)]).update(found).select(*wanted)


class _Row:
    """Reads one completion."""

    def __init__(self, entry: Mapping[str, Any], where: str, length: int, steps: int, policy: Policy) -> None:
        self.entry, self.where, self.length, self.steps, self.real = entry, where, length, steps, policy.real_dtype

    def read(self, keys: Iterable[Key], state_scored: bool) -> dict[Key, Tensor]:
        commit = self._commit_steps()
        count = int(commit.masked_fill(commit == self.steps, -1).max()) + 1
        number = torch.bincount(commit, minlength=self.steps + 1)[: self.steps]
        found: dict[Key, Tensor] = {
            COMMIT_STEP: commit.to(torch.int16),
            STEP_VALID: torch.arange(self.steps) < count,
            STEP_NUM_COMMITTED: number,
        }
        for key in keys:
            if key != COMMIT_STEP:
                found[key] = (
                    self._of_steps(key, count) if key[0] == "step" else self._values(FIELDS[key], key, self.length)
                )
        self._check_parts(found, commit, count, state_scored)
        return found

    def _commit_steps(self) -> Tensor:
        given = self._list("commit_step", self.length)
        for position, step in enumerate(given):
            if step is not None and (not _is_int(step) or not 0 <= step < self.steps):
                wanted = f"null or a step from 0 to {self.steps - 1}"
                raise TrainingError(f"{self.where}.commit_step[{position}] is {_short(step)}, not {wanted}")
        return torch.tensor([self.steps if step is None else step for step in given])

    def _of_steps(self, key: Key, count: int) -> Tensor:
        """Returns values of steps, padded with 0 behind those that happened."""
        name, wide = FIELDS[key], KEYS[key].shape == "[B, T, L]"
        if wide:
            given = self._list(name, count)
            values = [self._values(f"{name}[{step}]", key, self.length, row) for step, row in enumerate(given)]
            happened = torch.stack(values) if values else torch.zeros(0, self.length, dtype=torch.int32)
        else:
            happened = self._values(name, key, count)
        return torch.cat([happened, happened.new_zeros(self.steps - count, *happened.shape[1:])])

    def _values(self, name: str, key: Key, count: int, given: object = ...) -> Tensor:
        """Returns a list of numbers as a tensor of the dtype of a key."""
        values = self._list(name, count, given)
        dtype = self.real if KEYS[key].dtype == "float32" else getattr(torch, KEYS[key].dtype)
        for index, value in enumerate(values):
            real = isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
            if not (real if dtype == self.real else _is_int(value)):
                wanted = "a number" if dtype == self.real else "a whole number"
                raise TrainingError(f"{self.where}.{name}[{index}] is {_short(value)}, not {wanted}")
        return torch.tensor(values, dtype=dtype)

    def _list(self, name: str, count: int, given: object = ...) -> list[Any]:
        if given is ...:
            if name not in self.entry:
                raise TrainingError(f"{self.where} has no {name}")
            given = self.entry[name]
        if not isinstance(given, list) or len(given) != count:
            got = f"has {len(given)} entries" if isinstance(given, list) else f"is {_short(given)}"
            raise TrainingError(f"{self.where}.{name} {got}, not a list of {count}")
        return given

    def _check_parts(self, found: Mapping[Key, Tensor], commit: Tensor, count: int, state_scored: bool) -> None:
        """Checks that the log-probability of each action is that of its tokens and of its order."""
        order = torch.zeros(self.steps, dtype=self.real)
        if ORDER_LOG_PROB in self.entry:
            order[:count] = self._values(ORDER_LOG_PROB, STEP_LOG_PROB, count)
        elif not state_scored:
            raise TrainingError(
                f"{self.where} has no {ORDER_LOG_PROB}, and the sampler does not order by the state alone"
            )
        token = torch.zeros(self.steps + 1, dtype=self.real).index_add(0, commit, found[TOKEN_LOG_PROB])[: self.steps]
        apart = (found[STEP_LOG_PROB] - token - order).abs()
        step = int(apart.argmax())
        if apart[step] > ROUNDING:
            raise TrainingError(
                f"{self.where}.log_prob[{step}] is {found[STEP_LOG_PROB][step].item():.5g}, but its tokens have "
                f"{token[step].item():.5g} and its order {order[step].item():.5g}"
            )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
