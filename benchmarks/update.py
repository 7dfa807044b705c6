"""Update time: the kit, the floor and the plain implementation, over the vocabulary and the number of selected steps.

    OMP_NUM_THREADS=1 python benchmarks/update.py --vocab 32000 --selected 4 --selected 8 --selected 16 --out results

The update is EGSPO's: reference and current log-probability of the tokens that K steps of each sample committed,
clipped PPO and KL (k3), gradients of the adapter, optimiser step. The floor: the bodies of K states per sample, forward
with the adapter off, then forward and backward with it on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import plain
import torch
from common import (
    Size,
    compiled,
    full_ids,
    growth,
    interleaved,
    make_policy,
    make_prompts,
    make_sampler,
    parser_of,
    plot,
    report,
)
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dlmrl_kit.advantages.group_mean import GroupMean
from dlmrl_kit.algorithm.algorithm import Algorithm
from dlmrl_kit.algorithm.dataflow import make_plan
from dlmrl_kit.likelihoods.base import Likelihood
from dlmrl_kit.likelihoods.steps import StepTokenLogProb
from dlmrl_kit.losses.ppo import StepPPO
from dlmrl_kit.policies.characters import CharacterLlama
from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.regularisers.kl import KLK3
from dlmrl_kit.selectors.top_k import EntropyTopK
from dlmrl_kit.tasks.sudoku import Sudoku4x4
from dlmrl_kit.trainers.trainer import Trainer
from dlmrl_kit.training.update import Rollout, Update

BETA = 0.04


def make_update(policy: TransformersPolicy, size: Size, likelihood: Likelihood | None = None) -> Update:
    """Makes the kit's EGSPO with these sizes; task and source of the policy are never asked for anything.

    ``likelihood``: None for that of the recipe, the tokens at temperature 1.
    """
    rows = size.micro_rows or size.batch
    trainer = Trainer(micro_batch_size=rows, micro_batch_tokens=size.micro_tokens, max_grad_norm=1e9)
    algorithm = Algorithm(
        task=Sudoku4x4(),
        policy=CharacterLlama(),
        sampler=make_sampler(size),
        selector=EntropyTopK(size.selected),
        advantage=GroupMean(),
        likelihood=likelihood or StepTokenLogProb(sampling_temperature=False),
        loss=StepPPO(clip_low=0.2, clip_high=0.5),
        regulariser=KLK3(BETA),
        trainer=trainer,
    )
    parameters = [parameter for _, parameter in policy.trainable()]
    optimiser = torch.optim.SGD(parameters, lr=0.0)  # the weights stay, so that every repeat does the same
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimiser)
    return Update(algorithm, make_plan(algorithm), policy, optimiser, scheduler)


def trajectory(policy: TransformersPolicy, prompts: TensorDict, size: Size, update: Update) -> TensorDictBase:
    """Makes a rollout with random rewards and selected steps."""
    rollout, plan = prompts.clone(), update.plan
    update.algorithm.sampler(rollout, policy=policy, keys=plan.sampler.keys)
    for stage in (*plan.before_rewards, *plan.with_rewards):
        if stage.slot == "reward":
            rollout["reward"] = torch.rand(size.batch, generator=size.generator(2), device=size.device)
        elif stage.component.optional_keys:
            stage.component(rollout, keys=stage.keys)
        else:
            stage.component(rollout)
    return rollout


def as_plain(policy: TransformersPolicy, run: TensorDictBase, size: Size) -> plain.Rollout:
    """Turns the kit's rollout into the plain implementation's."""
    log_prob = list(run["step", "model_log_prob"].unbind(1))
    return plain.Rollout(run["completion_ids"], run["commit_step"].long(), model_log_prob=log_prob)


class Parts(NamedTuple):
    """The two parts of an update: log-probabilities of the reference, then gradients and the optimiser's step."""

    reference: Callable[[], object]
    policy: Callable[[], object]

    def both(self) -> None:
        """Does the whole update."""
        self.reference()
        self.policy()


