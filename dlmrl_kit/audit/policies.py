"""Policies that are small enough to differentiate through every trajectory, in float64.

``tabular``: one free logit for every prompt, state, position and token. ``network``: embeddings, one bidirectional
attention layer and a hidden layer, whose parameters all states share, as in a language model. ``deep network``: two
attention layers, so that keys and values depend on the other tokens and a cache is not exact. Prompts are one token
long.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from dlmrl_kit.core.component import Component
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.window import Span, Window

PolicyKind = Literal["tabular", "network", "deep network"]

_CHUNK = 128  # rows of a Jacobian computed at once


class Table(nn.Module):
    """Looks up logits in a table [prompts, states, length, tokens], where ``states`` is ``tokens ** length``.

    The number of a state is its completion, read as a number in base ``tokens``.

    Args:
        prompts, length, tokens: sizes; ``tokens`` includes the mask.
        generator: of the random logits.
        spread: their standard deviation.
    """

    def __init__(self, prompts: int, length: int, tokens: int, generator: torch.Generator, spread: float) -> None:
        super().__init__()
        shape = (prompts, tokens**length, length, tokens)
        self.logits = nn.Parameter(spread * torch.randn(shape, generator=generator, dtype=torch.float64))
        self.base = tokens ** torch.arange(length)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns logits [B, 1 + L, V], 0 at the position of the prompt. A masked prompt is read as the last one."""
        prompt, completion = input_ids[:, 0], input_ids[:, 1:]
        logits = self.logits[prompt.clamp(max=len(self.logits) - 1), (completion * self.base).sum(-1)]
        return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)


class Network(nn.Module):
    """Bidirectional attention layers and a hidden layer over token and position embeddings.

    Args:
        length, tokens: sizes; ``tokens`` includes the mask.
        generator: of the random weights.
        spread: about the standard deviation of the logits.
        width: size of the hidden states.
        layers: number of attention layers.
    """

    def __init__(
        self, length: int, tokens: int, generator: torch.Generator, spread: float, width: int = 4, layers: int = 1
    ) -> None:
        super().__init__()

        def random(*shape: int, scale: float = 1.0) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(shape, generator=generator, dtype=torch.float64))

        self.token, self.position = random(tokens, width), random(1 + length, width)
        shape = (layers, width, width)
        self.query, self.key, self.value = (random(*shape, scale=width**-0.5) for _ in range(3))
        self.hidden = random(width, 2 * width, scale=width**-0.5)
        self.out = random(2 * width, tokens, scale=spread * width**-0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, span: Span | None = None) -> Tensor:
        """Computes logits [B, S, V] from int64 [B, S] and bool [B, S]; with ``span``, those of the cached policy."""
        x = self._embedded(input_ids)
        then = x if span is None else self._embedded(span.anchor)
        for layer in range(len(self.query)):
            before = x
            if span is not None:
                before = self._mixed(span, x, then)
                then = self._layer(layer, then, attention_mask)
            x = self._layer(layer, before, attention_mask)
        if span is not None:
            x = self._mixed(span, x, then)
        return torch.tanh(x @ self.hidden) @ self.out

    def _embedded(self, input_ids: Tensor) -> Tensor:
        return self.token[input_ids] + self.position[: input_ids.shape[1]]

    def _layer(self, layer: int, x: Tensor, attention_mask: Tensor) -> Tensor:
        scores = (x @ self.query[layer]) @ (x @ self.key[layer]).mT
        return x + scores.masked_fill(~attention_mask[:, None], -1e9).softmax(-1) @ (x @ self.value[layer])

    @staticmethod
    def _mixed(span: Span, now: Tensor, then: Tensor) -> Tensor:
        """Takes ``now`` in the windows and ``then`` outside: [B, S, D]."""
        column = torch.arange(now.shape[1])
        inside = (column >= span.start[:, None]) & (column < span.end[:, None])
        return torch.where(inside[..., None], now, then)


