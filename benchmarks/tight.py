"""Rollout time of the kit beside the tight floor: what a hand-written transformer needs for the same forwards.

    OMP_NUM_THREADS=1 python benchmarks/tight.py --vocab 512 --vocab 32000 --vocab 126464 --out results

The floor of ``rollout.py`` runs transformers' own layers. The tight one has nothing of them: the adapter is merged,
queries, keys and values are one product and so are gate and up, and the last layer computes queries and MLP at the
masked positions of the current block only. Its head is one product there, in tiles of the vocabulary that stay in the
processor's cache and are overwritten by the next: nothing is sampled and nothing recorded. ``tight, greedy`` also runs
its head at the positions behind the block of the steps that EGSPO's selector keeps, which one-step completions need;
``apart`` is the tight floor with queries, keys, values, gate and up as products of their own, as the kit has them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from common import Size, full_ids, interleaved, make_policy, make_prompts, masked_block_counts, parser_of, report
from rollout import RECORDS, kit
from tensordict import TensorDict
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from dlmrl_kit.core.keys import STEP_ENTROPY, STEP_NUM_COMMITTED, STEP_VALID
from dlmrl_kit.core.trajectory import state_at
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.selectors.top_k import EntropyTopK

TILE = 1024
"""Columns of the head's product that are computed at once."""


class Layer(NamedTuple):
    """Weights of a layer: queries, keys and values together, gate and up together."""

    before: Tensor
    qkv: Tensor
    out: Tensor
    behind: Tensor
    gate_up: Tensor
    down: Tensor


