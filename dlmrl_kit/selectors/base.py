"""Selectors choose which denoising steps are trained, and with which weight.

The policy gradient is a sum over steps; a selector replaces it by a weighted sum over K of them,

    sum_{t < n} g_t   ->   sum_k weight_k * g_{step_k}.

Most selectors keep a subset: they implement ``kept``, and the base class packs it into K entries. One that draws with
replacement implements ``choose``. The helpers rank steps in float64, so that sums of entropies compare exactly.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.keys import (
    SEED,
    SELECTED_END,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_ENTROPY,
    STEP_LOG_PROB,
    STEP_MODEL_ENTROPY,
    STEP_VALID,
    Key,
)
from dlmrl_kit.core.promises import Given, like, parts_fault, promises, tensor_fault
from dlmrl_kit.core.validate import check

LISTED_DRAWS = 2
"""How many steps a random selector draws on the audit's small problems, where all of its outcomes are listed."""


def _of_steps(result: object, given: Given) -> str:
    valid = given["tensordict"][STEP_VALID]
    return tensor_fault(result, "bool", valid.shape, device=valid.device)


def _chosen(result: Any, given: Given) -> str:
    if fault := parts_fault(result, "steps", "weights"):
        return fault
    valid, (step, weight) = given["tensordict"][STEP_VALID], result
    shape = (len(valid), step.shape[-1] if isinstance(step, Tensor) and step.dim() else 0)
    return tensor_fault(step, "int64", shape, device=valid.device, name="steps") or tensor_fault(
        weight, "real", shape, device=valid.device, name="weights"
    )


def _weights(result: object, given: Given) -> str:
    kept = given["kept"]
    return tensor_fault(result, "real", (len(kept), 1), device=kept.device)


