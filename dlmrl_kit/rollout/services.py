"""Prompts of a task as batches, and the services that components require."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.core import seeding
from dlmrl_kit.core.blame import named
from dlmrl_kit.core.component import Component
from dlmrl_kit.core.errors import ComponentError, RecipeError
from dlmrl_kit.core.keys import COMPLETION_IDS, EXAMPLE, GROUP, PROMPT_IDS, PROMPT_MASK, SEED, SELECTED_WEIGHT, Key
from dlmrl_kit.core.phases import phase
from dlmrl_kit.core.policy import Policy, Vocabulary
from dlmrl_kit.core.seeding import combine_seeds, seeds_of
from dlmrl_kit.core.trajectory import canvas_state, number_in_group, states
from dlmrl_kit.rollout.rewards import Scorer
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.tasks.base import BaseTask, Example, example_fault

CHECKED = 20_000
"""The most prompts of a split that are read before training begins; the others are, when it is their turn."""


COUNTED = 2000
"""The most prompts of a split that are looked at to say how many are cut."""


def prompt_batch(
    task: BaseTask,
    split: str,
    indices: list[int],
    policy: Vocabulary,
    group_size: int = 1,
    completion_length: int = 0,
    seed: int = 0,
) -> TensorDict:
    """Encodes the prompts of examples, each repeated for the samples of its group.

    Args:
        task, split: where the examples come from.
        indices: of the examples.
        policy: its tokenizer encodes them, and the batch is on its device.
        group_size: how often each prompt is repeated.
        completion_length: positions that a completion takes.
        seed: of the noise of all samples. Sample k of an example draws the same whatever other examples there are.

    Returns:
        TensorDict [len(indices) * group_size] with ``prompt_ids``, ``prompt_mask``, ``group``, ``example`` and
        ``seed``.

    Raises:
        RecipeError: as ``encoded_prompts``.
    """
    encoded = encoded_prompts(task, split, indices, policy, completion_length)
    group = torch.arange(len(indices), device=policy.device)
    batch = TensorDict({**encoded, GROUP: group, EXAMPLE: torch.tensor(indices, device=policy.device)}, [len(indices)])
    batch = batch[group.repeat_interleave(group_size)]
    return batch.set(SEED, example_seeds(batch[EXAMPLE], seed))


def example_seeds(example: Tensor, seed: int) -> Tensor:
    """Derives the seed of each sample, int64 [B], from its example and its number among the samples of that example."""
    base = torch.full_like(example, seeding.derive_seed(seed, "example"))
    return combine_seeds(combine_seeds(base, example), number_in_group(example))


def encoded_prompts(
    task: BaseTask, split: str, indices: Sequence[int], policy: Vocabulary, completion_length: int
) -> dict[str, Tensor]:
    """Encodes the prompts of N examples, as ``Vocabulary.padded``; arguments as ``prompt_batch``.

    Raises:
        RecipeError: as ``examples``, or what ``Vocabulary.prompt_tokens`` refuses, with the place of the example.
    """
    rows = []
    for index, example in zip(indices, examples(task, split, indices), strict=True):
        try:
            rows.append(policy.prompt_tokens(example.prompt, completion_length, example.prefix, example.most))
        except RecipeError as error:
            raise RecipeError(f"{task.place(split, index)}: {error}") from error
    return policy.padded(rows)


def check_prompts(task: BaseTask, split: str, policy: Vocabulary, completion_length: int) -> None:
    """Reads the prompts of a split before training begins, if the task has them at hand; arguments as ``prompt_batch``.

    Raises:
        RecipeError: prompts that are refused: how many, and why the first one is.
    """
    number = min(task.size(split), CHECKED) if task.at_hand else 0
    refused = []
    for index in range(number):
        example = task.example(split, index)
        try:
            policy.prompt_tokens(example.prompt, completion_length, example.prefix, example.most)
        except RecipeError as error:
            refused.append((index, error))
    if refused:
        index, first = refused[0]
        more = f" ({len(refused)} of {number} prompts in {split} cannot be used)" if len(refused) > 1 else ""
        raise RecipeError(f"{task.place(split, index)}: {first}{more}") from first


def cut_prompts(task: BaseTask, split: str, policy: Vocabulary) -> list[str]:
    """Says how many of the first prompts of a split are cut: a line, or none where none is.

    Args:
        task, split: where the examples come from; only a task that has them at hand is asked.
        policy: its tokenizer counts.
    """
    number = min(task.size(split), COUNTED) if task.at_hand else 0
    lengths = []
    for index in range(number):
        example = task.example(split, index)
        if example.most is not None:
            length = len(policy.whole_prompt(example.prompt, example.prefix))
            lengths += [length] if length > example.most else []
    if not lengths:
        return []
    some = f"the first {number}" if number == COUNTED else f"{number}"
    sizes = f"{sum(lengths) / len(lengths):.0f} tokens long on average, {max(lengths)} at most"
    return [f"{task.label()}: {len(lengths)} of {some} prompts in {split} are cut from the left, {sizes}"]


def examples(task: BaseTask, split: str, indices: Iterable[int]) -> list[Example]:
    """Returns the examples of a split with these indices.

    Raises:
        RecipeError: the task has fewer distinct examples than the size of the split.
        ComponentError: the task returned something else.
    """
    try:
        found = [task.example(split, index) for index in indices]
    except ValueError as error:
        raise RecipeError(str(error)) from error
    for example in found:
        if problem := example_fault(example):
            raise ComponentError(f"{named(type(task))}: example returned {problem}")
    return found


def require_examples(task: BaseTask, *splits: str) -> None:
    """Refuses a task with an empty split among ``splits``.

    Raises:
        RecipeError: a split is empty.
    """
    for split in splits:
        if task.size(split) < 1:
            raise RecipeError(f"{type(task).__name__}: the {split} split is empty; set num_{split}")


LISTED = 2**20
"""Largest split whose random order is a list; the order of a larger one is computed, index by index."""
WINDOW = 1024
"""Examples that are in random order among themselves, where a large split must be gone through from its beginning."""


def training_indices(size: int, per_update: int, update: int, seed: int, in_order: bool = False) -> list[int]:
    """Returns the ``per_update`` example indices of one update.

    Updates go through 0 .. size-1 in passes, each in a new random order. The result depends on the arguments alone, so
    a resumed run sees the same data in the same order. The memory that it takes does not grow with ``size``.

    Args:
        size: of the split.
        per_update: how many indices.
        update: its number, from 0.
        seed: of the run.
        in_order: the task makes its examples one after another (``BaseTask.in_order``). A split of more than ``LISTED``
            examples is then gone through from its beginning, in random order within each ``WINDOW`` of examples.
    """
    first = update * per_update
    window = WINDOW if in_order and size > LISTED else size
    orders: dict[tuple[int, int], Tensor] = {}
    indices = []
    for position in range(first, first + per_update):
        epoch, offset = divmod(position, size)
        number, place = divmod(offset, window)
        length = min(window, size - number * window)
        if length > LISTED:
            indices.append(_permuted(offset, size, seed, epoch))
            continue
        if (epoch, number) not in orders:
            which = (epoch,) if window == size else (epoch, number)
            orders[epoch, number] = torch.randperm(length, generator=seeding.generator("cpu", seed, "data", *which))
        indices.append(number * window + int(orders[epoch, number][place]))
    return indices


def _permuted(index: int, size: int, seed: int, epoch: int) -> int:
    """Returns where a random permutation of 0 .. size-1 sends ``index``, without a list of them.

    It is a Feistel network of four rounds over the next even number of bits, repeated until the result is below
    ``size`` ("cycle walking": Black and Rogaway, CT-RSA 2002), which takes fewer than four turns on average.
    """
    half = (max(size - 1, 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            left, right = right, left ^ (seeding.derive_seed(seed, "data", epoch, turn, right) & mask)
        index = left << half | right
        if index < size:
            return index


class Services(ABC):
    """Base class of what gives components their services; ``core.component.SERVICES`` describes each service.

    Args:
        policy: the current denoiser.
        sampler: of the algorithm.
    """

    def __init__(self, policy: Policy, sampler: Sampler) -> None:
        self.policy = policy
        self.sampler = sampler

    @abstractmethod
    def score(self, ids: Tensor, example: Tensor) -> Tensor:
        """Returns rewards [N] of completions int64 [N, L] for example indices int64 [N]."""

    @abstractmethod
    def restart(self, tensordict: TensorDictBase, step: Tensor, n: int) -> Tensor:
        """Returns the rewards [B, K, n] of n completions sampled from each x_step, int64 [B, K]; 0 at weight 0."""

    @abstractmethod
    def examples(self, example: Tensor) -> Sequence[Example]:
        """Returns the examples of indices int64 [N]."""

    def given_to(self, component: Component) -> dict[str, object]:
        """Returns the services that a component requires, by name."""
        make: dict[str, Callable[[], object]] = {
            "policy": lambda: self.policy,
            "sampler": lambda: self.sampler,
            "score": lambda: self.score,
            "restart": lambda: self.restart,
            "examples": lambda: self.examples,
        }
        return {name: make[name]() for name in component.requires}

    def call(self, component: Component, tensordict: TensorDictBase, keys: Collection[Key] = ()) -> TensorDictBase:
        """Runs a component with the services it requires; it is to write the on-demand ``keys`` as well."""
        asked = {"keys": keys} if component.optional_keys else {}
        result: TensorDictBase = component.forward(tensordict, **self.given_to(component), **asked)
        return result


class SamplingServices(Services):
    """The services of one update, with restarts that really sample.

    Args:
        policy, sampler: as ``Services``.
        chunk: the most completions that a restart samples at once.
    """

    def __init__(self, policy: Policy, sampler: Sampler, chunk: int) -> None:
        super().__init__(policy, sampler)
        self.chunk = chunk
        self._restarts = 0

    def restart(self, tensordict: TensorDictBase, step: Tensor, n: int) -> Tensor:
        """Samples n completions from each state x_step, ``chunk`` at a time; returns rewards float32 [B, K, n].

        A completion's noise comes from the sample's ``seed``, the number of the call in this update, the step and the
        completion's number among those of the state: no two completions share it, and nothing else of the batch counts.
        """
        used = tensordict[SELECTED_WEIGHT] > 0
        seed = restart_seeds(combine_seeds(seeds_of(tensordict, self), self._restarts), step, used, n)
        self._restarts += 1
        ids = states(tensordict, step, self.policy.mask_id)
        rows = used.nonzero(as_tuple=True)[0].repeat_interleave(n)
        if len(rows) == 0:  # nothing to split into pieces
            return torch.zeros((*used.shape, n), device=ids.device)
        ids = ids[used].repeat_interleave(n, dim=0)
        source = tensordict.select(PROMPT_IDS, PROMPT_MASK, EXAMPLE)[rows]
        canvas = canvas_state(tensordict, step)
        source.update({key: value[used].repeat_interleave(n, 0) for key, value in canvas.items()})
        source.set(SEED, seed)
        rewards = []
        for prompt, part in zip(source.split(self.chunk), ids.split(self.chunk), strict=True):
            with phase("sampling"):
                found = self.sampler.resume(prompt, part, policy=self.policy)
            rewards.append(self.score(found[COMPLETION_IDS], prompt[EXAMPLE]))
        flat = torch.cat(rewards).reshape(-1, n)
        return flat.new_zeros((*used.shape, n)).index_put(used.nonzero(as_tuple=True), flat)


def restart_seeds(seed: Tensor, step: Tensor, used: Tensor, n: int) -> Tensor:
    """Derives the seed of each completion from its sample, its step and its number among those of the same state.

    Args:
        seed: int64 [B], of the samples.
        step: int64 [B, K], the states; the same one may be there more than once.
        used: bool [B, K], the entries that are restarted from.
        n: completions of an entry.

    Returns:
        int64 [entries used * n].
    """
    same = (step[:, :, None] == step[:, None, :]) & used[:, None, :]
    before = same.tril(-1).sum(-1)[used]  # entries of the same state further left in the row
    rows = used.nonzero(as_tuple=True)[0]
    state = combine_seeds(seed[rows], step[used])
    number = before[:, None] * n + torch.arange(n, device=step.device)
    return combine_seeds(state[:, None], number).flatten()


class UpdateServices(SamplingServices):
    """The services of one update of a training run.

    Args:
        policy, sampler, chunk: as ``SamplingServices``.
        scorer: asks the task.
    """

    def __init__(self, policy: Policy, sampler: Sampler, scorer: Scorer, chunk: int) -> None:
        super().__init__(policy, sampler, chunk)
        self.scorer = scorer

    def score(self, ids: Tensor, example: Tensor) -> Tensor:
        """Returns the task's rewards, float32 [N]."""
        return self.scorer(ids, example)

    def examples(self, example: Tensor) -> list[Example]:
        """Returns the task's examples."""
        return self.scorer.examples(example)
