"""SDAR's mixture of experts (SDAR-30B-A3B, arXiv 2510.06303): block diffusion on Qwen3-MoE.

As the dense SDARs, but for the experts. ``config.json`` names neither the mask's id nor the size of a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlmrl_kit.policies.checkpoint_files import ConfigJson
from dlmrl_kit.policies.families.sdar import SDAR
from dlmrl_kit.policies.layout import Layout, read_files
from dlmrl_kit.policies.routers import BlockCausalExpertsPolicy
from dlmrl_kit.policies.weight_files import router_precisions

if TYPE_CHECKING:
    from dlmrl_kit.policies.checkpoint_files import ModelClass


class SDARMoE(SDAR):
    """Weights of an SDAR with experts in ``Qwen3MoeForCausalLM``, under a block-causal mask."""

    supported = "SDAR's mixture of experts (model type sdar_moe)"
    policy_class = BlockCausalExpertsPolicy
    kind = "sdar_moe"
    architecture = "SDARMoeForCausalLM"
    native = "qwen3_moe"

    def model_class(self) -> ModelClass:
        """``Qwen3MoeForCausalLM``."""
        from transformers import Qwen3MoeForCausalLM

        return Qwen3MoeForCausalLM

    def layout(self, folder: str, config: ConfigJson) -> Layout | None:
        """As ``SDAR``, with the precision of the routers in the files."""
        plain = super().layout(folder, config)
        return None if plain is None else Layout(read_files(folder), precisions=router_precisions(folder))