class Transformer:
    """A Llama that attends both ways, for rows without padding, of the merged weights of a policy.

    Args:
        policy: a random one of ``common.make_policy``; it stays as it is.
        joined: whether queries, keys and values are one product, and gate and up.
    """

    def __init__(self, policy: TransformersPolicy, joined: bool = True) -> None:
        self.joined = joined
        adapter = copy.deepcopy(policy.adapter)
        model: Any = policy.model if adapter is None else adapter.merge_and_unload()
        body, config = model.get_decoder(), model.config
        self.embeddings, self.norm, self.rotary = body.embed_tokens.weight, body.norm.weight, body.rotary_emb
        self.epsilon, self.heads = config.rms_norm_eps, config.num_attention_heads
        self.head = model.get_output_embeddings().weight
        self.layers = [self._layer(layer) for layer in body.layers]

    def _layer(self, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = torch.cat([part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj)])
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        before, behind = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        return Layer(before, qkv, attention.o_proj.weight, behind, gate_up, mlp.down_proj.weight)

    def _normed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(hidden, weight.shape, weight, self.epsilon)

    def _split(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _products(self, hidden: Tensor, weight: Tensor, number: int) -> Sequence[Tensor]:
        if self.joined:
            return linear(hidden, weight).chunk(number, dim=-1)
        return [linear(hidden, part) for part in weight.chunk(number)]

    def features(self, ids: Tensor, columns: slice) -> Tensor:
        """Computes final hidden states [B, M, D] of sequences int64 [B, S] at M columns."""
        hidden, size = self.embeddings[ids], self.embeddings.shape[1]
        cosine, sine = self.rotary(hidden, torch.arange(ids.shape[1])[None])
        sine = torch.cat([-sine[..., : sine.shape[-1] // 2], sine[..., sine.shape[-1] // 2 :]], dim=-1)
        for number, layer in enumerate(self.layers):
            asked = columns if number == len(self.layers) - 1 else slice(None)
            normed = self._normed(hidden, layer.before)
            if number < len(self.layers) - 1:
                queries, keys, values = self._products(normed, layer.qkv, 3)
            else:
                queries = linear(normed[:, asked], layer.qkv[:size])
                keys, values = self._products(normed, layer.qkv[size:], 2)
            turned = rotated(self._split(queries), cosine[:, asked], sine[:, asked])
            mixed = scaled_dot_product_attention(
                turned, rotated(self._split(keys), cosine, sine), self._split(values), is_causal=False
            )
            hidden = hidden[:, asked] + linear(mixed.transpose(1, 2).flatten(-2), layer.out)
            gate, up = self._products(self._normed(hidden, layer.behind), layer.gate_up, 2)
            hidden = hidden + linear(silu(gate).mul_(up), layer.down)
        return self._normed(hidden, self.norm)

    def logits(self, features: Tensor) -> Tensor:
        """Computes logits [N, V] of features [N, D] (the floor itself keeps none)."""
        return linear(features, self.head)

    def run_head(self, features: Tensor, tile: Tensor) -> None:
        """Computes logits of features [N, D] tile by tile, each over the one before; ``tile``: [at least N * TILE]."""
        for weight in self.head.split(TILE):
            torch.mm(features, weight.T, out=tile[: len(features) * len(weight)].view(-1, len(weight)))


def rotated(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns queries or keys [B, H, S, D / H] by their angles [1, S, D / H]; the first half of the sines is negative."""
    return (heads * cosine[:, None]).addcmul_(heads.roll(heads.shape[-1] // 2, -1), sine[:, None])


def behind_counts(policy: TransformersPolicy, prompts: TensorDict, size: Size) -> list[int]:
    """Counts, for each step that the selector keeps in a row, the masked positions behind the block."""
    run = kit(policy, prompts, size, RECORDS)()
    kept = EntropyTopK(size.selected).kept(run.select(STEP_VALID, STEP_ENTROPY, STEP_NUM_COMMITTED))
    counts = []
    for step in range(size.steps):
        at = torch.full((size.batch, 1), step)
        masked = state_at(run["completion_ids"], run["commit_step"], at, policy.mask_id)[:, 0] == policy.mask_id
        in_block = masked_block_counts(size)[step]
        counts += [int(row.sum()) - in_block for row, keep in zip(masked, kept[:, step], strict=True) if keep]
    return [count for count in counts if count]


def tight(
    policy: TransformersPolicy,
    prompts: TensorDict,
    size: Size,
    behind: list[int] | None = None,
    joined: bool = True,
) -> Callable[[], None]:
    """Prepares the forwards of a rollout, and nothing else.

    Args:
        policy, prompts, size: of the rollout.
        behind: heads of one-step completions, as ``behind_counts``; None: none.
        joined: as ``Transformer``.
    """
    model = Transformer(policy, joined)
    ids = full_ids(prompts, torch.full((size.batch, size.length), policy.mask_id))[0]
    widest = max(size.batch * size.block, sum(behind or []))
    tile, width = torch.empty(widest * TILE), ids.shape[1]

    @torch.inference_mode()
    def work() -> None:
        for count in masked_block_counts(size):
            model.run_head(model.features(ids, slice(width - count, width)).flatten(0, 1), tile)
        if behind:
            waiting = torch.zeros(sum(behind), size.hidden)
            for part in waiting.split(size.batch * size.block):
                model.run_head(part, tile)

    return work


def measure(size: Size, repeats: int) -> dict[str, Any]:
    """Measures the times of one size; returns a row of the table."""
    policy, prompts = make_policy(size), make_prompts(size)
    behind = behind_counts(policy, prompts, size)
    seconds = interleaved(
        {
            "kit": kit(policy, prompts, size),
            "tight": tight(policy, prompts, size),
            "kit_greedy": kit(policy, prompts, size, RECORDS),
            "tight_greedy": tight(policy, prompts, size, behind),
            "apart": tight(policy, prompts, size, joined=False),
        },
        repeats,
    )
    ratios = {
        "kit/tight": seconds["kit"] / seconds["tight"],
        "greedy/tight": seconds["kit_greedy"] / seconds["tight"],
        "greedy/tight_greedy": seconds["kit_greedy"] / seconds["tight_greedy"],
        "apart/tight": seconds["apart"] / seconds["tight"],
    }
    return {"vocab": size.vocab, "steps": size.steps, "behind": sum(behind), **seconds, **ratios}


def main() -> None:
    """See the module docstring."""
    names = ("hidden", "layers", "batch", "prompt", "length", "per_step")
    given = parser_of(__doc__, *names, repeats=5).parse_args()
    sizes = {name: getattr(given, name) for name in names}
    rows = [measure(Size(vocab=vocab, **sizes), given.repeats) for vocab in given.vocab or (512, 32_000, 126_464)]
    report("tight", given.out, rows)


if __name__ == "__main__":
    main()
