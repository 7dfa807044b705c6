"""DiffusionGemma as transformers ships it (``DiffusionGemmaForBlockDiffusion``): see ``policies.diffusion_gemma``."""

from __future__ import annotations

from typing import Any

from dlmrl_kit.policies.canvas_policy import DiffusionGemmaPolicy
from dlmrl_kit.policies.checkpoint_files import end_of_turn, load_model, load_tokenizer
from dlmrl_kit.policies.layout import Layout, read_files
from dlmrl_kit.policies.options import LoadOptions

SUPPORTED = "DiffusionGemma (model type diffusion_gemma)"


def matches(config: dict[str, Any]) -> bool:
    """Whether ``config.json`` is DiffusionGemma's."""
    classes = config.get("architectures") or []
    return config.get("model_type") == "diffusion_gemma" or "DiffusionGemmaForBlockDiffusion" in classes


def load(source: str, config: dict[str, Any], options: LoadOptions) -> DiffusionGemmaPolicy:
    """Loads the checkpoint; the end of text is that of a turn, where there is a chat template.

    Raises:
        UserError: tensors that are missing, or a tokenizer that cannot be loaded.
    """
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    settings = DiffusionGemmaConfig.from_dict(config)
    model = load_model(DiffusionGemmaForBlockDiffusion, source, options, config=settings)
    tokenizer = load_tokenizer(source, config.get("text_config") or {})
    layout = Layout(read_files(source))
    policy = DiffusionGemmaPolicy(model, tokenizer, layout=layout, **options.policy_arguments())
    end = end_of_turn(source, tokenizer)
    policy.eos_id = policy.eos_id if end is None else end
    return policy
