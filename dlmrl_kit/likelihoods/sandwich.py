r"""Sandwiched bounds of the sequence log-probability (SPG, arXiv 2510.09541): which one depends on the advantage.

With M copies, S_m the x_m tokens masked in copy m, S the n tokens masked in at least one, p_lm = pi(o_l | q, copy m):

    lower = 1/M sum over m of  L / x_m  sum over l in S_m of log p_lm
    upper = L / n  sum over l in S of  1/beta  log( 1/M sum over m with l in S_m of  L / x_m  p_lm ^ beta )
    log pi = lower where the advantage is positive,  mix_weight * upper + (1 - mix_weight) * lower  elsewhere

A positive advantage raises a lower bound, a negative one lowers an upper bound. With masks of uniformly distributed
size (one block, nothing else masked) and many copies, ``lower`` is the bound of ``Elbo`` and ``upper`` is above it for
every beta > 0; it bounds the log-probability of random-order decoding itself for beta >= L, for smaller beta up to a
constant. With few copies, ``upper`` is underestimated: it is the logarithm of a mean.

The masks are those of the released code: a random block of the completion with 1 .. all of its tokens masked, all
later blocks masked, tokens of the prompt and of earlier blocks masked now and then. All masked tokens are scored.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from dlmrl_kit.core.component import Sizes, rebuilt
from dlmrl_kit.core.keys import SELECTED_ADVANTAGE
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.likelihoods.masking import count_from, first_of, inverse_share, partly_masked
from dlmrl_kit.likelihoods.segments import Copies, SegmentLikelihood, Segments, prompt_masks


@register("likelihood", paper="arXiv 2510.09541", unbiased=False, under="bounds of the sequence log-probability")
class Sandwich(SegmentLikelihood):
    """Takes a lower bound where the advantage is positive, and mixes an upper bound with it elsewhere.

    Args:
        sampling_temperature, after_eos, redraw: as ``SegmentLikelihood``.
        num_copies: M, masked copies per segment; at least 1.
        beta: exponent of the upper bound, above 0; the paper takes at least 1.
        mix_weight: share of the upper bound, in [0, 1]; 1 is the upper bound alone, 0 the lower one throughout.
        block_length: positions of a block, at least 1.
        prompt_mask_share: probability with which each prompt token is masked, in [0, 1].
        earlier_mask_share: the same for tokens of blocks before the one drawn.

    Reads (with ``("selected", "advantage")``) and writes as ``SegmentLikelihood``; ``log_prob`` is a sum over tokens: L
    times what the released code calls the log-probability. ``token_log_prob`` holds its summands.

    Raises:
        ValueError: a value out of range.
    """

    not_sizes = ("num_copies",)
    random_masks = True

    def __init__(
        self,
        sampling_temperature: bool = True,
        after_eos: bool = False,
        redraw: bool = False,
        num_copies: int = 2,
        beta: float = 1.5,
        mix_weight: float = 0.5,
        block_length: int = 32,
        prompt_mask_share: float = 0.15,
        earlier_mask_share: float = 0.15,
    ) -> None:
        super().__init__(sampling_temperature, after_eos, redraw)
        check(num_copies >= 1, self, "num_copies", num_copies, "at least 1")
        check(0 < beta < math.inf, self, "beta", beta, "above 0 and finite")
        check(0 <= mix_weight <= 1, self, "mix_weight", mix_weight, "in [0, 1]")
        check(block_length >= 1, self, "block_length", block_length, "at least 1")
        check(0 <= prompt_mask_share <= 1, self, "prompt_mask_share", prompt_mask_share, "in [0, 1]")
        check(0 <= earlier_mask_share <= 1, self, "earlier_mask_share", earlier_mask_share, "in [0, 1]")
        self.in_keys = [*self.in_keys, SELECTED_ADVANTAGE]
        self.num_copies = num_copies
        self.beta = beta
        self.mix_weight = mix_weight
        self.block_length = block_length
        self.prompt_mask_share = prompt_mask_share
        self.earlier_mask_share = earlier_mask_share

    def forwards(self, length: int) -> int:
        """Returns one forward for each copy."""
        return self.num_copies

    def resized(self, before: Sizes, after: Sizes) -> Sandwich:
        """Makes blocks of the same share of the completion."""
        return rebuilt(self, block_length=before.scale_length(self.block_length, after))

    def masks(self, segments: Segments) -> Copies:
        """Makes M copies of each segment, each masked in a random block; no block comes twice before all came once."""
        targets = segments.targets[:, None]
        block = torch.arange(targets.shape[-1], device=targets.device) // self.block_length
        drawn = drawn_blocks(segments, self.block_length, self.num_copies)[..., None]
        inside = targets & (block == drawn)
        count = count_from(segments.uniforms("count", self.num_copies), 1, inside.sum(-1))
        chosen = first_of(inside, segments.position_uniforms("order", self.num_copies), count)
        now_and_then = segments.position_uniforms("earlier", self.num_copies) < self.earlier_mask_share
        copies = partly_masked(segments, chosen | (block > drawn) | ((block < drawn) & now_and_then))
        masked = prompt_masks(segments, self.prompt_mask_share, self.num_copies)
        return dataclasses.replace(copies, prompt_masked=masked)

    def combine(self, log_probs: Tensor, copies: Copies, segments: Segments) -> tuple[Tensor, Tensor]:
        """Returns the bound that each segment's advantage asks for, [R], and its summands by token, [R, L]."""
        weight = inverse_share(copies, segments).to(log_probs.dtype)
        lower = (log_probs * weight).mean(1)
        upper = upper_bound(log_probs, weight, copies.scored, self.beta)
        some = copies.scored.any(1)
        upper = upper * (segments.targets.sum(-1).double() / some.sum(-1).clamp(min=1)).to(upper.dtype)[:, None]
        mix = self.mix_weight * (segments.per_segment(SELECTED_ADVANTAGE) <= 0).to(upper.dtype)[:, None]
        tokens = mix * upper + (1 - mix) * lower
        return tokens.sum(-1), tokens


def drawn_blocks(segments: Segments, block_length: int, copies: int) -> Tensor:
    """Draws a block with targets for each of M copies, int64 [R, M]; no block twice before all were drawn."""
    targets = segments.targets
    spare = -targets.shape[1] % block_length
    there = torch.nn.functional.pad(targets, (0, spare)).unflatten(1, (-1, block_length)).any(-1)
    order = segments.uniforms("block", there.shape[1]).masked_fill(~there, torch.inf).argsort(stable=True, dim=-1)
    turn = torch.arange(copies, device=targets.device) % there.sum(-1, keepdim=True).clamp(min=1)
    return order.gather(1, turn)


def upper_bound(log_probs: Tensor, weight: Tensor, scored: Tensor, beta: float) -> Tensor:
    """Returns 1/beta log(mean over copies of weight * p^beta) of each token, [R, L]; 0 for tokens that no copy scores.

    Args:
        log_probs: [R, M, L].
        weight: [R, M, 1].
        scored: bool [R, M, L].
        beta: above 0.
    """
    some = scored.any(1, keepdim=True)
    terms = torch.where(scored, beta * log_probs + weight.log(), torch.where(some, -torch.inf, 0.0))
    mean = terms.logsumexp(1) - math.log(scored.shape[1])
    return torch.where(some.squeeze(1), mean / beta, 0.0)
