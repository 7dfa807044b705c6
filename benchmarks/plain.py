"""The same algorithm, written straightforwardly: what a reader of the paper would write first.

Full logits at all positions, float64 noise and confidences over the whole vocabulary, the distribution of every
committed token kept, one forward and backward pass per sample and selected step. Same sampling rule and same numbers as
the kit (tests/benchmarks/test_benchmarks.py); the benchmarks compare with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from common import Size, full_ids
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.core.seeding import combine_seeds, uniforms
from dlmrl_kit.policies.transformers_policy import TransformersPolicy

Draw = Callable[[Tensor, Tensor, torch.Generator, Tensor], Tensor]


@dataclass
class Rollout:
    """Trajectories as lists over steps; distributions kept, as released trainers do."""

    completion: Tensor
    commit_step: Tensor
    log_prob: list[Tensor] = field(default_factory=list)
    model_log_prob: list[Tensor] = field(default_factory=list)
    entropy: list[Tensor] = field(default_factory=list)
    greedy: list[Tensor] = field(default_factory=list)
    distributions: list[Tensor] = field(default_factory=list)


def gumbel_draw(logits: Tensor, allowed: Tensor, generator: torch.Generator, seed: Tensor) -> Tensor:
    """Draws a token at every position by the Gumbel trick in float64, as LLaDA's released code does."""
    noise = torch.rand(logits.shape, dtype=torch.float64, generator=generator, device=logits.device)
    return noise.log_().neg_().log_().neg_().add_(logits).argmax(-1)


def inverse_draw(logits: Tensor, allowed: Tensor, generator: torch.Generator, seed: Tensor) -> Tensor:
    """Draws a token at every allowed position by inverting the cumulative distribution, with the kit's noise."""
    tokens = torch.zeros_like(allowed, dtype=torch.int64)
    for row, position in allowed.nonzero().tolist():
        cumulative = logits[row, position].softmax(-1).cumsum(-1, dtype=torch.float64)
        noise = uniforms(seed[row : row + 1], allowed.shape[1], purpose="token drawn")[:, position]
        tokens[row, position] = torch.searchsorted(cumulative, noise * cumulative[-1], right=True)[0]
    return tokens


@torch.no_grad()
def rollout(
    policy: TransformersPolicy, prompts: TensorDict, size: Size, generator: torch.Generator, draw: Draw
) -> Rollout:
    """Samples by low-confidence remasking, with the exact log-probability and every quantity from full logits."""
    width = prompts["prompt_ids"].shape[1]
    x = torch.full((len(prompts), size.length), policy.mask_id, device=policy.device)
    out = Rollout(x, torch.full_like(x, size.steps))
    block = torch.arange(size.length, device=x.device) // size.block
    for step in range(size.steps):
        masked = x == policy.mask_id
        allowed = masked & (block == block[masked.long().argmax(-1)][:, None])
        logits = full_logits(policy, prompts, x)[:, width:].float()
        tempered = logits / size.temperature
        out.greedy.append(torch.where(masked, logits.argmax(-1), x))
        drawn = draw(tempered, allowed, generator, combine_seeds(prompts["seed"], step))
        probabilities = logits.double().softmax(-1)
        confidence = probabilities.gather(-1, drawn[..., None]).squeeze(-1).masked_fill(~allowed, -math.inf)
        committed = torch.zeros_like(allowed)
        for row in range(len(x)):
            count = min(size.per_step, int(allowed[row].sum()))
            committed[row, confidence[row].topk(count).indices] = True
        behaviour = tempered[committed].log_softmax(-1)
        token = by_row(behaviour, drawn, committed)
        order = [
            order_term(probabilities[row], tempered[row], confidence[row], committed[row], allowed[row])
            for row in range(len(x))
        ]
        out.log_prob.append(token + torch.stack(order))
        out.model_log_prob.append(by_row(logits[committed].log_softmax(-1), drawn, committed))
        probs = behaviour.exp()
        entropy = -(probs * behaviour.masked_fill(behaviour == -math.inf, 0.0)).sum(-1)
        of_row = torch.zeros(committed.shape, device=x.device).masked_scatter(committed, entropy)
        out.entropy.append(of_row.sum(-1) / committed.sum(-1))
        out.distributions.append(probs)
        out.commit_step = torch.where(committed, step, out.commit_step)
        x = torch.where(committed, drawn, x)
    out.completion = x
    return out


