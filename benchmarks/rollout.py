"""Rollout time: the kit, the floor and the plain implementation, over the vocabulary.

    OMP_NUM_THREADS=1 python benchmarks/rollout.py --vocab 512 --vocab 32000 --vocab 126464 --out results

The floor: one transformer body per step (adapter merged, no head), and the head once at the masked positions of the
current block. ``kit`` records what every algorithm needs; ``kit, greedy`` also EGSPO-SA's one-step completions;
``--caches`` adds the kit with its approximate caches (``dlmrl_kit.caches``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import plain
import torch
from common import (
    Size,
    as_dict,
    compiled,
    full_ids,
    interleaved,
    make_policy,
    make_prompts,
    make_sampler,
    masked_block_counts,
    parser_of,
    plot,
    report,
)
from tensordict import TensorDict, TensorDictBase

from dlmrl_kit.caches.base import Cache
from dlmrl_kit.caches.dual_cache import DualCache
from dlmrl_kit.caches.prefix_cache import PrefixCache
from dlmrl_kit.core.keys import STEP_GREEDY_IDS, STEP_MODEL_LOG_PROB, Key
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.selectors.top_k import EntropyTopK

RECORDS: tuple[Key, ...] = (STEP_MODEL_LOG_PROB, STEP_GREEDY_IDS)


def kit(
    policy: TransformersPolicy,
    prompts: TensorDict,
    size: Size,
    records: Collection[Key] = (),
    cache: Cache | None = None,
) -> Callable[[], TensorDictBase]:
    """Prepares a rollout of the kit's sampler, with one-step completions where EGSPO's selector may choose."""
    sampler, selector = make_sampler(size), EntropyTopK(size.selected)
    return lambda: sampler(
        prompts.copy(),
        policy=policy,
        keys=records,
        cache=cache,
        may_choose=lambda so_far: selector.kept(so_far),
    )


def floor(policy: TransformersPolicy, prompts: TensorDict, size: Size, head: bool = True) -> Callable[[], object]:
    """Prepares the forwards that the algorithm needs, and nothing else."""
    model = policy.model
    if policy.adapter is not None:
        model = copy.deepcopy(policy.adapter).merge_and_unload()
    body, out = model.get_decoder(), model.get_output_embeddings()
    completion = torch.full((size.batch, size.length), policy.mask_id, device=size.device)
    ids, mask, position = full_ids(prompts, completion)

    @torch.inference_mode()
    def work() -> None:
        for count in masked_block_counts(size):
            hidden = body(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False).last_hidden_state
            if head:
                out(hidden[:, -count:].reshape(-1, hidden.shape[-1]))

    return work


def plainly(policy: TransformersPolicy, prompts: TensorDict, size: Size) -> Callable[[], object]:
    """Prepares a rollout of the plain implementation."""
    return lambda: plain.rollout(policy, prompts, size, size.generator(1), plain.gumbel_draw)


def measure(
    size: Size, repeats: int, with_plain: bool = True, with_caches: bool = False, mode: str | None = None
) -> dict[str, Any]:
    """Measures the times of one size; returns a row of the table."""
    policy, prompts = make_policy(size), make_prompts(size)
    works: dict[str, Callable[[], object]] = {
        "kit": kit(policy, prompts, size),
        "kit_greedy": kit(policy, prompts, size, RECORDS),
        "floor": floor(policy, prompts, size),
        "bodies": floor(policy, prompts, size, head=False),
    }
    caches: dict[str, Cache] = {"prefix_cache": PrefixCache(), "dual_cache": DualCache()} if with_caches else {}
    works |= {name: kit(policy, prompts, size, cache=cache) for name, cache in caches.items()}
    if with_plain:
        works["plain"] = plainly(policy, prompts, size)
    if mode is not None:
        works["compiled"], first = compiled(size, mode, lambda policy: kit(policy, prompts, size))
    seconds = interleaved(works, repeats)
    row: dict[str, Any] = {name: getattr(size, name) for name in ("vocab", "hidden", "batch", "length", "steps")}
    row |= seconds
    row |= {"kit/floor": seconds["kit"] / seconds["floor"], "greedy/floor": seconds["kit_greedy"] / seconds["floor"]}
    row |= {f"kit/{name}": seconds["kit"] / seconds[name] for name in caches}
    if mode is not None:
        row |= {"compiled/kit": seconds["compiled"] / seconds["kit"], "compiled_first": first}
    if with_plain:
        row |= {f"plain/{name}": seconds["plain"] / seconds[name] for name in ("kit", "kit_greedy")}
    return {**row, "size": as_dict(size)}


def main() -> None:
    """See the module docstring."""
    names = ("hidden", "layers", "batch", "prompt", "length", "per_step")
    parser = parser_of(__doc__, *names, repeats=3)
    parser.add_argument("--no-plain", action="store_true")
    parser.add_argument("--caches", action="store_true")
    parser.add_argument("--compile", metavar="MODE", help="also with compiled blocks, as Trainer.compile")
    given = parser.parse_args()
    sizes = {name: getattr(given, name) for name in names}
    rows = []
    for vocab in given.vocab or (512, 32_000, 126_464):
        size = Size(vocab=vocab, **sizes)
        rows.append(measure(size, given.repeats, not given.no_plain, given.caches, given.compile))
    printed = [{key: value for key, value in row.items() if key != "size"} for row in rows]
    report("rollout", given.out, printed)
    if len(rows) > 1:
        vocabs = [row["vocab"] for row in rows]
        names: list[str] = [name for name in ("plain", "kit_greedy", "kit", "floor") if name in rows[0]]
        lines = {name: (vocabs, [row[name] for row in rows]) for name in names}
        plot(given.out / "rollout.png", "Rollout, one thread", "vocabulary", "seconds", lines)


if __name__ == "__main__":
    main()
