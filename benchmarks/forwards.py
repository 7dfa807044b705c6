"""What goes through the body in a rollout, counted: the tables of ``docs/performance.md`` on fewer forwards.

    python benchmarks/forwards.py

The first table is of random models whose texts end after 1 to 64 tokens, by how the model attends and by what a rollout
leaves out. The second is of the Sudoku denoiser that is shipped, by sampler and by how far ahead states are guessed.
Numbers do not depend on what else runs on the machine. Takes a minute of processor time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from cluster import table
from common import TokenIds, parser_without_options
from counting import counted
from tensordict import TensorDict

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.caches.prefix_cache import PrefixCache
from dlmrl_kit.core.keys import COMPLETION_IDS, PROMPT_IDS, PROMPT_MASK, SEED, STEP_NUM_COMMITTED
from dlmrl_kit.core.seeding import combine_seeds, sample_seeds
from dlmrl_kit.core.trajectory import num_valid, states
from dlmrl_kit.policies.block_causal import BlockCausalPolicy
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.recipe.load import load_recipe
from dlmrl_kit.rollout.services import prompt_batch
from dlmrl_kit.samplers.base import Decision
from dlmrl_kit.samplers.continuous import Continuous
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.mask import MaskSampler
from dlmrl_kit.samplers.random_order import RandomOrder
from dlmrl_kit.samplers.speculative import Speculative

PROMPT, LENGTH, BLOCK, VOCAB = 64, 64, 16, 32
PROMPTS, GROUP, PLACES = 8, 8, 16
"""Prompts of an update, samples of each, and the rows that a forward may have."""


@dataclass(frozen=True)
class Count:
    """What a rollout took.

    Attributes:
        forwards: calls of the body, one after another.
        states, tokens: rows of these calls, and their positions, padding included.
        committed: positions that were committed.
        text: positions up to the end of each text.
    """

    forwards: int
    states: int
    tokens: int
    committed: int
    text: int


def count(
    sampler: MaskSampler, policy: TransformersPolicy, prompts: TensorDict, rows: int | None = None, **given: Any
) -> Count:
    """Counts a rollout that takes ``rows`` prompts at a time; None: all at once."""
    with counted(policy) as found:
        pieces = [sampler(piece.copy(), policy=policy, **given) for piece in prompts.split(rows or len(prompts))]
    work = {name: sum(phase[name] for phase in found.values()) for name in ("forwards", "states", "tokens")}
    committed = sum(int(piece[STEP_NUM_COMMITTED].sum()) for piece in pieces)
    ids = torch.cat([piece[COMPLETION_IDS] for piece in pieces])
    text = (policy.before_end(ids).sum(-1) + 1).clamp(max=ids.shape[1])
    return Count(**work, committed=committed, text=int(text.sum()))


class Ending(TokenIds):
    """As ``TokenIds``, with an end of text, so that a random model ends its texts anywhere."""

    eos_token_id = 2


def random_policy(block_size: int | None = None) -> TransformersPolicy:
    """Makes a random model that attends both ways, or to its own block of ``block_size`` and those before it."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(  # type: ignore[call-arg]
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        is_causal=False,
        use_cache=False,
    )
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.2)
    if block_size is None:
        return TransformersPolicy(model, Ending(VOCAB), eos_ids=(3, 4))  # type: ignore[arg-type]
    model.config.block_size = block_size
    return BlockCausalPolicy(model, Ending(VOCAB), eos_ids=(3, 4))  # type: ignore[arg-type]


