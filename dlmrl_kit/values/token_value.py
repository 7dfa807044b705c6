r"""Token values (TraceRL, arXiv 2509.06949): what each token of a step is worth, given the state before the step.

    V_l(x_start) = w . f_l(x_start)    for the positions l committed in a segment

f_l is what the policy's head reads at position l, held fixed; w starts at zero and has no bias, as in the released
code. There the value model is a second copy of the whole denoiser, trained by itself; here it is a linear function of
the policy's features, which costs one forward without gradient per segment, and sends no gradient to the policy.
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    PROMPT_IDS,
    PROMPT_MASK,
    SELECTED_END,
    SELECTED_STEP,
    SELECTED_VALUE,
    SELECTED_WEIGHT,
)
from dlmrl_kit.core.policy import Policy, completion_features
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.values.base import Value, segment_tokens


@register("value", paper="arXiv 2509.06949")
class TokenValue(Value):
    """Predicts, from the policy's features at the start of a segment, a value for every token committed in it.

    Args:
        after_eos: whether tokens behind the first end of text have a value too; as the likelihood's.
        batch_size: segments per forward, at least 1.
        learning_rate: of the head, positive; None: the trainer's.

    Reads the trajectory and the selection with ``("selected", "end")``. Writes ``("selected", "value")`` [B, K, L] by
    position, 0 where no token is. Use it with likelihoods of segments (``StepMerge``), whose tokens are by position.

    Raises:
        ValueError: a value out of range.
    """

    not_sizes = ("batch_size",)
    head: nn.Linear | None

    def __init__(self, after_eos: bool = False, batch_size: int = 64, learning_rate: float | None = None) -> None:
        super().__init__()
        check(batch_size >= 1, self, "batch_size", batch_size, "at least 1")
        positive = learning_rate is None or 0 < learning_rate < math.inf
        check(positive, self, "learning_rate", learning_rate, "positive and finite, or None")
        self.after_eos = after_eos
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.in_keys = [*self.in_keys, SELECTED_END]
        self.register_module("head", None)

    def attach(self, policy: Policy) -> None:
        """Creates the head, if there is none yet.

        Raises:
            UserError: the head belongs to a policy of another hidden size.
        """
        if self.head is None:
            size = policy.feature_size
            self.head = nn.Linear(size, 1, bias=False, device=policy.device, dtype=policy.real_dtype)
            nn.init.zeros_(self.head.weight)
        elif self.head.in_features != policy.feature_size:
            raise UserError(
                f"{type(self).__name__} was attached to a policy of hidden size {self.head.in_features}; this one has "
                f"{policy.feature_size}"
            )

    def forward(self, tensordict: TensorDictBase, *, policy: Policy, sampler: Sampler) -> TensorDictBase:
        """Writes the values."""
        self.attach(policy)
        assert self.head is not None
        used = tensordict[SELECTED_WEIGHT] > 0
        targets = segment_tokens(tensordict, policy, self.after_eos)[used]
        features = self._features(tensordict, used, targets, policy).to(self.head.weight.dtype)
        values = self.head(features).squeeze(-1).to(features.dtype)
        flat = values.new_zeros(targets.shape).masked_scatter(targets, values)
        out = flat.new_zeros((*used.shape, targets.shape[1])).index_put(used.nonzero(as_tuple=True), flat)
        return tensordict.set(SELECTED_VALUE, out)

    @torch.no_grad()
    def _features(self, tensordict: TensorDictBase, used: Tensor, targets: Tensor, policy: Policy) -> Tensor:
        """Returns what the head reads at the ``targets`` (bool [R, L]) in the first states of used segments: [N, D]."""
        some = targets.any(-1)
        row, start = used.nonzero(as_tuple=True)[0][some], tensordict[SELECTED_STEP][used][some]
        targets, found = targets[some], []
        for part in torch.arange(len(row), device=row.device).split(self.batch_size):
            own = row[part]
            masked = tensordict[COMMIT_STEP][own] >= start[part][:, None]
            ids = tensordict[COMPLETION_IDS][own].masked_fill(masked, policy.mask_id)
            prompt = tensordict[PROMPT_IDS][own], tensordict[PROMPT_MASK][own]
            found.append(completion_features(policy, *prompt, ids, targets[part]))
        return torch.cat(found) if found else torch.zeros(0, policy.feature_size, device=row.device)
