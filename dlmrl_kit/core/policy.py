"""The denoiser's interface: what the kit asks of a policy, and how states go through it.

A policy predicts the tokens at asked positions. Most do so in two parts, ``features`` (the body, which is expensive per
sequence) and ``head`` (which is expensive per position): samplers and likelihoods run the head in pieces, so that no
tensor of all positions times the vocabulary is ever in memory. A policy that has only ``forward`` works as well.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dlmrl_kit.core.behaviour import LOG_ZERO, Behaviour, Process, behaviour_log_probs, forbid
from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.core.keys import PROMPT_IDS, PROMPT_MASK
from dlmrl_kit.core.phases import phase
from dlmrl_kit.core.prompt import Prompt
from dlmrl_kit.core.window import Window

T = TypeVar("T")


class Vocabulary:
    """The tokens of a policy, and how its prompts and blocks are laid out: all that a rule of decoding needs."""

    tokenizer: Any
    """A tokenizer of transformers."""
    vocab_size: int
    mask_id: int
    eos_id: int | None
    """The end of text, which also fills what a finished completion leaves open; None: there is none."""
    pad_id: int
    forbidden_ids: tuple[int, ...]
    """Tokens that are never committed, the mask among them."""
    chat_template: bool = False
    """Whether plain prompts are formatted with the tokenizer's chat template; conversations always are."""
    prefix_ids: tuple[int, ...] = ()
    """Tokens in front of every plain prompt: what the family starts a text with."""
    device: torch.device

    @property
    def filler_id(self) -> int:
        """What fills the space behind the end of a text: the end of text again, padding where there is none."""
        return self.eos_id if self.eos_id is not None else self.pad_id

    def encode(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """``prompt_ids`` int64 [N, P] and ``prompt_mask`` bool [N, P], left-padded, on the policy's device.

        Raises:
            RecipeError: as ``prompt_tokens``.
        """
        rows = [self.prompt_tokens(prompt) for prompt in prompts]
        width = max(len(row) for row in rows)
        ids = torch.tensor([[self.pad_id] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
        return {PROMPT_IDS: ids.to(self.device), PROMPT_MASK: mask.to(self.device)}

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, as the policy's family wants it.

        A conversation, and any prompt of a policy with ``chat_template``, goes through the tokenizer's chat template
        and ends where the assistant's answer begins; other texts follow ``prefix_ids``.

        Raises:
            RecipeError: a conversation for a tokenizer without a chat template, or one that the template refuses.
        """
        conversation = not isinstance(prompt, str)
        if not conversation and not self.chat_template:
            ids: list[int] = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            return [*self.prefix_ids, *ids]
        if not self.tokenizer.chat_template:
            raise RecipeError("the prompt is a conversation, but the policy's tokenizer has no chat template")
        messages = prompt if conversation else [{"role": "user", "content": prompt}]
        try:
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates raise whatever jinja, or they themselves, like
            raise RecipeError(f"the tokenizer's chat template refuses a conversation: {error}") from error
        formatted: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return formatted

    def completion_texts(self, ids: Tensor) -> list[str]:
        """Texts of completions int64 [N, L], up to the first end-of-text token, special tokens left out."""
        if len(ids) == 0:  # tokenizers cannot decode an empty batch
            return []
        if self.eos_id is not None:
            after = (ids == self.eos_id).long().cumsum(-1) > 0
            ids = ids.masked_fill(after, self.eos_id)
        texts: list[str] = self.tokenizer.batch_decode(ids.tolist(), skip_special_tokens=True)
        return texts

    def block_offset(self, prompt_mask: Tensor) -> Tensor | None:
        """Prompt tokens in the block in which the completion begins, int64 [B]; None: it begins with a block.

        Args:
            prompt_mask: bool [B, P].
        """
        return None


class Policy(Vocabulary, nn.Module, ABC):
    """Base class of denoisers. A subclass sets the attributes of ``Vocabulary`` and implements ``forward``.

    One whose logits come from a body and a head overrides ``features``, ``head`` and ``feature_size`` too, so that
    ``forward`` is ``head(features(...))``. Everything else has a default that is right for a policy without adapters,
    blocks and caches.
    """

    shift_logits: bool = False
    """Whether the logits at position i - 1 predict token i."""
    block_size: int | None = None
    """Positions of a block, for policies that denoise block by block."""
    noise: Literal["mask", "uniform"] = "mask"
    """What an open position holds: the mask token, or a random token of the vocabulary."""
    name: str = ""
    """The path or hub id it was loaded from."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def real_dtype(self) -> torch.dtype:
        """Precision of what is recorded: float64 for a policy in float64, else float32."""
        return torch.float64 if next(self.parameters()).dtype == torch.float64 else torch.float32

    @property
    def num_parameters(self) -> int:
        """Parameters of the denoiser itself, without a frozen reference."""
        return sum(p.numel() for p in self.parameters())

    @abstractmethod
    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Logits at the asked positions.

        Args:
            input_ids: int64 [B, S].
            attention_mask: bool [B, S], False at padding.
            positions: bool [B, S], the positions to predict; or int64 [B, M], their indices.

        Returns:
            [N, V] for a bool mask (N = positions.sum(), in row-major order), [B, M, V] for indices.
        """

    @property
    def feature_size(self) -> int:
        """D, the size of ``features``."""
        return self.vocab_size

    def features(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """What the head turns into logits at the asked positions: as ``forward``, with D for V. Here the logits."""
        with phase("body"):
            logits: Tensor = self(input_ids, attention_mask, positions)
        return logits

    def head(self, features: Tensor) -> Tensor:
        """Logits [..., V] from features [..., D], of which they share no memory. Here a copy."""
        return features.clone()

    def prefix_cache(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, a policy whose finished blocks never change may reuse what it computed of them."""
        return contextlib.nullcontext()

    def check_cache(self) -> None:
        """Refuses approximate caches (``dlmrl_kit.caches``) where they cannot be used. Here they never can.

        Raises:
            UserError: the policy has none.
        """
        raise UserError(f"{type(self).__name__} has no approximate cache: take no cache")

    def cached(self, window: Window) -> contextlib.AbstractContextManager[None]:
        """Within the context and without gradients, this policy is the cached one: see ``core.window``.

        Args:
            window: which positions a step computes again; inputs must end with completions of its length.

        Raises:
            UserError: as ``check_cache``.
        """
        self.check_cache()
        return contextlib.nullcontext()

    def merged(self) -> contextlib.AbstractContextManager[None]:
        """Within the context and without gradients, an adapter is in the weights: faster, equal up to rounding."""
        return contextlib.nullcontext()

    def fused(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, in which the weights must not change, an adapter takes fewer matrix products."""
        return contextlib.nullcontext()

    def freeze_reference(self) -> None:
        """Fixes the present weights as the reference policy.

        Raises:
            UserError: the policy keeps no reference.
        """
        raise UserError(f"{type(self).__name__} keeps no reference policy: take no regulariser that compares with one")

    @contextlib.contextmanager
    def reference(self) -> Iterator[Policy]:
        """Within the context, this policy computes with the frozen reference weights.

        Raises:
            RuntimeError: ``freeze_reference`` was not called.
        """
        raise RuntimeError("call freeze_reference() before using the reference policy")
        yield self

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimiser updates."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]


def completion_features(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, positions: Tensor
) -> Tensor:
    """What the policy's head turns into logits at some completion positions, each completion behind its prompt.

    Args:
        policy: the denoiser.
        prompt_ids, prompt_mask: int64 and bool [B, P], left-padded.
        completion_ids: int64 [B, L], masked where open; all of it is attended to.
        positions: bool [B, L], N of them.

    Returns:
        [N, D], in row-major order.
    """
    prompt_ids, prompt_mask = unpadded(prompt_ids, prompt_mask)
    return policy.features(
        torch.cat([prompt_ids, completion_ids], dim=1),
        torch.cat([prompt_mask, torch.ones_like(positions)], dim=1),
        torch.cat([torch.zeros_like(prompt_mask), positions], dim=1),
    )


def completion_logits(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, positions: Tensor
) -> Tensor:
    """Raw logits [N, V] at some completion positions; arguments as ``completion_features``."""
    return policy.head(completion_features(policy, prompt_ids, prompt_mask, completion_ids, positions))


def unpadded(prompt_ids: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Left-padded prompts, int64 and bool [B, P], without the columns at the left that are padding in every row."""
    if prompt_mask.numel() == 0 or bool(prompt_mask[:, 0].any()):
        return prompt_ids, prompt_mask
    empty = int((~prompt_mask.any(0)).long().cumprod(0).sum())
    return prompt_ids[:, empty:], prompt_mask[:, empty:]


LOGITS_BYTES = {True: 32 * 2**20, False: 1024 * 2**20}
"""Largest block of float32 logits that is held at once, on a CPU (True) and elsewhere."""


def most_predictions(vocab: int, device: torch.device) -> int:
    """Predictions whose logits stay below ``LOGITS_BYTES``; at least 1."""
    return max(1, LOGITS_BYTES[device.type == "cpu"] // (4 * vocab))


def log_probs_of(
    policy: Policy,
    features: Tensor,
    tokens: Tensor,
    behaviour: Behaviour | None,
    process: Process | None = None,
) -> Tensor:
    """Log-probability of one token at each position, at least ``LOG_ZERO``; differentiable.

    Args:
        policy: its head makes logits of the features.
        features: [N, D].
        tokens: int64 [N].
        behaviour: the distribution, or None for softmax(logits).
        process: what is done to the logits before, see ``core.behaviour.Process``; None: nothing.

    Returns:
        [N].
    """

    def pick(features: Tensor, tokens: Tensor, part: slice = slice(None)) -> Tensor:
        logits = forbid(policy.head(features), policy.forbidden_ids)
        if process is not None:
            logits = process(logits, part)
        log_probs = logits.log_softmax(-1) if behaviour is None else behaviour_log_probs(logits, behaviour)
        return log_probs.gather(-1, tokens[:, None]).squeeze(-1).clamp(min=LOG_ZERO)

    most = most_predictions(policy.vocab_size, features.device)
    if len(features) <= most:
        return pick(features, tokens)
    parts = [slice(first, first + most) for first in range(0, len(features), most)]
    return torch.cat([recomputed(partial(pick, part=part), features[part], tokens[part]) for part in parts])


def recomputed(function: Callable[..., T], *given: Tensor) -> T:
    """``function(*given)``, whose intermediate results are not kept for the backward pass but computed again."""
    if not torch.is_grad_enabled():
        return function(*given)
    found: T = checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)
    return found
