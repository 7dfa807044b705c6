r"""Masks that grow over the inner iterations (UniGRPO, arXiv 2505.15809): from a random ratio to fully masked.

    r ~ U(0, 1),   t_n = r + (1 - r) n / (N - 1)   in pass n = 0 .. N - 1 over the rollout,
    log pi ~ sum over masked l of log pi(o_l | q, visible o),   each l masked with probability t_n

The paper rounds t_n down to multiples of 1 / 1000; its worked example spaces the ratios by 1 / N instead. The released
code has no schedule: that is ``RandomMask``.
"""

from __future__ import annotations

from torch import Tensor

from dlmrl_kit.core.errors import RecipeError
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.seeding import combine_seeds, uniforms
from dlmrl_kit.core.validate import check
from dlmrl_kit.likelihoods.masking import each_with, partly_masked
from dlmrl_kit.likelihoods.segments import Copies, SegmentLikelihood, Segments


@register("likelihood", paper="arXiv 2505.15809", unbiased=False, under="scores tokens in states never visited")
class ScheduledMask(SegmentLikelihood):
    """Scores the masked tokens of a copy whose mask ratio rises to 1 over the passes; masks are new in each pass.

    Args:
        inner_iterations: number of passes over a rollout, the same as ``Trainer.inner_iterations``; at least 1.
        sampling_temperature, after_eos: as ``SegmentLikelihood``.

    Reads (with ``iteration``) and writes as ``SegmentLikelihood``; ``("selected", "token_mask")`` holds the masked
    tokens.

    Raises:
        ValueError: a value out of range.
        RecipeError: when it runs, a pass beyond ``inner_iterations``.
    """

    not_sizes = ("inner_iterations",)
    random_masks = True

    def __init__(self, inner_iterations: int = 1, sampling_temperature: bool = True, after_eos: bool = False) -> None:
        super().__init__(sampling_temperature, after_eos, redraw=True)
        check(inner_iterations >= 1, self, "inner_iterations", inner_iterations, "at least 1")
        self.inner_iterations = inner_iterations

    def ratio(self, segments: Segments) -> Tensor:
        """Returns the mask ratio of each segment in this pass, float64 [R]; all passes share where it starts."""
        number = segments.per_sample("iteration")
        last = int(number.max()) if len(number) else 0
        if last >= self.inner_iterations:
            raise RecipeError(
                f"ScheduledMask.inner_iterations = {self.inner_iterations}, but this is pass {last + 1} over the "
                "rollout: set it to Trainer.inner_iterations"
            )
        start = uniforms(combine_seeds(segments.per_sample("seed"), segments.draw), purpose="start ratio")
        return start + (1 - start) * number.double() / max(self.inner_iterations - 1, 1)

    def masks(self, segments: Segments) -> Copies:
        """Makes one copy."""
        return partly_masked(segments, each_with(segments, self.ratio(segments)))
