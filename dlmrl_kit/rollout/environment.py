"""The denoising MDP as a TorchRL environment, so that TorchRL's collectors and algorithms run on the kit's tasks.

A state is a prompt and a partially masked completion, an action commits tokens, and the task's reward comes in the step
that ends a row. All that a step needs is in the TensorDict: the environment itself only counts the examples drawn so
far. The B rows of a batch end at different steps, and a finished row stays as it is. So call ``rollout`` with
``break_when_any_done=False, break_when_all_done=True``, and use ``valid_steps`` on the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from dlmrl_kit.core.errors import UserError
from dlmrl_kit.core.keys import COMMIT_STEP, COMPLETION_IDS, EXAMPLE, PROMPT_IDS, PROMPT_MASK, SEED
from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.seeding import combine_seeds, derive_seed, seeds_of
from dlmrl_kit.core.validate import check
from dlmrl_kit.rollout.rewards import Scorer
from dlmrl_kit.rollout.services import LISTED, encoded_prompts, training_indices
from dlmrl_kit.rollout.tokens import Tokens
from dlmrl_kit.samplers.left_to_right import LeftToRight
from dlmrl_kit.samplers.mask import MaskSampler
from dlmrl_kit.tasks.base import BaseTask

State: TypeAlias = Mapping[str, Tensor] | TensorDictBase
"""The observations that make up the state, by name."""


class DenoisingEnv(EnvBase):
    """An environment in which completions of a task's prompts are denoised from masks.

    B is the batch size, V the vocabulary size, L the completion length and P the prompt length.

    Observations, which are also the state (all that a step reads):

    * ``prompt_ids`` int64 [B, P], ``prompt_mask`` bool [B, P]: left-padded to a fixed width;
    * ``example`` int64 [B]: index of the example in the split;
    * ``seed`` int64 [B]: of the noise that is drawn for the row, from ``seed`` below and how many examples came before;
    * ``completion_ids`` int64 [B, L]: x_t, masked where open. When a row ends, positions that are still open are filled
      with the end-of-text token (padding if there is none), as samplers do;
    * ``commit_step`` int16 [B, L]: step at which each position was committed; ``max_steps`` where it was not;
    * ``steps_taken`` int64 [B, 1]: t;
    * ``legal_positions`` bool [B, L]: positions that may be committed; none in a finished row;
    * ``action_mask``: legal actions, for TorchRL's ``ActionMask`` and ``MaskedCategorical``; see below.

    ``action`` is int64 [B, L], a token for each position, or the mask id to leave it masked; ``action_mask`` is bool
    [B, L, V]. Any combination of legal tokens is a legal action, and a step that commits nothing counts as a step. With
    ``single_commit``, ``action`` is int64 [B], ``position * V + token``, and ``action_mask`` is bool [B, L * V]. In a
    finished row every action is ignored; the mask then allows just one: leave all masked, or action 0.

    ``reward`` float32 [B, 1] is the task's reward in the step that ends a row, else 0. A row is ``terminated`` (and
    ``done``) once it is complete as ``Sampler.running`` defines it, or after ``max_steps``.

    Args:
        task: gives prompts and rewards.
        policy: a ``Policy``, of which the environment stores only the ``Tokens``, or these ``Tokens`` themselves.
        completion_length, batch_size: L and B.
        split: split of the task.
        seed: of the order of the examples (passes over the split, each in a new order, as in training) and of the rows'
            noise. Rows take the next examples when they are reset; ``set_seed`` starts over.
        single_commit: whether each step commits one position, by a flat action.
        block_length, stop_at_eos: as in ``Sampler``.
        max_steps: T, after which a row ends in any case; default: L.
        prompt_length: P; default: that of the longest prompt, for which all examples of the split are generated.
        action_mask: whether to write ``action_mask`` and to update the mask of the action spec, so that its random
            actions are legal. False saves memory where the vocabulary is large; actions must then come from a policy.

    Raises:
        ValueError: a value out of range; on reset, a prompt longer than ``prompt_length``; on a step, an illegal action
            (a position that is not legal, a forbidden token, an integer that is no action).
        UserError: the policy denoises something else than masks.
    """

    def __init__(
        self,
        task: BaseTask,
        policy: Policy | Tokens,
        completion_length: int,
        *,
        batch_size: int,
        split: str = "train",
        seed: int = 0,
        single_commit: bool = False,
        block_length: int | None = None,
        stop_at_eos: bool = True,
        max_steps: int | None = None,
        prompt_length: int | None = None,
        action_mask: bool = True,
    ) -> None:
        check(batch_size >= 1, self, "batch_size", batch_size, "at least 1")
        check(max_steps is None or max_steps >= 1, self, "max_steps", max_steps, "at least 1, or None")
        check(task.size(split) >= 1, self, "split", split, "a split that is not empty")
        tokens = policy if isinstance(policy, Tokens) else Tokens.of(policy)
        if tokens.noise != "mask":
            raise UserError(f"DenoisingEnv fills masks, but this model has none: it denoises {tokens.noise} noise")
        super().__init__(device=tokens.device, batch_size=torch.Size([batch_size]))
        self.task, self.split, self.tokens = task, split, tokens
        # Which positions are open, and whether a row is finished, is the same for every sampler that fills masks.
        self.rule = LeftToRight(completion_length, block_length=block_length, stop_at_eos=stop_at_eos)
        self.completion_length, self.max_steps = completion_length, max_steps or completion_length
        self.single_commit, self._write_mask = single_commit, action_mask
        known = prompt_length is not None or task.size(split) <= LISTED
        check(known, self, "prompt_length", prompt_length, f"set for a split of more than {LISTED} examples")
        self.prompt_length = prompt_length or self._encode(range(task.size(split)))[PROMPT_IDS].shape[1]
        self._allowed_tokens = torch.ones(tokens.vocab_size, dtype=torch.bool, device=self.device)
        self._allowed_tokens[list(tokens.forbidden_ids)] = False
        self._score = Scorer(task, split, tokens)
        self._legal = torch.zeros(batch_size, completion_length, dtype=torch.bool, device=self.device)
        self._make_specs()
        self._set_seed(seed)

    def _make_specs(self) -> None:
        """Sets the specs by which TorchRL knows states, actions, observations and rewards."""
        batch, length, vocab = self.batch_size[0], self.completion_length, self.tokens.vocab_size
        flag = {"n": 2, "dtype": torch.bool, "device": self.device}
        token = {"n": vocab, "dtype": torch.int64, "device": self.device}
        specs = {
            PROMPT_IDS: Categorical(shape=(batch, self.prompt_length), **token),
            PROMPT_MASK: Categorical(shape=(batch, self.prompt_length), **flag),
            EXAMPLE: Categorical(self.task.size(self.split), shape=(batch,), device=self.device),
            SEED: Unbounded((batch,), device=self.device, dtype=torch.int64),
            COMPLETION_IDS: Categorical(shape=(batch, length), **token),
            COMMIT_STEP: Bounded(0, self.max_steps, (batch, length), self.device, torch.int16),
            "steps_taken": Bounded(0, self.max_steps, (batch, 1), self.device, torch.int64),
        }
        self.state_spec = Composite({key: spec.clone() for key, spec in specs.items()}, shape=self.batch_size)
        specs["legal_positions"] = Categorical(shape=(batch, length), **flag)
        number, shape = (length * vocab, (batch,)) if self.single_commit else (vocab, (batch, length))
        self.action_spec = Categorical(number, shape, self.device)
        if self._write_mask:
            specs["action_mask"] = Categorical(shape=(*shape, number), **flag)
        self.observation_spec = Composite(specs, shape=self.batch_size)
        self.reward_spec = Unbounded((batch, 1), device=self.device)

    def legal_actions(self, legal_positions: Tensor) -> Tensor:
        """Makes ``action_mask`` [B, L, V], or [B, L * V] with single commits, from ``legal_positions`` [B, L]."""
        legal = legal_positions[..., None] & self._allowed_tokens
        if self.single_commit:
            legal = legal.flatten(-2)
            legal[..., 0] |= ~legal_positions.any(-1)
        else:
            legal[..., self.tokens.mask_id] = True
        return legal

    def _encode(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """Encodes the prompts of examples, left-padded."""
        return encoded_prompts(self.task, self.split, list(indices), self.tokens, self.completion_length)

    def _set_seed(self, seed: int | None) -> None:
        self._seed, self._drawn = seed or 0, 0

    def _reset(self, tensordict: TensorDictBase | None, **_: object) -> TensorDictBase:
        """Gives the next examples, all masked, to the rows that ``_reset`` names, or to every row without it."""
        batch, device = self.batch_size[0], self.device
        asked = torch.ones(batch, dtype=torch.bool, device=device)
        if tensordict is not None and tensordict.get("_reset", None) is not None:
            asked = tensordict["_reset"].reshape(batch)
        first = self._drawn
        drawn = self._draw(int(asked.sum()))
        number = first + torch.arange(len(drawn), device=device)
        ids, mask = self._prompts(drawn)
        source = (asked.cumsum(0) - 1).clamp(min=0)  # rows not asked for get a copy, which TorchRL drops
        shape = (batch, self.completion_length)
        state = {
            PROMPT_IDS: ids[source],
            PROMPT_MASK: mask[source],
            EXAMPLE: torch.tensor(drawn, device=device)[source],
            SEED: combine_seeds(torch.full_like(number, derive_seed(self._seed, "environment")), number)[source],
            COMPLETION_IDS: torch.full(shape, self.tokens.mask_id, device=device),
            COMMIT_STEP: torch.full(shape, self.max_steps, dtype=torch.int16, device=device),
            "steps_taken": torch.zeros(batch, 1, dtype=torch.int64, device=device),
        }
        return self._observe(state, asked)

    def _draw(self, count: int) -> list[int]:
        """Returns the indices of the next ``count`` examples; for a count of 0 a stand-in, which no row will use."""
        numbers = range(self._drawn, self._drawn + count)
        self._drawn = numbers.stop
        size = self.task.size(self.split)
        return [training_indices(size, 1, number, self._seed, self.task.in_order)[0] for number in numbers] or [0]

    def _prompts(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Encodes the prompts of N examples at the fixed width: ``prompt_ids`` and ``prompt_mask``, [N, P] each."""
        prompt = self._encode(indices)
        width = prompt[PROMPT_IDS].shape[1]
        check(width <= self.prompt_length, self, "prompt_length", self.prompt_length, f"at least {width}, for a prompt")
        padding = self.prompt_length - width
        ids = torch.nn.functional.pad(prompt[PROMPT_IDS], (padding, 0), value=self.tokens.pad_id)
        return ids, torch.nn.functional.pad(prompt[PROMPT_MASK], (padding, 0))

    def _observe(self, state: dict[str, Tensor], asked: Tensor | None = None) -> TensorDictBase:
        """Makes the observation of a new state: adds its legal positions and actions.

        Args:
            state: of all rows; after a step, with rewards and ends.
            asked: bool [B], the rows that were reset; None after a step.
        """
        legal = self._legal_positions(state)
        if asked is not None:  # TorchRL's ActionMask reads the mask before it drops the rows that were not asked for
            legal = torch.where(asked[:, None], legal, self._legal)
        self._legal = legal
        observed = {**state, "legal_positions": legal}
        if self._write_mask:
            observed["action_mask"] = self.legal_actions(legal)
            self.input_spec["full_action_spec", "action"].update_mask(observed["action_mask"])
        return TensorDict(observed, self.batch_size, device=self.device)

    def _legal_positions(self, state: State) -> Tensor:
        """Finds the positions that may be committed, bool [B, L]; a row has such positions iff it is running."""
        ids = state[COMPLETION_IDS]
        running = self.rule.running(ids, self.tokens) & (state["steps_taken"].squeeze(-1) < self.max_steps)
        offset = self.tokens.block_offset(state[PROMPT_MASK])
        return self.rule.allowed(ids == self.tokens.mask_id, offset) & running[:, None]

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Commits the tokens of the actions, then fills and scores the rows that end in this step."""
        before, steps, mask_id = tensordict[COMPLETION_IDS], tensordict["steps_taken"], self.tokens.mask_id
        legal = self._legal_positions(tensordict)
        was_running = legal.any(-1)
        asked = tensordict.get("_step", None)
        moving = was_running if asked is None else was_running & asked.reshape(was_running.shape)
        tokens = self._tokens(tensordict["action"], legal, moving)
        committed = tokens != mask_id
        ids = torch.where(committed, tokens, before)
        commit_step = torch.where(committed, steps.to(torch.int16), tensordict[COMMIT_STEP])
        steps = steps + moving[:, None]
        after = {key: tensordict[key] for key in (PROMPT_IDS, PROMPT_MASK, EXAMPLE, SEED)}
        after |= {COMPLETION_IDS: ids, "steps_taken": steps}
        done = ~self._legal_positions(after).any(-1)
        ids = ids.masked_fill((ids == mask_id) & done[:, None], self.tokens.filler_id)
        reward = torch.zeros(self.batch_size, device=self.device)
        ended = done & was_running
        if ended.any():
            reward[ended] = self._score(ids[ended], tensordict[EXAMPLE][ended])
        after |= {COMPLETION_IDS: ids, COMMIT_STEP: commit_step}
        after |= {"reward": reward[:, None], "done": done[:, None], "terminated": done[:, None].clone()}
        return self._observe(after)

    def _tokens(self, action: Tensor, legal: Tensor, moving: Tensor) -> Tensor:
        """Turns actions into tokens [B, L], the mask id where a position stays as it is; refuses illegal actions."""
        vocab, mask_id = self.tokens.vocab_size, self.tokens.mask_id
        valid = (action >= 0) & (action < self.action_spec.n)
        if self.single_commit:
            position, token = (action.where(valid, 0) // vocab)[:, None], (action.where(valid, 0) % vocab)[:, None]
            fine = legal.gather(1, position) & self._allowed_tokens[token] & valid[:, None]
            tokens = torch.full_like(legal, mask_id, dtype=torch.int64).scatter(1, position, token)
        else:
            tokens = action.where(valid, mask_id)
            fine = ((tokens == mask_id) | (legal & self._allowed_tokens[tokens])) & valid
        wrong = (~fine & moving[:, None]).nonzero()
        if len(wrong):
            row = int(wrong[0, 0])
            raise ValueError(
                f"illegal action in row {row}: {action[row].tolist()}, that is tokens {tokens[row].tolist()} "
                f"({mask_id} keeps the mask); legal positions are {legal[row].nonzero().squeeze(-1).tolist()}, "
                f"forbidden tokens {list(self.tokens.forbidden_ids)}; draw actions with action_mask"
            )
        return tokens.where(moving[:, None], mask_id)


def valid_steps(rollout: TensorDictBase) -> Tensor:
    """Finds the steps that happened, bool [B, T], in a rollout [B, T] that began with a reset.

    With ``break_when_all_done=True`` TorchRL repeats the last transition of a finished row, with its reward, until all
    rows are done. Sums of rewards and losses must leave these copies out.
    """
    steps = rollout["steps_taken"].squeeze(-1)
    happened: Tensor = steps == torch.arange(steps.shape[-1], device=steps.device)
    return happened


class SamplerPolicy(TensorDictModuleBase):
    """Acts in a ``DenoisingEnv`` with a sampler and a policy of the kit.

    Writes ``action`` (see ``DenoisingEnv``) and ``action_log_prob`` [B], the exact log-probability of the step; 0 in
    finished rows. It draws what the sampler itself would draw: the noise comes from ``seed`` and ``steps_taken``.

    Args:
        sampler: one that fills masks, with the completion length of the environment.
        policy: the denoiser.
        single_commit: as the environment's.

    Raises:
        ValueError: the sampler does not fill masks, or commits several positions per step where one is allowed.
    """

    def __init__(self, sampler: MaskSampler, policy: Policy, single_commit: bool = False) -> None:
        super().__init__()
        check(isinstance(sampler, MaskSampler), self, "sampler", sampler, "one that fills masks step by step")
        sampler.attach(policy)
        check(not single_commit or sampler.max_commits == 1, self, "sampler", sampler, "one of 1 commit per step")
        self.sampler, self.policy, self.single_commit = sampler, policy, single_commit
        self.vocab_size = policy.vocab_size
        self.in_keys = [PROMPT_IDS, PROMPT_MASK, SEED, COMPLETION_IDS, "steps_taken"]
        self.out_keys = ["action", "action_log_prob"]

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Adds the actions for the states of ``tensordict``."""
        ids, steps = tensordict[COMPLETION_IDS], tensordict["steps_taken"].squeeze(-1)
        seed = seeds_of(tensordict, self)
        rows = self.sampler.running(ids, self.policy).nonzero().squeeze(-1)
        action = torch.full_like(ids, self.policy.mask_id)
        log_prob = torch.zeros(len(ids), device=ids.device)
        if len(rows):
            view = self.sampler.view(self.policy, tensordict.select(PROMPT_IDS, PROMPT_MASK)[rows], ids[rows])
            decision = self.sampler.decide(view, combine_seeds(seed[rows], steps[rows]))
            action[rows] = decision.tokens.where(decision.committed, self.policy.mask_id)
            log_prob[rows] = self.sampler.action_log_prob(view, decision).to(log_prob.dtype)
        if self.single_commit:
            committed = action != self.policy.mask_id  # at most one position in each row
            flat = torch.arange(ids.shape[1], device=ids.device) * self.vocab_size + action
            action = (flat * committed).sum(-1)
        return tensordict.update({"action": action, "action_log_prob": log_prob})
