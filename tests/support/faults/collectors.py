"""Collectors with one mistake each."""

from __future__ import annotations

from support.collectors import Here
from tensordict import TensorDictBase

from dlmrl_kit.collectors.base import Weights


class KeepsItsFirstWeights(Here):
    """Thinks that weights never change."""

    def collect(self, prompts: TensorDictBase, weights: Weights, version: int) -> TensorDictBase:
        return super().collect(prompts, weights, 0)


class SortsPrompts(Here):
    """Returns trajectories as they come."""

    def collect(self, prompts: TensorDictBase, weights: Weights, version: int) -> TensorDictBase:
        return super().collect(prompts, weights, version).flip(0)


class LeavesKeysOut(Here):
    """Returns completions alone."""

    def collect(self, prompts: TensorDictBase, weights: Weights, version: int) -> TensorDictBase:
        return super().collect(prompts, weights, version).exclude("commit_step")


class OpenAtOnce(Here):
    """Closes what it believes to be open."""

    def close(self) -> None:
        assert self.replica is not None
        super().close()
