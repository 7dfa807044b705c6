r"""Block-wise evidence lower bound (EBPO, LLaDA2.1, arXiv 2602.08676): every block given the blocks before it.

    B = sum over blocks b of  E over x ~ U{1..n_b} and sets M of x of its n_b tokens of
            n_b / x  sum over l in M of log pi(o_l | q, earlier blocks, block b outside M; later blocks masked)
     <= log pi(o | q) of decoding block by block, and one token per step in random order within a block.

With one block this is the bound of ``Elbo``, with blocks of one position ``AutoregressiveOrder``. The x of all blocks
and draws of a sample are stratified together. Masks and weights are those of DARE's re-implementation
(yjyddq/DARE, verl/trainer/ppo/dllm_core_algos.py), as the official code is not public. There a block-causal model
scores all blocks in one forward over the noised and the clean completion; here each block has a forward of its own,
which is the same for such a model, and right for a bidirectional one too.
"""

from __future__ import annotations

import dataclasses

import torch
from dlmrl_kit.core.component import Sizes, rebuilt
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.likelihoods.masking import count_from, first_of, partly_masked
from dlmrl_kit.likelihoods.segments import Copies, SegmentLikelihood, Segments
from torch import Tensor


@register(
    "likelihood",
    paper="arXiv 2602.08676",
    unbiased=False,
    under="an unbiased estimate of a lower bound of the log-probability of block-wise decoding",
)
class BlockElbo(SegmentLikelihood):
    """Estimates the sum over blocks of a lower bound of each block given the earlier ones, one copy per block and draw.

    Args:
        sampling_temperature, after_eos, redraw: as ``SegmentLikelihood``.
        block_length: positions of a block, at least 1; counted from the start of the completion.

    Reads and writes as ``SegmentLikelihood``; ``log_prob`` is a sum over tokens, ``token_log_prob`` holds its
    summands: the masked tokens, times n_b / x.

    Raises:
        ValueError: a value out of range.
    """

    random_masks = True

    def __init__(
        self,
        sampling_temperature: bool = True,
        after_eos: bool = False,
        redraw: bool = False,
        block_length: int = 32,
    ) -> None:
        super().__init__(sampling_temperature, after_eos, redraw)
        check(block_length >= 1, self, "block_length", block_length, "at least 1")
        self.block_length = block_length

    def forwards(self, length: int) -> int:
        """Returns one forward for each block."""
        return -(-length // self.block_length)

    def resized(self, before: Sizes, after: Sizes) -> BlockElbo:
        """Makes blocks of the same share of the completion."""
        return rebuilt(self, block_length=before.scale_length(self.block_length, after))

    def masks(self, segments: Segments) -> Copies:
        """Makes copy b with x tokens of block b masked, and all later blocks."""
        inside, later = self._blocks(segments)
        number = inside.shape[1]
        cell = segments.draw[:, None] * number + torch.arange(number, device=inside.device)
        level = (segments.shared_uniforms("count")[:, None] + cell.double() / (segments.draws * number)) % 1
        count = count_from(level, 1, inside.sum(-1))
        chosen = first_of(inside, segments.position_uniforms("order", number), count)
        return dataclasses.replace(partly_masked(segments, chosen | later), scored=chosen)

    def weights(self, copies: Copies, segments: Segments) -> Tensor:
        """Returns n_b / x: float64 [R, M, 1]."""
        total = self._blocks(segments)[0].sum(-1).double()
        return (total / copies.scored.sum(-1).clamp(min=1))[..., None]

    def _blocks(self, segments: Segments) -> tuple[Tensor, Tensor]:
        """Returns the tokens of each block, bool [R, M, L], and the positions of later blocks, bool [1, M, L]."""
        length = segments.tokens.shape[1]
        block = torch.arange(length, device=segments.tokens.device) // self.block_length
        index = torch.arange(-(-length // self.block_length), device=block.device)[:, None]
        return segments.targets[:, None] & (block == index), (block > index)[None]
