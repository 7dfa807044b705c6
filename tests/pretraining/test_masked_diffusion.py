"""The pre-training loss against a loop, and its masking levels."""

from __future__ import annotations

import math

import pytest
import torch
from support.pretraining import policy_of, watched_features

from dlmrl_kit.core.seeding import sample_seeds, uniforms
from dlmrl_kit.pretrainers.masked_diffusion import MaskedDiffusion
from dlmrl_kit.pretraining.run import step_noise


def test_the_loss_is_the_weighted_cross_entropy_of_the_masked_tokens() -> None:
    policy, rows, width, length, least = policy_of(), 5, 3, 6, 0.25
    policy.model.get_input_embeddings().weight.data.mul_(20)
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(4, 10, (rows, width), generator=generator)
    mask = torch.arange(width) >= torch.tensor([0, 1, 2, 0, 1])[:, None]
    prompt = prompt.masked_fill(~mask, policy.pad_id)
    completion = torch.randint(4, 10, (rows, length), generator=generator)
    seen = watched_features(policy)
    seed, spread = sample_seeds(rows, "cpu", 8), (0.13 + torch.arange(rows, dtype=torch.float64) / rows) % 1
    found = MaskedDiffusion(min_mask=least).objective(policy, prompt, mask, completion, seed, spread)

    noise = uniforms(seed, length, purpose="mask")
    levels = [max(share, least) for share in spread.tolist()]
    hidden = [[noise[row, i].item() < levels[row] for i in range(length)] for row in range(rows)]
    assert least in levels
    assert max(levels) > 0.7
    total = 0.0
    for row in range(rows):
        state = [policy.mask_id if hidden[row][i] else int(completion[row, i]) for i in range(length)]
        ids = [*prompt[row][mask[row]].tolist(), *state]  # without the padding
        logits = policy.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -length:].double()
        for i in range(length):
            if hidden[row][i]:
                total += -logits[i].log_softmax(-1)[completion[row, i]].item() / levels[row]
    assert found.item() == pytest.approx(total / (rows * length), rel=1e-5)

    ((ids, _, positions),) = seen
    assert torch.equal(ids[:, :width], prompt)  # never masked
    assert positions.tolist() == [[False] * width + hidden[row] for row in range(rows)]


def test_masking_levels_are_spread_over_the_batch() -> None:
    """The level of each of 1000 rows lies in a thousandth of (0, 1] of its own: the number masked is hardly noisy."""
    policy = policy_of()
    seen = watched_features(policy)
    prompt = torch.full((1000, 1), 4)
    for seed in range(3):
        noise = step_noise(torch.arange(1000), 1000, 0, seed)
        with torch.no_grad():
            MaskedDiffusion().objective(policy, prompt, torch.ones(1000, 1).bool(), prompt.expand(-1, 8), *noise)
    for _, _, positions in seen:
        masked = positions[:, 1:].float().mean(-1)
        assert masked.mean().item() == pytest.approx(0.5, abs=0.02)
        assert masked.std().item() == pytest.approx(math.sqrt(1 / 12 + 1 / 48), abs=0.02)  # uniform, then binomial
        fifths = masked.roll(-int(masked.argmin())).reshape(5, 200).mean(-1)  # levels rise from row to row
        assert (fifths[1:] - fifths[:-1]).abs().min() > 0.1
    assert not torch.equal(seen[0][2], seen[1][2])


def test_a_batch_in_which_nothing_is_masked_costs_nothing() -> None:
    policy = policy_of()
    prompt, completion = torch.full((1, 2), 4), torch.full((1, 1), 5)
    noise = sample_seeds(1, "cpu", 0), torch.zeros(1, dtype=torch.float64)
    assert uniforms(noise[0], 1, purpose="mask").item() > 0.01
    loss = MaskedDiffusion(min_mask=0.01).objective(policy, prompt, torch.ones(1, 2).bool(), completion, *noise)
    assert loss.item() == 0
    loss.backward()
