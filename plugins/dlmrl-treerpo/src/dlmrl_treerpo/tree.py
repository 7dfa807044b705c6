r"""Tree sampling (d-TreeRPO, arXiv 2512.09675): the samples of a group share their first denoising steps.

The root is the prompt with everything masked. The T steps are cut into ``height`` levels of equal length; at the start
of each level every state branches into ``branching`` children, which go on independently. The branching ** height
leaves are the group's completions, and what several leaves share is sampled once.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from dlmrl_kit.caches.base import Cache
from dlmrl_kit.core.keys import GROUP, Key
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.signatures import with_parameters_of
from dlmrl_kit.core.trajectory import first_rows, number_in_group, partition
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.base import MayChoose
from dlmrl_kit.samplers.low_confidence import LowConfidence
from dlmrl_kit.samplers.mask import MaskSampler
from dlmrl_kit.samplers.recorder import MaskRecorder
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_treerpo.nodes import TREE_NODE, TREE_STEP, tree_nodes
from dlmrl_treerpo.sibling_leave_one_out import SiblingLeaveOneOut


@register("sampler", paper="arXiv 2512.09675")
class Tree(LowConfidence):
    """Decodes as ``LowConfidence``, with the samples of a prompt as the leaves of a tree.

    Each sample by itself is distributed as one of ``LowConfidence``; evaluation, and whoever resumes from a state, gets
    independent samples. A node draws with the seed of its first leaf. Recipes need ``Trainer.group_size`` = branching
    ** height. In a batch whose groups have another size, the i-th sample of a group is leaf i: missing leaves are left
    out, and the root has as many children as the others need.

    Args:
        completion_length, tokens_per_step, block_length, temperature, top_k, top_p, stop_at_eos: as ``MaskSampler``.
        height: levels of the tree, at least 1; if there are more than steps, some have no step and fork for nothing.
        branching: children of every node, at least 2.

    Reads ``prompt_ids``, ``prompt_mask``, ``seed`` and ``group``; writes as ``Sampler``, and ``("dlmrl_treerpo",
    "node")``, ``("dlmrl_treerpo", "step")`` int64 [B, height] (see ``dlmrl_treerpo.nodes``).

    Raises:
        ValueError: a value out of range.
    """

    not_sizes = (*LowConfidence.not_sizes, "height", "branching")

    @with_parameters_of(MaskSampler)
    def __init__(self, *decoding: Any, height: int = 2, branching: int = 2, **named: Any) -> None:
        super().__init__(*decoding, **named)
        check(height >= 1, self, "height", height, "at least 1")
        check(branching >= 2, self, "branching", branching, "at least 2")
        self.height = height
        self.branching = branching
        self.group_size = branching**height
        self.in_keys = [*self.in_keys, GROUP]
        self.out_keys = [*self.out_keys, TREE_NODE, TREE_STEP]

    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        policy: Policy,
        keys: Collection[Key] = (),
        cache: Cache | None = None,
        may_choose: MayChoose | None = None,
    ) -> TensorDictBase:
        """Grows the tree of every group, level by level; see ``Sampler.forward``."""
        self.attach(policy)
        group = tensordict[GROUP]
        below = self.branching ** torch.arange(self.height - 1, -1, -1, device=group.device)
        node = number_in_group(group)[:, None] // below
        bounds = torch.arange(self.height + 1, device=group.device) * self.num_steps(policy) // self.height
        with self.rolling_out(policy, cache):
            recorder = self._grow(tensordict, node, bounds.tolist(), policy, self.recorded_keys(keys), may_choose)
            written = recorder.finish()
        tensordict.update({key: value.clone() for key, value in written.items()})
        return tensordict.set(TREE_NODE, node).set(TREE_STEP, bounds[:-1].expand_as(node).clone())

    def last_fork(self, trajectory: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Returns where a leaf leaves its parent, and the parent; see ``Sampler.last_fork``."""
        parents = tree_nodes(trajectory)[:, -2] if self.height > 1 else trajectory[GROUP]
        return trajectory[TREE_STEP][:, -1], parents

    def exact_advantage(self) -> SiblingLeaveOneOut:
        """Returns that of siblings: other leaves share actions, so their rewards are no baseline."""
        return SiblingLeaveOneOut()

    def _grow(
        self,
        tensordict: TensorDictBase,
        node: Tensor,
        bounds: list[int],
        policy: Policy,
        keys: Collection[Key],
        may_choose: MayChoose | None,
    ) -> MaskRecorder:
        """Grows all trees; a level takes the steps between two ``bounds``, once for each of its nodes."""
        recorder, above = None, None
        for level in range(self.height):
            at = partition(tensordict[GROUP], node[:, level])
            rows = first_rows(at)
            prompt = tensordict[rows]
            if recorder is None or above is None:
                ids = self.fully_masked(prompt, policy)
                recorder = MaskRecorder(policy, ids, bounds[-1], keys, may_choose)
            else:
                recorder.select(above[rows])
            self.advance(range(*bounds[level : level + 2]), prompt, recorder, policy)
            above = at
        assert recorder is not None
        assert above is not None
        recorder.select(above)
        return recorder