def floor(policy: TransformersPolicy, prompts: TensorDict, size: Size) -> Parts:
    """Prepares the bodies of K states per sample: forward with the adapter off, and forward and backward with it on."""
    completion = torch.full((size.batch, size.length), policy.mask_id, device=size.device)
    ids, mask, position = (part.repeat(size.selected, 1) for part in full_ids(prompts, completion))
    rows = max(1, size.micro_tokens // ids.shape[1])
    parameters = [parameter for _, parameter in policy.trainable()]
    names = ("input_ids", "attention_mask", "position_ids")
    pieces = [
        {**dict(zip(names, part, strict=True)), "use_cache": False}
        for part in zip(ids.split(rows), mask.split(rows), position.split(rows), strict=True)
    ]

    @torch.no_grad()
    def reference() -> None:
        with policy.reference():
            for piece in pieces:
                policy.model.get_decoder()(**piece)

    def learn() -> None:
        for piece in pieces:
            policy.model.get_decoder()(**piece).last_hidden_state.sum().backward()
        for parameter in parameters:
            parameter.grad = None

    return Parts(reference, learn)


def learn(update: Update, run: TensorDictBase) -> None:
    """Does the kit's update on a rollout, which stays as it is."""
    rollout = Rollout(run, run.clone())
    update.prepare(rollout)
    update.learn(rollout.kept, 0)


def kit_of(policy: TransformersPolicy, size: Size, likelihood: Likelihood | None = None) -> Callable[[], None]:
    """Prepares the kit's update of a policy on a rollout of its own; ``likelihood`` as ``make_update``."""
    update = make_update(policy, size, likelihood)
    run = trajectory(policy, make_prompts(size), size, update)
    update.prepare(Rollout(run, run.clone()))  # which checks log-probabilities the first time; not part of an update
    return partial(learn, update, run)


def parts(size: Size, with_plain: bool = True, policy: TransformersPolicy | None = None) -> dict[str, Parts]:
    """Prepares the update of kit, floor and plain, for one size; ``policy``: None for one of its own."""
    policy, prompts = policy or make_policy(size), make_prompts(size)
    update = make_update(policy, size)
    run = trajectory(policy, prompts, size, update)
    prepared = [Rollout(run, run.clone())]
    update.prepare(prepared[0])  # which checks log-probabilities the first time; not part of an update

    def reference() -> None:
        prepared[0] = Rollout(run, run.clone())
        update.prepare(prepared[0])

    kit = Parts(reference, lambda: update.learn(prepared[0].kept, 0))
    found = {"kit": kit, "floor": floor(policy, prompts, size)}
    return {**found, "plain": plainly(policy, prompts, size, run)} if with_plain else found


def plainly(policy: TransformersPolicy, prompts: TensorDict, size: Size, run: TensorDictBase) -> Parts:
    """Prepares the plain implementation's update on the kit's rollout."""
    kept, steps = as_plain(policy, run, size), run["selected", "step"]
    advantage = run["advantage"][:, None].expand(-1, size.selected)
    fixed: list[Tensor] = []

    def reference() -> None:
        fixed[:] = [plain.reference(policy, prompts, kept, steps)]

    def learn() -> None:
        plain.update(policy, prompts, kept, advantage, steps, fixed[0], BETA)
        for _, parameter in policy.trainable():
            parameter.grad = None

    return Parts(reference, learn)


def works(
    size: Size, with_plain: bool = True, policy: TransformersPolicy | None = None
) -> dict[str, Callable[[], object]]:
    """Prepares whole updates; arguments as ``parts``."""
    return {name: part.both for name, part in parts(size, with_plain, policy).items()}


def main() -> None:
    """See the module docstring."""
    parser = parser_of(__doc__, "hidden", "batch", repeats=3)
    parser.add_argument("--selected", type=int, action="append")
    parser.add_argument("--no-plain", action="store_true")
    parser.add_argument("--compile", metavar="MODE", help="also with compiled blocks, as Trainer.compile")
    given = parser.parse_args()
    rows = []
    for vocab in given.vocab or (512, 32_000):
        for selected in given.selected or (8,):
            size = replace(Size(vocab=vocab, hidden=given.hidden, batch=given.batch), selected=selected)
            timed = works(size, not given.no_plain)
            if given.compile:
                timed["compiled"], first_run = compiled(size, given.compile, partial(kit_of, size=size))
            seconds = interleaved(timed, given.repeats)
            row = {"vocab": vocab, "selected": selected, **seconds, "kit/floor": seconds["kit"] / seconds["floor"]}
            if "plain" in seconds:
                row["plain/kit"] = seconds["plain"] / seconds["kit"]
            if given.compile:
                row |= {"compiled/kit": seconds["compiled"] / seconds["kit"], "compiled_first": first_run}
            rows.append(row)
    slopes = {}
    if given.selected and len(given.selected) > 1:
        first = [row for row in rows if row["vocab"] == rows[0]["vocab"]]
        counts = [float(row["selected"]) for row in first]
        names: list[str] = [name for name in ("plain", "kit", "floor") if name in first[0]]
        slopes = {name: growth(counts, [row[name] for row in first]) for name in names}
        lines = {name: (counts, [row[name] for row in first]) for name in names}
        given.out.mkdir(parents=True, exist_ok=True)
        plot(given.out / "update.png", "Update, one thread", "selected steps K", "seconds", lines)
    report("update", given.out, rows, growth_in_selected=slopes)
    print("log-log slope in K:", {name: round(value, 2) for name, value in slopes.items()})


if __name__ == "__main__":
    main()