def random_prompts() -> TensorDict:
    """Draws prompts of 16 to 64 tokens, padded at the left, each once for every sample of its group."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCAB, (PROMPTS, PROMPT), generator=generator)
    length = torch.linspace(PROMPT // 4, PROMPT, PROMPTS).long()[torch.randperm(PROMPTS, generator=generator)]
    mask = torch.arange(PROMPT) >= PROMPT - length[:, None]
    group = torch.arange(PROMPTS).repeat_interleave(GROUP)
    given = TensorDict({PROMPT_IDS: ids.masked_fill(~mask, 1), PROMPT_MASK: mask}, [PROMPTS])[group]
    return given.set(SEED, sample_seeds(len(group), "cpu", 0))


FAMILIES: dict[str, tuple[int | None, Cache | None]] = {
    "attends both ways": (None, None),
    "with `PrefixCache`": (None, PrefixCache()),
    "with `DualCache`": (None, DualCache()),
    "block-causal, blocks of 16": (BLOCK, None),
    "block-causal, blocks of 4": (4, None),
}
WAYS: dict[str, tuple[bool, Callable[[MaskSampler], MaskSampler], int | None]] = {
    "all rows to the end": (False, lambda sampler: sampler, PLACES),
    "rows leave": (True, lambda sampler: sampler, PLACES),
    "`Continuous`": (True, lambda sampler: Continuous(sampler, PLACES), None),
}
"""Whether rows end with their texts, what samples, and how many rows are taken at a time."""


def families() -> str:
    """Counts rollouts of random models, with a place for 16 rows in a forward."""
    prompts, rows = random_prompts(), []
    for name, (block_size, cache) in FAMILIES.items():
        policy = random_policy(block_size)
        given = {} if cache is None else {"cache": cache}
        text = None
        for way, (stop, made, at_a_time) in WAYS.items():
            sampler = LowConfidence(LENGTH, 1, block_size or BLOCK, stop_at_eos=stop)
            found = count(made(sampler), policy, prompts, at_a_time, **given)
            text = text or count(LowConfidence(LENGTH, 1, block_size or BLOCK), policy, prompts, **given).text
            per_forward = found.states / found.forwards
            rows.append([name, way, f"{found.forwards:,}", f"{per_forward:.1f}", f"{found.tokens / text:.1f}"])
    return table(["model", "rollout", "forwards", "states of each", "body tokens per token of text"], rows)


def sudoku(groups: int, size: int) -> tuple[TransformersPolicy, TensorDict]:
    """Returns the denoiser that is shipped, and prompts of its task."""
    built = load_recipe("reinforce_exact").build_algorithm()
    policy = built.policy.load()
    prompts = prompt_batch(built.task, "train", list(range(groups)), policy, size, 16)
    return policy, prompts.set(SEED, sample_seeds(len(prompts), "cpu", 0))


SAMPLERS: Mapping[str, Callable[[int], MaskSampler]] = {
    "`LowConfidence`": lambda per_step: LowConfidence(16, per_step, temperature=0.9),
    "`EntropyOrder`": lambda per_step: EntropyOrder(16, per_step, temperature=0.9),
    "`RandomOrder`": lambda per_step: RandomOrder(16, per_step, temperature=0.9),
}


AHEAD = (1, 3, 7)
"""How many states may be guessed of each row."""


def guessing() -> str:
    """Counts rollouts of the Sudoku denoiser: rows one by one, and groups together."""
    policy, groups = sudoku(8, 8)
    _, alone = sudoku(12, 1)
    rows = [
        [name, str(per_step), *guessed(made(per_step), policy, alone, groups)]
        for per_step in (1, 2)
        for name, made in SAMPLERS.items()
    ]
    heads = ["sampler", "tokens per step", "next state guessed right, at best", "step by step", "`Continuous`"]
    return table([*heads, *(f"`Speculative`, ahead {ahead}" for ahead in AHEAD)], rows)


def guessed(sampler: MaskSampler, policy: TransformersPolicy, alone: TensorDict, groups: TensorDict) -> list[str]:
    """Returns the cells of a sampler, by what samples it: forwards per row, states per token alone and in groups."""
    cells = ["{:.0%}, {:.0%}".format(*agreement(sampler, policy, alone))]
    for way in (sampler, Continuous(sampler), *(Speculative(sampler, ahead) for ahead in AHEAD)):
        single, together = count(way, policy, alone, 1), count(way, policy, groups)
        forwards, of_one, of_many = (
            single.forwards / len(alone),
            single.states / single.committed,
            together.states / together.committed,
        )
        cells.append(f"{forwards:.1f}; {of_one:.2f}; {of_many:.2f}")
    return cells


def agreement(sampler: MaskSampler, policy: TransformersPolicy, prompts: TensorDict) -> tuple[float, float]:
    """Returns how often the guess of the next state is right, and how often one could be at best.

    The guess of x_{t+2} is made in x_{t+1}, from what was predicted in x_t and with the noise of the step. At best it
    is right with probability sum over actions of min(pi(a), pi'(a)), for pi with the predictions of x_{t+1} and pi'
    with those of x_t: the mean over actions of pi of min(1, pi' / pi).
    """
    found = sampler(prompts.copy(), policy=policy)
    steps, right, best = num_valid(found), [], []
    for step in range(int(steps.max()) - 1):
        rows = (steps > step + 1).nonzero().squeeze(-1)
        time = torch.arange(step, step + 3).expand(len(rows), 3)
        before, now, after = states(found[rows], time, policy.mask_id).unbind(1)
        with torch.no_grad():
            old, new = (sampler.view(policy, prompts[rows], ids) for ids in (before, now))
            old = old.narrow(new.allowed)
            guess = sampler.decide(old, combine_seeds(prompts[SEED][rows], step + 1))
            taken = Decision(after != now, after)
            ratio = (sampler.action_log_prob(old, taken) - sampler.action_log_prob(new, taken)).exp().clamp(max=1)
        choices = [chosen for chosen, _ in sampler.position_choices(old)]
        possible = (torch.stack(choices) == taken.committed).all(-1).any(0)  # of this a log-probability may not speak
        right.append((torch.where(guess.committed, guess.tokens, now) == after).all(-1))
        best.append(torch.where(possible, ratio, 0.0))
    return torch.cat(right).double().mean().item(), torch.cat(best).double().mean().item()


if __name__ == "__main__":
    parser_without_options(__doc__).parse_args()
    print(families(), guessing(), sep="\n\n")
