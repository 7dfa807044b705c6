"""The keys of a trajectory, each with its dtype, shape and meaning. All code takes the names of keys from here.

Shape letters: B samples, P prompt positions, L completion positions, T denoising steps, K selected segments, C
committed positions of a step, V vocabulary, D whatever else a key of a plugin counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from dlmrl_kit.core.errors import RegistryError

if TYPE_CHECKING:
    from tensordict import TensorDictBase
    from torch import Tensor

Key: TypeAlias = str | tuple[str, ...]
K = TypeVar("K", str, tuple[str, str])


class KeySpec(NamedTuple):
    """Describes a key: its dtype, its shape in the letters of this module, its meaning in words, and an example.

    The example is for plugins' keys: it makes values of a rollout that has the kit's keys; None: any values will do.
    """

    dtype: str
    shape: str
    meaning: str
    example: Callable[[TensorDictBase], Tensor] | None = None


KEYS: dict[Key, KeySpec] = {}
"""Every key that the kit knows, in the order in which an update writes them, then those that plugins declare."""

_LETTERS = "BPLTKCVD"
_DTYPES = ("bool", "float32", "float64", "int16", "int32", "int64")


def _key(key: K, dtype: str, shape: str, meaning: str) -> K:
    KEYS[key] = KeySpec(dtype, shape, meaning)
    return key


PROMPT_IDS = _key("prompt_ids", "int64", "[B, P]", "left-padded prompt")
PROMPT_MASK = _key("prompt_mask", "bool", "[B, P]", "False at padding")
GROUP = _key("group", "int64", "[B]", "index of the prompt a sample belongs to")
EXAMPLE = _key("example", "int64", "[B]", "index of the example in the task's split")
SEED = _key("seed", "int64", "[B]", "seed of all that is drawn for the sample: tokens, order, steps, masks")
ITERATION = _key("iteration", "int64", "[B]", "index of the pass over the rollout; set by the update")
PROGRESS = _key("progress", "float32", "[B]", "share of the run's updates that is done, in [0, 1)")
COMPLETION_IDS = _key("completion_ids", "int64", "[B, L]", "the final tokens")
COMMIT_STEP = _key("commit_step", "int16", "[B, L]", "step at which each position was committed; T where it never was")
STEP_VALID = _key(("step", "valid"), "bool", "[B, T]", "steps that happened")
STEP_LOG_PROB = _key(("step", "log_prob"), "float32", "[B, T]", "behaviour log-probability of the step's action")
STEP_ENTROPY = _key(
    ("step", "entropy"),
    "float32",
    "[B, T]",
    "mean entropy (nats) of the behaviour distribution over the positions committed",
)
STEP_NUM_COMMITTED = _key(("step", "num_committed"), "int64", "[B, T]", "positions committed")
STEP_TOKEN_LOG_PROB = _key(
    ("step", "token_log_prob"), "float32", "[B, T]", "its token part: the committed tokens, behaviour"
)
STEP_MODEL_LOG_PROB = _key(
    ("step", "model_log_prob"), "float32", "[B, T]", "committed tokens at temperature 1, unfiltered"
)
STEP_MODEL_ENTROPY = _key(
    ("step", "model_entropy"), "float32", "[B, T]", "mean entropy (nats) at temperature 1, unfiltered"
)
STEP_MARGIN = _key(
    ("step", "margin"),
    "float32",
    "[B, T]",
    "mean difference of the two largest probabilities at temperature 1, unfiltered, over the positions committed",
)
STEP_STATE_IDS = _key(("step", "state_ids"), "int32", "[B, T, L]", "the states x_t, of samplers that redraw positions")
STEP_ACCEPTED = _key(("step", "accepted"), "bool", "[B, T, L]", "positions accepted, of samplers that redraw positions")
STEP_GREEDY_IDS = _key(
    ("step", "greedy_ids"), "int32", "[B, T, L]", "x_t filled greedily; -1 at steps that cannot be chosen"
)
STEP_DRAFT_IDS = _key(
    ("step", "draft_ids"), "int32", "[B, T, L]", "x_t with every masked position filled with the step's draws"
)
STEP_REWARD = _key(("step", "reward"), "float32", "[B, T]", "reward of the draft")
STEP_ADVANTAGE = _key(("step", "advantage"), "float32", "[B, T]", "advantage of every step, before steps are chosen")
TOKEN_LOG_PROB = _key(
    ("token", "log_prob"), "float32", "[B, L]", "behaviour log-probability of each token when committed"
)
TOKEN_MODEL_LOG_PROB = _key(("token", "model_log_prob"), "float32", "[B, L]", "the same at temperature 1, unfiltered")
TOKEN_COMMIT_RANK = _key(
    ("token", "commit_rank"), "int16", "[B, L]", "order of the draw within the step (PlackettLuceOrder, LearnedOrder)"
)
REWARD = _key("reward", "float32", "[B]", "final reward")
ADVANTAGE = _key("advantage", "float32", "[B]", "sequence-level advantage")
TOKEN_ADVANTAGE = _key(("token", "advantage"), "float32", "[B, L]", "token-level advantage")
SELECTED_STEP = _key(("selected", "step"), "int64", "[B, K]", "the steps a selector chose")
SELECTED_WEIGHT = _key(("selected", "weight"), "float32", "[B, K]", "importance weight of each; 0 pads short rows")
SELECTED_CORRECTION = _key(
    ("selected", "correction"),
    "float32",
    "[B, K]",
    "factor of the weight for samples of another distribution than the policy",
)
SELECTED_END = _key(("selected", "end"), "int64", "[B, K]", "a segment stands for the steps from step to before end")
SELECTED_REWARD = _key(("selected", "reward"), "float32", "[B, K]", "reward of the one-step greedy completion of x_t")
SELECTED_ADVANTAGE = _key(("selected", "advantage"), "float32", "[B, K]", "advantage of each chosen step")
SELECTED_LOG_PROB = _key(
    ("selected", "log_prob"), "float32", "[B, K]", "recomputed under the current policy, with gradient"
)
SELECTED_OLD_LOG_PROB = _key(
    ("selected", "old_log_prob"), "float32", "[B, K]", "under the policy that generated the trajectory"
)
SELECTED_REF_LOG_PROB = _key(("selected", "ref_log_prob"), "float32", "[B, K]", "under the frozen reference policy")
SELECTED_ENTROPY = _key(
    ("selected", "entropy"), "float32", "[B, K]", "as ('step', 'entropy'), current policy, with gradient"
)
SELECTED_TOKEN_MASK = _key(
    ("selected", "token_mask"), "bool", "[B, K, C]", "which of the C entries hold a scored token"
)
SELECTED_TOKEN_LOG_PROB = _key(
    ("selected", "token_log_prob"), "float32", "[B, K, C]", "of each scored token, with gradient"
)
SELECTED_OLD_TOKEN_LOG_PROB = _key(
    ("selected", "old_token_log_prob"), "float32", "[B, K, C]", "the same under the behaviour policy"
)
SELECTED_REF_TOKEN_LOG_PROB = _key(
    ("selected", "ref_token_log_prob"), "float32", "[B, K, C]", "the same under the reference policy"
)
SELECTED_VALUE = _key(
    ("selected", "value"), "float32", "[B, K, L]", "value of each token of a segment, by position, with gradient"
)
SELECTED_OLD_VALUE = _key(("selected", "old_value"), "float32", "[B, K, L]", "the same before the update")
SELECTED_RETURN = _key(("selected", "return"), "float32", "[B, K, L]", "what the value of each token should be")
SELECTED_TOKEN_ADVANTAGE = _key(
    ("selected", "token_advantage"), "float32", "[B, K, L]", "advantage of each token of a segment, by position"
)
SEQUENCE_LENGTH = _key(
    ("sequence", "length"), "int64", "[B]", "completion positions that count, by default up to end of text"
)
SELECTED_DISTRIBUTION = _key(
    ("selected", "distribution"),
    "float32",
    "[B, K, C, V]",
    "log-probabilities at the committed positions; lives for one micro-batch only",
)
SELECTED_REF_DISTRIBUTION = _key(
    ("selected", "ref_distribution"), "float32", "[B, K, C, V]", "the same under the reference policy"
)

PROBABILITY = _key("probability", "float64", "[B]", "of a trajectory that the audit lists, given its prompt")
TRAJECTORY = _key("trajectory", "int64", "[B]", "number of a trajectory among those that the audit lists")
SELECTED_UNIT = _key(
    ("selected", "unit"), "int64", "[B, K]", "number of the segment among those of all listed trajectories"
)

_OWN = frozenset(KEYS)

# In no trajectory that a component sees: what a prompt carries of a state x_t of a sampler that redraws positions ...
STATE_OPEN = "open"  # bool [R, L], positions that are not final
STATE_STEPS_IN_BLOCK = "steps_in_block"  # int64 [R], denoising steps since the block began
STATE_FINAL = "final"  # bool [R], whether the step is the last one of its block
STATE_COMMITTED = "committed"  # bool [R, L], the positions that the step accepted
# ... and the fixed keys of later passes over a rollout, by number, while an update waits for them.
LATER_PASSES = "later_passes"


def declare_key(
    key: K,
    dtype: str,
    shape: str,
    meaning: str,
    example: Callable[[TensorDictBase], Tensor] | None = None,
) -> K:
    """Declares a key of a plugin, whose dtype and shape are then checked as those of the kit's keys are.

    Args:
        key: a tuple whose first part names the package, so that no two plugins meet: ``("acme", "weight")``.
        dtype: ``"float32"``, ``"bool"``, ``"int64"``, ...
        shape: in the letters of this module, ``"[B, K]"``.
        meaning: in a few words.
        example: makes values for the conformance checks, where random numbers would make no sense: from a rollout
            [B] with all keys of the kit, the values [B, ...] of this key.

    Returns:
        The key.

    Raises:
        RegistryError: a key that is declared otherwise already, or a shape in other letters.
    """
    spec = KeySpec(dtype, shape, meaning, example)
    if not re.fullmatch(rf"\[B(, [{_LETTERS}])*\]", shape) or dtype not in _DTYPES:
        raise RegistryError(
            f"the key {key!r} is declared as {dtype} {shape}; write a dtype of {', '.join(_DTYPES)}, and a shape in "
            f"the letters {', '.join(_LETTERS)} with B first, such as [B, K]"
        )
    known = KEYS.setdefault(key, spec)
    if known[:3] != spec[:3]:
        raise RegistryError(
            f"the key {key!r} is declared already, as {known.dtype} {known.shape}, {known.meaning}; take another name"
        )
    KEYS[key] = spec  # of a module that was loaded again, the example of now
    return key


def declared_keys() -> dict[Key, KeySpec]:
    """Returns the keys that plugins have declared."""
    return {key: spec for key, spec in KEYS.items() if key not in _OWN}


def letters_of(key: Key) -> list[str]:
    """Returns the letters of a known key's shape."""
    return KEYS[key].shape.strip("[]").split(", ")


def key_text(key: Key) -> str:
    """Returns a trajectory key on one line: ``("step", "log_prob")`` is ``step.log_prob``."""
    return key if isinstance(key, str) else ".".join(key)


def keys_table() -> str:
    """Returns the Markdown table of all keys that ``docs/trajectory.md`` shows."""
    names = {key: f'`"{key}"`' if isinstance(key, str) else f"`{key}`".replace("'", '"') for key in KEYS}
    rows = [f"| {names[key]} | {spec.dtype} {spec.shape} | {spec.meaning} |" for key, spec in KEYS.items()]
    return "\n".join(["| key | dtype, shape | meaning |", "|---|---|---|", *rows])
