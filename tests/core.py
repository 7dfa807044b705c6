"""What the tests of the core share: tiny policies, prompts and rollouts."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from dlmrl_kit.policies.base import Policy
from dlmrl_kit.policies.characters import character_tokenizer
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.margin_order import MarginOrder
from dlmrl_kit.samplers.plackett_luce_order import PlackettLuceOrder
from dlmrl_kit.samplers.random_order import RandomOrder

STATE_SCORE = (RandomOrder, EntropyOrder, MarginOrder, LeftToRight, ConfidenceThreshold)
SAMPLERS: tuple[type[Sampler], ...] = (LowConfidence, PlackettLuceOrder, *STATE_SCORE)


def make(cls: type[Sampler], length: int, tokens_per_step: int = 1, **options: Any) -> Sampler:
    """A sampler; ``tokens_per_step`` is left out where the class has none."""
    if cls is ConfidenceThreshold:
        return ConfidenceThreshold(length, **{"threshold": 0.5, **options})
    return cls(length, tokens_per_step, **options)


def tiny_policy(
    seed: int = 0, hidden: int = 32, layers: int = 2, characters: str = "abcdefgh", **config: Any
) -> Policy:
    """A random bidirectional Llama with a real character tokenizer; logits far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = character_tokenizer(characters)
    settings = {"initializer_range": 0.35, **config}
    return Policy(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer) + 2,  # two padding rows
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=4,
                is_causal=False,
                use_cache=False,
                pad_token_id=0,
                mask_token_id=1,
                eos_token_id=2,
                bos_token_id=None,
                **settings,
            )
        ),
        tokenizer,
    )


def prompts(policy: Policy, rows: int = 6, width: int = 4, seed: int = 0) -> TensorDict:
    """Left-padded prompts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, len(policy.tokenizer), (rows, width), generator=generator)
    mask = torch.arange(width) >= (torch.arange(rows) % width)[:, None]
    return TensorDict({"prompt_ids": ids.masked_fill(~mask, policy.pad_id), "prompt_mask": mask}, [rows])


def roll_out(sampler: Sampler, policy: Any, prompt: TensorDict, seed: int = 0, everything: bool = True) -> Any:
    """A trajectory with every on-demand key, and all its steps selected."""
    if everything:
        sampler.ask_for(sampler.optional_keys)
    trajectory = sampler(prompt.clone(), policy=policy, generator=torch.Generator().manual_seed(seed))
    valid = trajectory["step", "valid"]
    trajectory["selected", "step"] = torch.arange(valid.shape[1]).expand_as(valid).contiguous()
    trajectory["selected", "weight"] = valid.to(trajectory["step", "log_prob"].dtype)
    return trajectory


class TabularPolicy(nn.Module):
    """Logits from a table indexed by the whole state, float64: any function of the state is one of these.

    Tokens 0 .. V-1, mask V; no end of text. ``forbidden_ids`` holds the mask.
    """

    def __init__(self, vocab: int, length: int, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shape = ((vocab + 1) ** length, length, vocab + 1)
        self.table = nn.Parameter(scale * torch.randn(shape, generator=generator, dtype=torch.float64))
        self.vocab, self.length = vocab, length
        self.mask_id, self.pad_id, self.eos_id = vocab, vocab, None
        self.forbidden_ids = (vocab,)
        self.vocab_size = vocab + 1
        self.device = torch.device("cpu")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        state = input_ids[:, -self.length :]
        index = (state * (self.vocab + 1) ** torch.arange(self.length)).sum(-1)
        return self.table[index][positions[:, -self.length :]]


def no_prompt(rows: int) -> TensorDict:
    """Prompts of one token."""
    return TensorDict(
        {"prompt_ids": torch.zeros(rows, 1, dtype=torch.int64), "prompt_mask": torch.ones(rows, 1, dtype=torch.bool)},
        [rows],
    )


def subsets(positions: list[int]) -> list[tuple[int, ...]]:
    """All non-empty subsets."""
    sizes = range(1, len(positions) + 1)
    return [s for size in sizes for s in itertools.combinations(positions, size)]
