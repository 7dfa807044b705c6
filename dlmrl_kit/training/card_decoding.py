"""How to decode without the kit: a small ``generate`` in plain transformers, for a model card.

It is written out for the model (class, mask, ends of text, how prompts are laid out) and for the sampler that the model
was trained with, which it follows greedily, token by token. A sampler that a few lines cannot follow is named, and low
confidence is shown in its place; of a model that transformers does not load by itself no code is shown.
"""

from __future__ import annotations

from string import Template

from dlmrl_kit.policies.families.masked_lm import MaskedLMPolicy
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.confidence_threshold import ConfidenceThreshold
from dlmrl_kit.samplers.continuous import Continuous
from dlmrl_kit.samplers.entropy_order import EntropyOrder
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.margin_order import MarginOrder
from dlmrl_kit.samplers.tempered import TemperedEntropyOrder, TemperedLowConfidence, TemperedMarginOrder

_CONFIDENCE = "-probs.scatter(-1, best[:, None], 0.0).sum(-1)  # minus the probability of all other tokens"
_ENTROPY = "-torch.special.entr(probs).sum(-1)  # minus the entropy"
_MARGIN = "probs.topk(2).values @ probs.new_tensor([1.0, -1.0])  # the best token's lead over the second best"

SCORES: dict[type[Sampler], str] = {
    LowConfidence: _CONFIDENCE,
    TemperedLowConfidence: _CONFIDENCE,  # greedy decoding has no temperature
    ConfidenceThreshold: _CONFIDENCE,
    EntropyOrder: _ENTROPY,
    TemperedEntropyOrder: _ENTROPY,
    MarginOrder: _MARGIN,
    TemperedMarginOrder: _MARGIN,
    LeftToRight: "-torch.arange(length).float()  # from left to right",
}
"""By sampler, the score by which it chooses positions, and where it is high."""

_CODE = Template("""```python
import torch
from transformers import $auto, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = $auto.from_pretrained("PATH", dtype=torch.float32).eval()
MASK, ENDS, FORBIDDEN = $mask, torch.tensor($ends), torch.tensor($forbidden)


@torch.no_grad()
def generate(prompt, length=$length, block_length=$block):
    $layout
    start = len(given)
    ids = torch.tensor([given + [MASK] * length])
    block = torch.arange(length) // block_length
    while True:
        answer = ids[0, start:]
        masked, before_end = answer == MASK, $before_end
        if not (masked & before_end).any():
            return tokenizer.decode(answer[torch.isin(answer, ENDS).cumsum(0) == 0], skip_special_tokens=True)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, $places]
        logits[:, FORBIDDEN] = -torch.inf  # mask, padding, ids without a token
        probs = logits.softmax(-1)
        best = probs.argmax(-1)
        score = $score
        allowed = masked & (block == block[masked].min())  # block by block
        order = score.masked_fill(~allowed, -torch.inf).sort(descending=True, stable=True).indices
        chosen = order[: min($per_step, int(allowed.sum()))]$more
        ids[0, start + chosen] = best[chosen]


text = generate("a prompt")
```""")


def decoding_without_the_kit(policy: TransformersPolicy, sampler: Sampler) -> str:
    """Returns a section of a model card: code that decodes greedily as the sampler does, and what it leaves out.

    Args:
        policy: the model of the card.
        sampler: of its training.
    """
    if isinstance(sampler, Continuous):
        sampler = sampler.sampler  # whose tokens are the same
    own_class = type(policy) in (TransformersPolicy, MaskedLMPolicy)
    if policy.layout is not None or not own_class or policy.block_size is not None or policy.noise != "mask":
        return (
            "Without dlmrl_kit: its files are in the layout of its family, or it denoises in a way of its own, so that "
            "it is decoded by the code that its family publishes."
        )
    name, follows = type(sampler).__name__, type(sampler) in SCORES and isinstance(sampler.tokens_per_step, int)
    about = (
        f"Without dlmrl_kit, this decodes greedily as {name} does, the sampler that it was trained with:"
        if follows
        else f"Without dlmrl_kit. The sampler that it was trained with, {name}, is more than a few lines: this is "
        "LowConfidence, one position at a time:"
    )
    return f"{about}\n\n{_code(policy, sampler, follows)}"


def _code(policy: TransformersPolicy, sampler: Sampler, follows: bool) -> str:
    threshold = isinstance(sampler, ConfidenceThreshold) and follows
    return _CODE.substitute(
        auto="AutoModelForMaskedLM" if isinstance(policy, MaskedLMPolicy) else "AutoModelForCausalLM",
        mask=policy.mask_id,
        ends=f"{list(policy.eos_ids)}, dtype=torch.long",
        forbidden=f"{list(policy.forbidden_ids)}, dtype=torch.long",
        length=sampler.completion_length,
        block=sampler.block_length,
        layout=_layout(policy),
        before_end="torch.isin(answer, ENDS).cumsum(0) == 0" if sampler.stop_at_eos else "answer == answer",
        places="start - 1 : -1" if policy.shift_logits else "start:",
        score=SCORES[type(sampler)] if follows else _CONFIDENCE,
        per_step=sampler.tokens_per_step if follows else 1,
        more=_more(sampler.threshold) if threshold and isinstance(sampler, ConfidenceThreshold) else "",
    )


def _layout(policy: TransformersPolicy) -> str:
    """Returns the lines that turn a prompt into the ids ``given``."""
    if policy.chat_template:
        return (
            'messages = [{"role": "user", "content": prompt}]\n'
            "    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)\n"
            '    given = tokenizer(prompt, add_special_tokens=False)["input_ids"]'
        )
    prefix = list(policy.prefix_ids)
    tokens = 'tokenizer(prompt, add_special_tokens=False)["input_ids"]'
    return f"given = {f'{prefix} + ' if prefix else ''}{tokens}"


def _more(threshold: float) -> str:
    """Returns the line that adds the positions of which the model is sure."""
    return (
        f"\n        sure = allowed & (probs.amax(-1) >= {threshold})\n"
        "        chosen = torch.cat([chosen, sure.nonzero()[:, 0]]).unique()"
    )
