r"""Threshold decoding with token editing (LLaDA2.1, arXiv 2602.08676): committed tokens of a block may be replaced.

With p_i = softmax(logits_i) and v_i its best token, a step draws tokens at

    filled    { i masked     : p_i(v_i) >= threshold },  or at the one where it is largest if there is none
    edited    { i not masked : p_i(v_i) >= editing_threshold, and v_i is another token than the one there }

of the block, at both together, from the behaviour distribution. A block is finished in the first state without masks in
which nothing would be edited, or after ``steps`` denoising steps, the last of which fills all masks that are left. All
of that depends on the state alone, so the exact log-probability of a step is that of the tokens drawn:

    log pi(x_{t+1} | x_t) = sum over filled and edited i of log p_i(x_{t+1, i})

To see that a block is finished takes a forward pass, and no step of the trajectory.
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict, TensorDictBase

from dlmrl_kit.core.behaviour import confidence_of
from dlmrl_kit.core.keys import PROMPT_IDS, PROMPT_MASK, STEP_GREEDY_IDS, STEP_STATE_IDS, STEP_VALID
from dlmrl_kit.core.policy import Policy, completion_features
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.trajectory import on_device, on_host, rows_of
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.base import MayChoose
from dlmrl_kit.samplers.canvas import CanvasRecorder, Outlook, State
from dlmrl_kit.samplers.mask import highest
from dlmrl_kit.samplers.one_step import CHOSEN_BY, NOT_COMPUTED, best_tokens
from dlmrl_kit.samplers.redrawing import RedrawingSampler


@register("sampler", paper="arXiv 2602.08676")
class TokenEditing(RedrawingSampler):
    """Fills and edits all positions of a block that the model is sure of; for models that fill masks.

    The defaults of the thresholds are those of the generator that was published with LLaDA2.1.

    Args:
        completion_length, block_length, temperature, top_k, top_p: as ``Sampler``. Tokens are drawn: above temperature
            0 an edit may also put back what was there.
        threshold: on max_v softmax(logits)[v] where a mask is filled, in (0, 1].
        editing_threshold: the same where a token is edited, in [0, 1]; 0 edits whatever is not the best token.
        steps: denoising steps of a block, at most.
        stop_at_eos: a row ends once a finished block holds the end of the text.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        completion_length: int,
        block_length: int | None = None,
        threshold: float = 0.95,
        editing_threshold: float = 0.9,
        steps: int = 48,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop_at_eos: bool = True,
    ) -> None:
        super().__init__(completion_length, steps, block_length, temperature, top_k, top_p, stop_at_eos)
        check(0 < threshold <= 1, self, "threshold", threshold, "in (0, 1]")
        check(0 <= editing_threshold <= 1, self, "editing_threshold", editing_threshold, "in [0, 1]")
        self.threshold = threshold
        self.editing_threshold = editing_threshold

    def look(self, policy: Policy, prompt: TensorDictBase, state: State) -> Outlook:
        """Predicts the block of every row, and decides which of its positions are filled and edited."""
        ids, still_open, device = on_host(state.ids), on_host(state.open), state.ids.device
        block = self.allowed(still_open, policy.block_offset(on_host(prompt[PROMPT_MASK])))
        canvas, masks = on_device(block, device), on_device(block & (ids == policy.mask_id), device)
        last = on_device(on_host(state.steps) == self.steps - 1, device)
        view = self.view(policy, prompt, state.ids, canvas)
        best = view.dense(view.logits.argmax(-1), 0)
        sure = view.dense(view.certainty.best, -torch.inf)
        one = highest(sure, masks, torch.ones_like(state.steps))
        filled = masks & (one | (sure >= _bar(self.threshold)) | last[:, None])
        edited = canvas & ~masks & (best != state.ids) & (sure >= _bar(self.editing_threshold))
        return Outlook(view, filled | edited, last, best)

    def complete(
        self, recorder: CanvasRecorder, prompt: TensorDictBase, policy: Policy, may_choose: MayChoose | None
    ) -> None:
        """Fills the masks of the states that may be chosen with their best tokens, if that is asked for."""
        if not recorder.wants(STEP_GREEDY_IDS):
            return
        out, valid = recorder.out, recorder.out[STEP_VALID]
        kept = valid
        if may_choose is not None:
            kept = valid & may_choose(TensorDict({key: out[key] for key in CHOSEN_BY if key in out}, [len(valid)]))
        stored = out[STEP_GREEDY_IDS]
        stored.copy_(torch.where(valid & ~kept, NOT_COMPUTED, 0)[..., None])
        for row, step in zip(*(at.split(len(valid)) for at in on_host(kept).nonzero(as_tuple=True)), strict=True):
            rows, steps = on_device(row, valid.device), on_device(step, valid.device)
            ids, given = out[STEP_STATE_IDS][rows, steps].long(), rows_of(prompt, rows)
            masks = ids == policy.mask_id
            if bool(on_host(masks).any()):
                features = completion_features(policy, given[PROMPT_IDS], given[PROMPT_MASK], ids, masks)
                ids = ids.masked_scatter(masks, best_tokens(policy, features))
            stored[rows, steps] = ids.to(stored.dtype)


def _bar(threshold: float) -> float:
    """Returns the confidence of a probability, which may be 0."""
    return confidence_of(threshold) if threshold else -math.inf
