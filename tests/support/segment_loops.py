"""Likelihoods of segments by plain loops: Python integers for the random numbers, one unpadded forward per copy."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from support.oracles import loop_probs
from tensordict import TensorDict

from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.base import Sampler

BITS = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    """The output function of SplitMix64."""
    z &= BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & BITS
    return z ^ (z >> 31)


def uniform(seed: int, purpose: str, index: int) -> float:
    """Entry ``index`` of a row of ``seeding.uniforms``."""
    digest = hashlib.sha256(f"0/{purpose}".encode()).digest()
    state = mix((seed & BITS) ^ (int.from_bytes(digest[:8], "big") >> 1))
    return (mix(state + (index + 1) * GOLDEN) >> 11) / 2**53


def combined(seed: int, number: int) -> int:
    """``seeding.combine_seeds``."""
    return mix(mix(seed) + number * GOLDEN)


@dataclass
class Segment:
    """Segment k of row b of a batch, seen by an estimator."""

    likelihood: Any
    policy: TransformersPolicy
    sampler: Sampler
    data: TensorDict
    b: int
    k: int

    def __post_init__(self) -> None:
        self.tokens = self.data["completion_ids"][self.b].tolist()
        self.commit = self.data["commit_step"][self.b].tolist()
        self.positions = range(len(self.tokens))
        self.start = int(self.data["selected", "step"][self.b, self.k])
        self.end = int(self.data["selected", "end"][self.b, self.k])
        self.draws = self.data["selected", "step"].shape[1]
        self.prompt = self.data["prompt_ids"][self.b][self.data["prompt_mask"][self.b]].tolist()
        seed = int(self.data["seed"][self.b])
        self.seed = combined(seed, int(self.data["iteration"][self.b])) if self.likelihood.redraw else seed
        self.open = [i for i in self.positions if self.commit[i] >= self.start]
        self.targets = [i for i in self.open if self.commit[i] < self.end and i in self.counted()]

    def counted(self) -> list[int]:
        """Committed positions, up to the first end of text if so asked."""
        found = []
        for i in self.positions:
            if self.commit[i] < self.sampler.max_steps:
                found.append(i)
            if self.tokens[i] in self.policy.eos_ids and not self.likelihood.after_eos:
                break
        return found

    def own(self, purpose: str, index: int = 0) -> float:
        return uniform(combined(self.seed, self.k), purpose, index)

    def stratified(self, purpose: str) -> float:
        return (uniform(self.seed, purpose, 0) + self.k / self.draws) % 1

    def smallest(self, count: int, among: Sequence[int], order: Callable[[int], float]) -> list[int]:
        return sorted(sorted(among, key=order)[:count])

    def prompt_masked(self, copy: int, copies: int) -> list[int]:
        """Places in the unpadded prompt."""
        last = len(self.prompt) - 1
        share = self.likelihood.prompt_mask_share
        return [p for p in range(last + 1) if self.own("prompt mask", (last - p) * copies + copy) < share]

    def score(
        self, masked: Iterable[int], scored: Iterable[int], prompt_masked: Sequence[int] = ()
    ) -> dict[int, float]:
        """Log-probability of each scored token."""
        scored = list(scored)
        if not scored:
            return {}
        hidden = self.policy.mask_id
        prompt = [hidden if p in prompt_masked else token for p, token in enumerate(self.prompt)]
        masked = set(masked)
        ids = torch.tensor([prompt + [hidden if i in masked else self.tokens[i] for i in self.positions]])
        with torch.no_grad():
            logits = self.policy.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) :]
        behaviour = self.sampler.behaviour
        how: dict[str, Any] = {}
        if self.likelihood.sampling_temperature:
            how = {"temperature": behaviour.temperature, "top_k": behaviour.top_k, "top_p": behaviour.top_p}
        found = {}
        for i in scored:
            p = loop_probs(logits[i].tolist(), **how, forbidden=self.policy.forbidden_ids)[self.tokens[i]]
            found[i] = max(math.log(p), -100.0) if p > 0 else -100.0
        return found

    def partly(self, chosen: Iterable[int], prompt_masked: Sequence[int] = ()) -> dict[int, float]:
        """Scores of the chosen targets, the other targets visible."""
        chosen = set(chosen) & set(self.targets)
        return self.score([i for i in self.open if i in chosen or i not in self.targets], chosen, prompt_masked)


Values = dict[int, float]


def scaled(values: Values, weight: float) -> Values:
    return {i: weight * value for i, value in values.items()}


def added(*parts: Values) -> Values:
    return {i: sum(part.get(i, 0.0) for part in parts) for i in sorted({i for part in parts for i in part})}


def mean_field(s: Segment) -> Values:
    return s.score(s.positions, s.targets, s.prompt_masked(0, 1))


def step_merge(s: Segment) -> Values:
    return s.score(s.open, s.targets, s.prompt_masked(0, 1))


def random_mask(s: Segment) -> Values:
    low, high = s.likelihood.lower, s.likelihood.upper
    ratio = low + (high - low) * s.own("ratio")
    return s.partly(i for i in s.targets if s.own("mask", i) < ratio)


def scheduled_mask(s: Segment) -> Values:
    start = uniform(combined(int(s.data["seed"][s.b]), s.k), "start ratio", 0)
    passes, number = s.likelihood.inner_iterations, int(s.data["iteration"][s.b])
    ratio = start + (1 - start) * number / (passes - 1) if passes > 1 else start
    return s.partly(i for i in s.targets if s.own("mask", i) < ratio)


def coupled(s: Segment) -> Values:
    low, high = s.likelihood.lower, s.likelihood.upper
    ratio = low + (high - low) * s.own("ratio")
    first = [i for i in s.targets if s.own("mask", i) < ratio]
    second = [i for i in s.targets if i not in first]
    whole = s.partly(s.targets)
    pair = added(scaled(s.partly(first), 1 / ratio), scaled(s.partly(second), 1 / (1 - ratio)))
    return {i: (whole[i] + pair[i]) / 2 for i in s.targets}


def weighted_draw(s: Segment, count: int, order: Callable[[int], float], factor: float = 1.0) -> Values:
    total = len(s.targets)
    return scaled(s.partly(s.smallest(count, s.targets, order)), factor * total / count) if total else {}


def elbo(s: Segment) -> Values:
    count = min(1 + math.floor(s.stratified("count") * len(s.targets)), len(s.targets))
    return weighted_draw(s, count, lambda i: s.own("order", i))


def antithetic_elbo(s: Segment) -> Values:
    pair, total = s.k // 2, len(s.targets)
    t = (uniform(s.seed, "count", 0) + pair / math.ceil(s.draws / 2)) % 1
    count = min(1 + math.floor(t * total), total)
    sign = 1
    if s.k % 2:
        count, sign = total + 1 - count, -1
    return weighted_draw(s, count, lambda i: sign * uniform(combined(s.seed, pair), "order", i))


NODES = {  # (node, weight) on (-1, 1), from the tables
    1: [(0.0, 2.0)],
    2: [(-1 / math.sqrt(3), 1.0), (1 / math.sqrt(3), 1.0)],
    3: [(-math.sqrt(0.6), 5 / 9), (0.0, 8 / 9), (math.sqrt(0.6), 5 / 9)],
}


def quadrature_elbo(s: Segment) -> Values:
    node, weight = NODES[s.draws][s.k]
    count = max(1, math.floor((node + 1) / 2 * len(s.targets)))
    return weighted_draw(s, count, lambda i: s.own("order", i), s.draws * weight / 2)


def coupled_elbo(s: Segment) -> Values:
    total = len(s.targets)
    count = min(math.floor(s.stratified("count") * (total + 1)), total)
    first = s.smallest(count, s.targets, lambda i: s.own("order", i))
    second = [i for i in s.targets if i not in first]
    p = count / (total + 1)
    found = []
    if first:
        found.append(scaled(s.partly(first), 1 / p / 2))
    if second:
        found.append(scaled(s.partly(second), 1 / (total / (total + 1) - p) / 2))
    return added(*found)


def sandwich_copies(s: Segment) -> list[Values]:
    """Log-probabilities of the masked tokens in each copy."""
    size, copies = s.likelihood.block_length, s.likelihood.num_copies
    blocks = sorted({i // size for i in s.targets}, key=lambda block: s.own("block", block))
    found = []
    for m in range(copies if blocks else 0):
        block = blocks[m % len(blocks)]
        inside = [i for i in s.targets if i // size == block]
        count = min(1 + math.floor(s.own("count", m) * len(inside)), len(inside))
        chosen = s.smallest(count, inside, lambda i, m=m: s.own("order", i * copies + m))
        chosen += [i for i in s.targets if i // size > block]
        share = s.likelihood.earlier_mask_share
        chosen += [i for i in s.targets if i // size < block and s.own("earlier", i * copies + m) < share]
        found.append(s.partly(chosen, s.prompt_masked(m, copies)))
    return found


def sandwich(s: Segment) -> Values:
    copies, total = sandwich_copies(s), len(s.targets)
    if not copies:
        return {}
    count = len(copies)
    lower = added(*(scaled(copy, total / len(copy) / count) for copy in copies))
    if s.data["selected", "advantage"][s.b, s.k] > 0:
        return lower
    beta, weight = s.likelihood.beta, s.likelihood.mix_weight
    upper = {}
    for i in lower:
        inner = sum(math.exp(copy[i]) ** beta * total / len(copy) for copy in copies if i in copy) / count
        upper[i] = math.log(inner) / beta * total / len(lower)
    return {i: weight * upper[i] + (1 - weight) * lower[i] for i in lower}


def autoregressive_order(s: Segment) -> Values:
    return added(*(s.score([j for j in s.positions if j >= i or j not in s.counted()], [i]) for i in s.targets))