class Selector(Component):
    """Base class of selectors. Subclasses implement ``kept``, or ``choose``; those of segments ``ends`` too.

    Args:
        reads: keys read besides ``("step", "valid")`` bool [B, T]; ``seed`` among them in a selector that draws.

    Writes ``("selected", "step")`` int64 [B, K], in ascending order of time, and ``("selected", "weight")`` [B, K]:
    float32, or float64 in a trajectory whose entropies or advantages are; on demand ``("selected", "end")`` int64
    [B, K]: an entry stands for the steps from ``step`` up to, not including, ``end`` - here the one step. Entries that
    a row does not need come last, with step 0 and weight 0.
    """

    implemented: ClassVar[tuple[str, ...]] = ("kept", "choose", "forward")
    optional_keys = (SELECTED_END,)
    with_replacement: ClassVar[bool] = False
    """Whether a step may be chosen more than once in a row, each time with a weight of its own."""
    segments: ClassVar[bool] = False
    """Whether an entry may stand for several steps; ``ends`` then says for which."""
    nested: ClassVar[bool] = False
    """Whether ``kept``, given the beginning of a row, keeps at least the steps there that it keeps given the whole row.

    Then what only chosen steps need is not computed for the others during the rollout. A subclass that overrides the
    choice has to declare it again.
    """
    max_selected: int | None = None
    """K is at most this; None: as many as the batch needs."""

    def __init_subclass__(cls, **given: Any) -> None:
        """Does not inherit ``nested`` where the subclass chooses in another way."""
        super().__init_subclass__(**given)
        if "nested" not in vars(cls) and {"kept", "choose", "forward"} & {*vars(cls)}:
            cls.nested = False

    def __init__(self, *reads: Key) -> None:
        super().__init__()
        self.in_keys: list[Key] = [STEP_VALID, *reads]
        self.out_keys: list[Key] = [SELECTED_STEP, SELECTED_WEIGHT]

    @property
    def random(self) -> bool:
        """Whether it draws: then it reads ``seed`` and lists its ``outcomes``, if the audit is to take expectations."""
        return SEED in self.in_keys

    def most_selected(self, steps: int) -> int:
        """Returns the largest K for trajectories of up to ``steps`` steps."""
        return steps if self.max_selected is None else min(self.max_selected, steps)

    @promises(_of_steps)
    def kept(self, tensordict: TensorDictBase) -> Tensor:
        """Chooses steps: bool [B, T], at most ``max_selected`` of each row, and only valid ones."""
        raise NotImplementedError

    @promises(_weights)
    def weights(self, kept: Tensor, valid: Tensor) -> Tensor:
        """Returns the weight of the chosen steps of each row: float64 [B, 1], here 1."""
        return torch.ones_like(kept[:, :1], dtype=torch.float64)

    @promises(_chosen)
    def choose(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Returns the chosen steps, int64 [B, K], and their weights, float64 [B, K]."""
        return self.packed(self.kept(tensordict), tensordict[STEP_VALID])

    def packed(self, kept: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Packs a subset of the valid steps, both bool [B, T], into steps int64 [B, K] and weights float64 [B, K]."""
        width = int(kept.sum(-1).max()) if self.max_selected is None else min(self.max_selected, kept.shape[-1])
        order = (~kept).int().sort(dim=-1, stable=True).indices[:, :width]
        used = kept.gather(-1, order)
        return order.masked_fill(~used, 0), self.weights(kept, valid) * used

    def outcomes(self, tensordict: TensorDictBase) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Lists every selection that ``choose`` can make, for exact expectations.

        Returns:
            Steps int64 [B, K], weights float64 [B, K] and the probability of this selection in each row, float64 [B].
            K may differ between selections; the probabilities of a row sum to 1.

        Raises:
            NotImplementedError: this selector is random and does not list its outcomes.
        """
        if self.random:
            raise NotImplementedError(f"{type(self).__name__} is random and does not list its outcomes")
        step, weight = self.choose(tensordict)
        return [(step, weight, weight.new_ones(len(weight)))]

    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        keys: Collection[Key] = (),
    ) -> TensorDictBase:
        """Chooses steps."""
        step, weight = self.choose(tensordict)
        # As precise as what the sampler recorded, whatever the rule reads of it.
        recorded = [tensordict.get(key, None) for key in {*self.in_keys, STEP_LOG_PROB, STEP_ENTROPY}]
        double = any(values is not None and values.dtype == torch.float64 for values in recorded)
        real = torch.float64 if double else torch.float32
        tensordict.set(SELECTED_STEP, step).set(SELECTED_WEIGHT, weight.to(real))
        if SELECTED_END in keys:
            tensordict.set(SELECTED_END, self.ends(tensordict, step))
        return tensordict

    @promises(like("int64", "step"))
    def ends(self, tensordict: TensorDictBase, step: Tensor) -> Tensor:
        """Returns the first step behind the segment that starts at each chosen step: int64 [B, K]; here the next."""
        return step + 1


Distribution = Literal["behaviour", "model"]
"""Whose entropy counts: that of the distribution tokens are drawn from, or of softmax(logits), at temperature 1."""


def entropy_key(component: Component, distribution: Distribution) -> tuple[str, str]:
    """Returns the key that holds the mean entropy of each step under a distribution.

    Raises:
        ValueError: there is no such distribution.
    """
    check(distribution in ("behaviour", "model"), component, "distribution", distribution, "'behaviour' or 'model'")
    return STEP_ENTROPY if distribution == "behaviour" else STEP_MODEL_ENTROPY


def valid_entropy(tensordict: TensorDictBase, key: tuple[str, str] = STEP_ENTROPY) -> Tensor:
    """Returns the mean entropy of each step, float64 [B, T], 0 past the end of a row; ``key``: see ``entropy_key``."""
    return tensordict[key].double().clamp(min=0).masked_fill(~tensordict[STEP_VALID], 0)


def descending_rank(values: Tensor, valid: Tensor) -> Tensor:
    """Ranks the valid steps of each row by value, 0 the largest: int64 [B, T]; ties go to the earlier step."""
    return values.masked_fill(~valid, -torch.inf).sort(dim=-1, descending=True, stable=True).indices.argsort(-1)


def tail_sum(values: Tensor, rank: Tensor) -> Tensor:
    """Sums the values of each step and of all steps ranked behind it: [B, T]; the smallest are added first."""
    ordered = values.gather(-1, rank.argsort(-1))
    return ordered.flip(-1).cumsum(-1).flip(-1).gather(-1, rank)
