"""Decoding that can be watched: the states between the denoising steps."""

from __future__ import annotations

from collections.abc import Iterator

from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.keys import COMPLETION_IDS
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.trajectory import on_host
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.samplers.mask import MaskSampler
from dlmrl_kit.samplers.recorder import MaskRecorder


def watch(sampler: Sampler, prompt: TensorDictBase, policy: Policy) -> Iterator[Tensor]:
    """Decodes as ``Sampler.decode`` does, and yields the state after each denoising step, the last one finished.

    Args:
        sampler: decodes; of one that does not fill masks, such as one that renoises, the end alone is yielded.
        prompt: [B], as ``Sampler.decode``.
        policy: the denoiser.

    Yields:
        int64 [B, L], a new tensor each time; ``policy.mask_id`` where a position is open.
    """
    if not isinstance(sampler, MaskSampler):
        yield sampler.decode(prompt, policy=policy)[COMPLETION_IDS]
        return
    sampler.attach(policy)
    ids = sampler.fully_masked(prompt, policy)
    recorder = MaskRecorder(policy, ids, sampler.num_steps(policy), sampler.out_keys)
    for step in range(recorder.num_steps):
        with sampler.rolling_out(policy):
            if not bool(sampler.running(on_host(recorder.ids), policy).any()):
                break
            sampler.advance(range(step, step + 1), prompt, recorder, policy)
        yield recorder.ids.clone()
    with sampler.rolling_out(policy):
        final = recorder.finish()[COMPLETION_IDS].clone()
    yield final
