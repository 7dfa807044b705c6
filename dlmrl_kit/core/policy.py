"""The interface of denoisers: what the kit asks of a policy, and how states go through it.

A policy predicts the tokens at the positions it is asked for. Most compute ``features`` first (the body, expensive per
sequence) and turn them into logits by ``head`` (expensive per position). Samplers and likelihoods run the head in
pieces, so that no tensor of all positions times the vocabulary is ever in memory. A policy may have only ``forward``.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlmrl_kit.core.behaviour import LOG_ZERO, Behaviour, Process, behaviour_log_probs, forbid
from dlmrl_kit.core.errors import RecipeError, UserError
from dlmrl_kit.core.keys import PROMPT_IDS, PROMPT_MASK
from dlmrl_kit.core.phases import phase
from dlmrl_kit.core.policy_contexts import PolicyContexts
from dlmrl_kit.core.processes import ALONE, Processes
from dlmrl_kit.core.prompt import Prompt, fault_of, is_meant
from dlmrl_kit.core.recomputed import recomputed
from dlmrl_kit.core.trajectory import beside, on_device, unpadded
from dlmrl_kit.core.validate import clipped

SHOWN = 5
"""How many characters without a token a message names."""


class Vocabulary:
    """Describes the tokens of a policy and how its prompts and blocks are laid out, without the model.

    It is all that tasks, scorers and the rules of decoding need of a policy.
    """

    tokenizer: Any
    """A tokenizer of transformers."""
    vocab_size: int
    mask_id: int
    eos_ids: tuple[int, ...]
    """The tokens that end a text, whichever comes first; empty: none does. The first one is ``eos_id``."""
    pad_id: int
    forbidden_ids: tuple[int, ...]
    """Tokens that are never committed, such as the mask."""
    chat_template: bool = False
    """Whether plain prompts are formatted with the tokenizer's chat template; conversations always are."""
    prefix_ids: tuple[int, ...] = ()
    """Tokens that the tokenizer or the model's family puts in front of a text; every plain prompt begins with them."""
    unknown_ids: tuple[int, ...] = ()
    """Tokens that the tokenizer writes for characters that it does not have."""
    spelt_by: str = ""
    """The setting that names the characters for which there are tokens, of a tokenizer that a recipe makes."""
    max_length: int | None = None
    """The most tokens, of prompt and completion together, that the model has positions for; None: any number."""
    device: torch.device

    @property
    def eos_id(self) -> int | None:
        """The first of ``eos_ids``, which also fills the positions that a finished completion leaves open."""
        return self.eos_ids[0] if self.eos_ids else None

    @property
    def filler_id(self) -> int:
        """The token that fills positions behind the end of a text: end of text again, or padding if there is none."""
        return self.eos_id if self.eos_id is not None else self.pad_id

    def is_end(self, ids: Tensor) -> Tensor:
        """Tells which tokens (int64 [...]) end a text: bool [...]."""
        found = torch.zeros_like(ids, dtype=torch.bool)
        for end in self.eos_ids:
            found |= ids == end
        return found

    def before_end(self, ids: Tensor) -> Tensor:
        """Tells which positions of completions (int64 [..., L]) are before their first end of text: bool [..., L]."""
        return self.is_end(ids).long().cumsum(-1) == 0

    def encode(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Tokenises prompts and pads them at the left, as ``prompt_tokens`` and ``padded``."""
        return self.padded([self.prompt_tokens(prompt) for prompt in prompts])

    def padded(self, rows: Sequence[list[int]]) -> dict[str, Tensor]:
        """Pads tokenised prompts at the left.

        Returns:
            ``prompt_ids`` int64 [N, P] and ``prompt_mask`` bool [N, P] (False at padding), on the policy's device.
        """
        width = max(len(row) for row in rows)
        ids = torch.tensor([[self.pad_id] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
        return {PROMPT_IDS: ids.to(self.device), PROMPT_MASK: mask.to(self.device)}

    def prompt_tokens(
        self, prompt: Prompt, completion_length: int = 0, prefix: str = "", most: int | None = None
    ) -> list[int]:
        """Tokenises one prompt in the format of the policy's family.

        A conversation, and any prompt of a policy with ``chat_template``, goes through the tokenizer's chat template
        and ends where the assistant's answer begins. Any other text is put behind ``prefix_ids``, unless it begins with
        them. What the model would not see, or would take for something else, is refused.

        Args:
            prompt: a text, or a conversation.
            completion_length: positions that the completion takes.
            prefix: what the answer begins with; the completion goes on behind it.
            most: a longer prompt is cut from the left to so many tokens; None: it is not.

        Raises:
            RecipeError: ``core.prompt.fault_of``; a conversation for a tokenizer without a chat template, or one that
                the template refuses or leaves a message out of; characters that the tokenizer does not have; a mask;
                no tokens; more tokens than leave room for the completion in ``max_length``.
        """
        ids = self.whole_prompt(prompt, prefix)
        ids = ids if most is None else ids[-most:]
        needed = len(ids) + completion_length
        if self.max_length is not None and needed > self.max_length:
            raise RecipeError(
                f"the prompt has {len(ids)} tokens and the completion {completion_length}, {needed} in all, but the "
                f"model has {self.max_length} positions; shorten the prompt or the sampler's completion_length"
            )
        return ids

    def whole_prompt(self, prompt: Prompt, prefix: str = "") -> list[int]:
        """Tokenises one prompt, however long it is; arguments and errors as ``prompt_tokens``."""
        if isinstance(prompt, str) and not self.chat_template:
            (ids,) = self.text_tokens([prompt + prefix])
            begins = ids[: len(self.prefix_ids)] == [*self.prefix_ids]
            ids = ids if begins else [*self.prefix_ids, *ids]
        else:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            ids = self._formatted(messages, prefix)
        if not ids:
            raise RecipeError(f"no tokens are left of the prompt {prompt!r}")
        return ids

    def text_tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenises texts as they are, without special tokens around them.

        Raises:
            RecipeError: a text with characters that the tokenizer does not have, with half of a surrogate pair, or with
                a mask.
        """
        for text in texts:
            if not text.isascii() and (fault := fault_of(text)):
                raise RecipeError(fault)
        spans = bool(self.tokenizer.is_fast)  # others cannot say which characters a token stands for
        found = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=spans)
        rows: list[list[int]] = found["input_ids"]
        for number, (text, ids) in enumerate(zip(texts, rows, strict=True)):
            missing = self._missing(text, ids, found["offset_mapping"][number]) if spans else []
            if missing or (not spans and not {*ids}.isdisjoint(self.unknown_ids)):
                # Where characters are dropped, tokenizers are wrong about the places of those behind.
                named = list(filter(self._unsaid, dict.fromkeys(text))) or missing or [text]
                characters = ", ".join(map(repr, named[:SHOWN]))
                told = f"; those that it has are named by {self.spelt_by}" if self.spelt_by else ""
                raise RecipeError(f"the policy's tokenizer has no tokens for {characters}, in {clipped(text)!r}{told}")
            if self.mask_id in ids:
                mask = self.tokenizer.convert_ids_to_tokens(self.mask_id)
                raise RecipeError(f"the model's mask token {mask!r} stands in {clipped(text)!r}; write it differently")
        return rows

    def _missing(self, text: str, ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[str]:
        """Returns the parts of a text that its tokens do not say: unknown ones, and characters that were dropped."""
        said, missing = [False] * len(text), []
        for token, (start, end) in zip(ids, spans, strict=True):
            said[start:end] = [True] * (end - start)
            if token in self.unknown_ids and text[start:end] != self.tokenizer.convert_ids_to_tokens(token):
                missing.append(text[start:end])
        dropped = [c for c, there in zip(text, said, strict=True) if not there and is_meant(c)]
        return list(dict.fromkeys([*missing, *dropped]))

    def _unsaid(self, character: str) -> bool:
        """Tells whether a character, tokenised by itself, has no token but an unknown one."""
        ids = self.tokenizer(character, add_special_tokens=False)["input_ids"]
        unknown = [i in self.unknown_ids and self.tokenizer.convert_ids_to_tokens(i) != character for i in ids]
        return all(unknown) and is_meant(character)

    def _formatted(self, messages: list[dict[str, str]], prefix: str) -> list[int]:
        """Tokenises a conversation by the chat template, and the prefix behind it; raises as ``prompt_tokens``."""
        if not self.tokenizer.chat_template:
            raise RecipeError("the prompt is a conversation, but the policy's tokenizer has no chat template")
        if fault := fault_of(messages):
            raise RecipeError(fault)
        try:
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates raise whatever jinja, or they themselves, like
            raise RecipeError(f"the tokenizer's chat template refuses a conversation: {error}") from error
        contents = [message["content"].strip() for message in messages]
        self.text_tokens([*contents, prefix])
        for message, content in zip(messages, contents, strict=True):
            if content not in text and message["role"] != "assistant":  # templates drop thoughts of earlier answers
                raise RecipeError(f"the tokenizer's chat template leaves out the message of the {message['role']}")
        ids: list[int] = self.tokenizer(text + prefix, add_special_tokens=False)["input_ids"]
        return ids

    def completion_texts(self, ids: Tensor) -> list[str]:
        """Decodes completions int64 [N, L] up to the first token that ends a text, without special tokens."""
        if len(ids) == 0:  # tokenizers cannot decode an empty batch
            return []
        lengths = self.before_end(ids).sum(-1).tolist()
        rows = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return texts

    def block_offset(self, prompt_mask: Tensor) -> Tensor | None:
        """Counts the prompt tokens in the block in which the completion begins, for blocks counted from the prompt.

        Args:
            prompt_mask: bool [B, P].

        Returns:
            int64 [B]; None if the completion always begins with a block, as here.
        """
        return None


class Policy(Vocabulary, PolicyContexts, nn.Module, ABC):
    """Base class of denoisers. A subclass sets the attributes of ``Vocabulary`` and implements ``forward``.

    A model that is a body and a head should override ``features``, ``head`` and ``feature_size``, too, with ``forward``
    equal to ``head(features(...))``. The other defaults are right for a policy without adapters, blocks and caches.
    """

    shift_logits: bool = False
    """Whether the logits at position i - 1 predict token i, as in models made from autoregressive ones."""
    block_size: int | None = None
    """Positions of a block, for policies that can only denoise block by block; None: any order."""
    noise: Literal["mask", "uniform"] = "mask"
    """What an open position holds: the mask token, or a random token of the vocabulary."""
    name: str = ""
    """The path or hub id that it was loaded from."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def real_dtype(self) -> torch.dtype:
        """Dtype of recorded log-probabilities and entropies: float64 for a policy in float64, else float32."""
        return torch.float64 if next(self.parameters()).dtype == torch.float64 else torch.float32

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the denoiser, a frozen reference left out."""
        return sum(p.numel() for p in self.parameters())

    @abstractmethod
    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Computes logits at the asked positions.

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
        """Computes what the head turns into logits, with the arguments and shapes of ``forward`` but D in place of V.

        Here the features are the logits themselves.
        """
        with phase("body"):
            logits: Tensor = self(input_ids, attention_mask, positions)
        return logits

    def head(self, features: Tensor) -> Tensor:
        """Computes logits [..., V] from features [..., D], in memory of their own, as callers change them in place."""
        return features.clone()

    @property
    def head_weight(self) -> Tensor | None:
        """The weight [V, D] where ``head`` is one product with it, as a model's own; None: it is something else."""
        return None

    @property
    def trains_head(self) -> bool:
        """Whether training may change what ``head`` computes. Here it may: that is always right, and costs memory."""
        return True

    def prefix_cache(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, a policy may reuse keys and values of finished blocks, if these cannot change; exact."""
        return contextlib.nullcontext()

    def freeze_reference(self) -> None:
        """Freezes the present weights as the reference policy.

        Raises:
            UserError: the policy cannot hold a reference.
        """
        raise UserError(f"{type(self).__name__} keeps no reference policy: take no regulariser that compares with one")

    @contextlib.contextmanager
    def reference(self) -> Iterator[Policy]:
        """Within the context, forwards of this policy are those of the reference policy.

        Raises:
            RuntimeError: ``freeze_reference`` was not called.
        """
        raise RuntimeError("call freeze_reference() before using the reference policy")
        yield self  # never reached; it makes this a generator, as ``contextmanager`` needs

    def take_metrics(self, processes: Processes = ALONE) -> dict[str, float]:
        """Returns what the policy measured of itself since the last call, and forgets it; here nothing.

        Args:
            processes: that measured it together; each of them must call this.
        """
        return {}

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Lists the parameters that the optimiser updates, with their names."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]


def autocast(policy: Policy, precision: str) -> contextlib.AbstractContextManager[object]:
    """Returns the context in which forwards run in bfloat16, if that is the ``precision`` of a run."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(policy.device.type, dtype=torch.bfloat16)


def completion_features(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, positions: Tensor
) -> Tensor:
    """Runs the policy's body on prompts and completions; returns the features at some completion positions.

    Args:
        policy: the denoiser.
        prompt_ids, prompt_mask: int64 and bool [B, P], left-padded.
        completion_ids: int64 [B, L], masked where open; all of it is attended to.
        positions: bool [B, L], True at N positions.

    Returns:
        [N, D], in row-major order.
    """
    prompt_ids, prompt_mask = unpadded(prompt_ids, prompt_mask)
    real = on_device(torch.ones(positions.shape, dtype=torch.bool), positions.device)
    not_asked = on_device(torch.zeros(prompt_mask.shape, dtype=torch.bool), positions.device)
    return policy.features(beside(prompt_ids, completion_ids), beside(prompt_mask, real), beside(not_asked, positions))


def completion_logits(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, positions: Tensor
) -> Tensor:
    """Computes raw logits [N, V] at some completion positions; arguments as ``completion_features``."""
    return policy.head(completion_features(policy, prompt_ids, prompt_mask, completion_ids, positions))


LOGITS_BYTES = {True: 48 * 2**20, False: 1024 * 2**20}
"""The most bytes of float32 logits that are in memory at once, on a CPU (True) and elsewhere (False)."""


LARGE_VOCABULARY = 4096


def is_large(vocab: int) -> bool:
    """Tells whether rollouts on a CPU are faster by one pass over the vocabulary (``core.scan``)."""
    return vocab >= LARGE_VOCABULARY


def most_predictions(vocab: int, device: torch.device) -> int:
    """Returns for how many positions at once the logits fit in ``LOGITS_BYTES``; at least 1."""
    return max(1, LOGITS_BYTES[device.type == "cpu"] // (4 * vocab))


def log_probs_of(
    policy: Policy,
    features: Tensor,
    tokens: Tensor,
    behaviour: Behaviour | None,
    process: Process | None = None,
) -> Tensor:
    """Computes the log-probability of one token at each of N positions, differentiable, in pieces.

    Args:
        policy: the denoiser, whose head turns features into logits.
        features: [N, D].
        tokens: int64 [N].
        behaviour: the distribution, or None for softmax(logits).
        process: changes the logits before that, see ``core.behaviour.Process``; None: nothing does.

    Returns:
        [N], at least ``LOG_ZERO``.
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
