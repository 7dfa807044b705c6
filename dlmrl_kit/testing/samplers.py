"""Checks of samplers: complete trajectories, exact log-probabilities, restarts, and the audit's enumeration."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from dlmrl_kit.audit.enumeration import check_draws, enumerate_trajectories
from dlmrl_kit.audit.policies import attached
from dlmrl_kit.audit.problem import Problem
from dlmrl_kit.core.component import Sizes
from dlmrl_kit.core.keys import (
    COMMIT_STEP,
    COMPLETION_IDS,
    SELECTED_ENTROPY,
    SELECTED_LOG_PROB,
    SELECTED_STEP,
    SELECTED_WEIGHT,
    STEP_ACCEPTED,
    STEP_ENTROPY,
    STEP_LOG_PROB,
    STEP_NUM_COMMITTED,
    STEP_VALID,
)
from dlmrl_kit.likelihoods.steps import StepLogProb
from dlmrl_kit.samplers.base import Sampler
from dlmrl_kit.testing.core import attempt, fail
from dlmrl_kit.testing.running import inputs, written
from dlmrl_kit.testing.world import world

SEEDS, DRAWS = 3, 400
SMALL = Problem(vocab=2, length=3)
"""The problem on which trajectories are listed."""


def check_commits(name: str, component: Sampler) -> None:
    """Every position is committed in a step that happened, or lies behind the end of the text of a row that ended."""
    for seed in range(SEEDS):
        w = world(seed=seed)
        found = written(name, component, w)
        ids, commit, valid = found[COMPLETION_IDS], found[COMMIT_STEP].long(), found[STEP_VALID]
        steps = torch.arange(valid.shape[1])
        if not torch.equal(valid, steps < valid.sum(-1, keepdim=True)):
            fail(name, "leaves gaps between steps", "steps happen from 0 on, one after another, until the row is done")
        if (ids == w.policy.mask_id).any():
            fail(name, "leaves masks in completion_ids", "run until nothing is masked before the end of the text")
        never = commit == component.max_steps
        ended = (w.policy.is_end(ids) & ~never).long().cumsum(-1) > 0
        if (never & ~ended).any():
            fail(name, "never commits some position of a text that did not end", "commit every position before the end")
        accepted = found.get(STEP_ACCEPTED)  # of samplers that draw positions again
        counted = (commit[..., None] == steps).sum(1) if accepted is None else accepted.sum(-1)
        if not torch.equal(counted, found[STEP_NUM_COMMITTED]):
            says = COMMIT_STEP if accepted is None else '("step", "accepted")'
            fail(name, f'has ("step", "num_committed") other than {says} says', "count the positions of each step")
        if (counted[valid] < 1).any() or (counted[~valid] > 0).any() or counted.max() > component.max_commits:
            problem = f"commits {counted.unique().tolist()} positions in a step"
            fail(name, problem, "commit 1 to max_commits positions per step (override max_commits where it is more)")


def check_forbidden_tokens(name: str, component: Sampler) -> None:
    """It never commits the mask, padding, or another token that the policy forbids."""
    for seed in range(SEEDS):
        w = world(seed=seed)
        found = written(name, component, w)
        committed = found[COMPLETION_IDS][found[COMMIT_STEP] < component.max_steps]
        forbidden = torch.isin(committed, torch.tensor(w.policy.forbidden_ids))
        if forbidden.any():
            fix = "draw from view.log_probs, in which forbidden tokens have probability 0"
            fail(name, f"commits the forbidden token {int(committed[forbidden][0])}", fix)


def check_recorded_log_prob(name: str, component: Sampler) -> None:
    """The recorded log-probability and entropy of every step are those recomputed from the stored trajectory."""
    if STEP_LOG_PROB not in component.out_keys:  # the completions are not the policy's
        return
    w = world()
    given = inputs(name, component, w)
    trajectory = given.clone().update(TensorDict(written(name, component, w), given.batch_size))
    valid = trajectory[STEP_VALID]
    trajectory.set(SELECTED_STEP, torch.arange(valid.shape[1]).expand_as(valid).contiguous())
    trajectory.set(SELECTED_WEIGHT, valid.float())
    fix = "make action_log_prob a function of the state and the decision alone, with everything that is needed stored"
    with attempt(name, "recomputing its log-probabilities from the trajectory", fix), torch.no_grad():
        again = StepLogProb()(trajectory, policy=w.policy, sampler=component, keys=[SELECTED_ENTROPY])
    for recomputed, recorded in ((SELECTED_LOG_PROB, STEP_LOG_PROB), (SELECTED_ENTROPY, STEP_ENTROPY)):
        worst = (again[recomputed] - trajectory[recorded]).abs()[valid].max().item()
        if not worst < 1e-3:
            fail(name, f"records {recorded!r} that differs from the recomputed one by {worst:.3g}", fix)
    if (trajectory[STEP_LOG_PROB][valid] > 1e-5).any():
        fail(name, "records a log-probability above 0", "return the log-probability of the whole action, no density")


def check_resume(name: str, component: Sampler) -> None:
    """It goes on from any state: what was filled stays, and has commit_step -1."""
    w = world()
    ids = written(name, component, w)[COMPLETION_IDS]
    keep = torch.arange(ids.shape[1]) % 2 == 0
    text = ids.masked_fill(w.policy.is_end(ids), 5)
    start = text.masked_fill(~keep, w.policy.mask_id)
    fix = "let what a step does depend on the state alone (StateScoreSampler does), not on how many steps came before"
    with attempt(name, "resumed from a state half filled", fix):
        found = component.resume(inputs(name, component, w), start, policy=w.policy)
    if not torch.equal(found[COMPLETION_IDS][:, keep], start[:, keep]) or (found[COMMIT_STEP][:, keep] != -1).any():
        fail(name, "changes positions that were filled when it resumed", fix)
    if (found[COMPLETION_IDS] == w.policy.mask_id).any():
        fail(name, "leaves masks when it resumes", fix)


def check_probabilities(name: str, component: Sampler) -> None:
    """On a problem of two tokens and three positions its probabilities sum to 1, and its draws follow them."""
    length = SMALL.length
    wanted = Sizes(length, length, min(length, component.block_length), min(2, component.max_commits), SMALL.vocab)
    with attempt(name, "made smaller", "keep every parameter of the constructor as an attribute of the same name"):
        small = component.resized(component.sizes, wanted)
    fix = "make action_log_prob the log-probability of exactly what decide draws, and list that in position_choices"
    prompt = SMALL.batch()
    with attempt(name, "listing its trajectories on a small problem", fix):
        attached(small, SMALL.denoiser)
        try:
            listed = enumerate_trajectories(small, SMALL.denoiser, prompt)
        except NotImplementedError:  # a sampler need not list its choices
            return
        check_draws(small, SMALL.denoiser, prompt, listed, DRAWS)


CHECKS = (
    check_commits,
    check_forbidden_tokens,
    check_recorded_log_prob,
    check_resume,
    check_probabilities,
)