class SmallPolicy(Policy):
    """A policy made of a ``Table`` or a ``Network`` instead of a transformers model; it has no tokenizer.

    Args:
        kind: of model, see the module docstring.
        vocab: number of tokens that may be committed, with ids 0 .. vocab - 1; the mask has id ``vocab``.
        length: L.
        prompts: number of prompts; prompt q is the token q.
        eos: how many of the last tokens end the text, each of them.
        seed: of the random weights.
        spread: about the standard deviation of the logits.
    """

    def __init__(
        self, kind: PolicyKind, vocab: int, length: int, prompts: int, eos: int, seed: int, spread: float = 1.0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        if kind == "tabular":
            self.model: Table | Network = Table(prompts, length, vocab + 1, generator, spread)
        else:
            self.model = Network(length, vocab + 1, generator, spread, layers=1 + (kind == "deep network"))
        self.mask_id = self.pad_id = vocab
        self.eos_ids = tuple(range(vocab - 1, vocab - 1 - eos, -1))
        self.vocab_size = vocab + 1
        self.forbidden_ids = (vocab,)
        self._window: Window | None = None
        self.eval()
        self.freeze_reference()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Computes logits at the asked positions, as ``Policy.forward``."""
        if self._window is None or torch.is_grad_enabled() or isinstance(self.model, Table):
            logits = self.model(input_ids, attention_mask)
        else:
            logits = self.model(input_ids, attention_mask, self._window.of(input_ids))
        if positions.dtype == torch.bool:
            return logits[positions]
        return logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))

    def check_cache(self) -> None:
        """Accepts every cache. A table has no keys and values, so that any cache is exact for it."""

    @contextlib.contextmanager
    def cached(self, window: Window) -> Iterator[None]:
        """Within the context, forwards without gradients are those of the cached policy."""
        outer, self._window = self._window, window
        try:
            yield
        finally:
            self._window = outer

    def freeze_reference(self) -> None:
        """Freezes the present weights as the reference policy."""
        self.frozen = copy.deepcopy(self.model).requires_grad_(False)

    @contextlib.contextmanager
    def reference(self) -> Iterator[Policy]:
        """Within the context, forwards are those of the reference policy."""
        own, self.model = self.model, self.frozen
        try:
            yield self
        finally:
            self.model = own

    @contextlib.contextmanager
    def shifted_reference(self, scale: float, seed: int) -> Iterator[None]:
        """Within the context, the reference is a random step away from the policy; afterwards it equals the policy.

        Args:
            scale: standard deviation of the change of each weight.
            seed: of the change.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.frozen.parameters():
                p.add_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        try:
            yield
        finally:
            self.freeze_reference()


def attached(component: Component, policy: Policy) -> None:
    """Attaches a component to a policy and draws the weights that it trains at random, so that they have an effect."""
    component.attach(policy)
    parameters = list(component.parameters())
    generator = torch.Generator().manual_seed(len(parameters))
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


class Parameters:
    """The P weights that gradients are taken by: those of the policy, and of a sampler that is trained with it."""

    def __init__(self, policy: Policy, sampler: Component) -> None:
        self.all = [*(parameter for _, parameter in policy.trainable()), *sampler.parameters()]

    @property
    def size(self) -> int:
        """P, the number of weights."""
        return sum(p.numel() for p in self.all)

    def gradient(self, value: Tensor, retain: bool = False) -> Tensor:
        """Computes the gradient of a scalar, [P], 0 for weights that it does not depend on.

        Args:
            value: a scalar.
            retain: whether its graph is needed again.
        """
        if not value.requires_grad:
            return torch.cat([torch.zeros_like(p).flatten() for p in self.all])
        found = torch.autograd.grad(value, self.all, retain_graph=retain, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(self.all, found, strict=True)]
        )

    def zero(self) -> Tensor:
        """Returns a gradient of 0, [P]."""
        return self.gradient(torch.zeros(()))

    def jacobian(self, values: Tensor) -> Tensor:
        """Computes the gradient of each of the E numbers in ``values``, of any shape: [E, P]."""
        flat = values.flatten()
        if len(flat) == 0:  # nothing is ever selected
            return torch.zeros(0, self.size, dtype=values.dtype)
        rows = []
        for part in torch.eye(len(flat), dtype=flat.dtype).split(_CHUNK):
            found = torch.autograd.grad(
                flat, self.all, part, is_grads_batched=True, retain_graph=True, allow_unused=True
            )
            blocks = [
                torch.zeros(len(part), p.numel(), dtype=p.dtype) if g is None else g.flatten(1)
                for p, g in zip(self.all, found, strict=True)
            ]
            rows.append(torch.cat(blocks, dim=1))
        return torch.cat(rows)