def by_row(log_probs: Tensor, drawn: Tensor, committed: Tensor) -> Tensor:
    """Adds up by row the log-probabilities of the tokens that were committed, from their distributions [n, V]."""
    token = log_probs.gather(-1, drawn[committed][:, None]).squeeze(-1)
    return torch.zeros(committed.shape, device=drawn.device).masked_scatter(committed, token).sum(-1)


def order_term(
    probabilities: Tensor, tempered: Tensor, confidence: Tensor, committed: Tensor, allowed: Tensor
) -> Tensor:
    """Computes the log-probability that every position of a row left masked drew something less confident."""
    least = confidence[committed].min()
    rest = allowed & ~committed
    mass = tempered[rest].softmax(-1).masked_fill(probabilities[rest] >= least, 0.0).sum(-1)
    return mass.log().sum()


def full_logits(policy: TransformersPolicy, prompts: TensorDict, completion: Tensor) -> Tensor:
    """Computes logits [B, S, V] at all positions, forbidden tokens at -inf."""
    ids, mask, position = full_ids(prompts, completion)
    logits: Tensor = policy.model(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False).logits
    logits[..., list(policy.forbidden_ids)] = -math.inf
    return logits


def state(run: Rollout, row: int, step: int, mask_id: int) -> Tensor:
    """Restores x_t of a row, [1, L]."""
    return run.completion[row].masked_fill(run.commit_step[row] >= step, mask_id)[None]


def step_log_prob(policy: TransformersPolicy, prompts: TensorDict, run: Rollout, row: int, step: int) -> Tensor:
    """Computes the log-probability of the tokens that a step committed, at temperature 1, from full logits."""
    width = prompts["prompt_ids"].shape[1]
    logits = full_logits(policy, prompts[row : row + 1], state(run, row, step, policy.mask_id))
    committed = run.commit_step[row] == step
    log_probs = logits[0, width:].float().log_softmax(-1)
    picked: Tensor = log_probs[committed].gather(-1, run.completion[row][committed][:, None]).sum()
    return picked


@torch.no_grad()
def reference(policy: TransformersPolicy, prompts: TensorDict, run: Rollout, selected: Tensor) -> Tensor:
    """Computes log-probabilities [B, K] of the selected steps (int64 [B, K]) with the adapter off, one at a time."""
    with policy.reference():
        rows = [
            [step_log_prob(policy, prompts, run, row, step) for step in steps]
            for row, steps in enumerate(selected.tolist())
        ]
    return torch.stack([torch.stack(row) for row in rows])


def update(
    policy: TransformersPolicy,
    prompts: TensorDict,
    run: Rollout,
    advantage: Tensor,
    selected: Tensor,
    fixed: Tensor,
    beta: float,
) -> float:
    """Adds up the gradient of clipped PPO with KL (k3) on the selected steps, one sample and one step at a time.

    Args:
        policy: with an adapter; gradients accumulate in its parameters.
        prompts, run: a rollout.
        advantage: [B, K].
        selected: int64 [B, K], steps.
        fixed: [B, K], log-probabilities of the reference.
        beta: of the KL.

    Returns:
        The loss.
    """
    total, count = 0.0, len(selected)
    for row in range(len(selected)):
        for entry, step in enumerate(selected[row].tolist()):
            new = step_log_prob(policy, prompts, run, row, step)
            ratio = (new - run.model_log_prob[step][row]).exp()
            gain = torch.minimum(ratio * advantage[row, entry], ratio.clamp(0.8, 1.5) * advantage[row, entry])
            gap = fixed[row, entry] - new
            loss = (-gain + beta * (gap.exp() - gap - 1)) / count
            loss.backward()
            total += loss.item()
    return total
