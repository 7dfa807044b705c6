"""Pre-trains a denoiser on demonstrations, as ``dlmrl pretrain`` does."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from dlmrl_kit.algorithm.algorithm import Pretraining
from dlmrl_kit.core import seeding
from dlmrl_kit.core.checksums import write_checksums
from dlmrl_kit.core.component import trained
from dlmrl_kit.core.errors import CheckpointError, NotFiniteError
from dlmrl_kit.core.files import atomic_folder, write_atomic
from dlmrl_kit.core.finite import require_finite
from dlmrl_kit.core.results import EvalResult, PretrainResult, RunObserver
from dlmrl_kit.core.run_folder import RECIPE, RESULT, holds_run, one_writer, require
from dlmrl_kit.core.validate import check
from dlmrl_kit.policies.saving import save_transformers
from dlmrl_kit.pretraining.demonstrations import Demonstrations, batch_of, encode_demonstrations
from dlmrl_kit.pretraining.heldout import encode_heldout, heldout_loss
from dlmrl_kit.recipe.load import Recipe, load_recipe
from dlmrl_kit.rollout.services import cut_prompts, require_examples, training_indices
from dlmrl_kit.rollout.services import examples as examples_of
from dlmrl_kit.tasks.base import said_of
from dlmrl_kit.training.blaming import blaming
from dlmrl_kit.training.blow_up import start_weights, what_is_left
from dlmrl_kit.training.checkpoint import checkpoints, load_checkpoint, prune, save_checkpoint
from dlmrl_kit.training.evaluation import evaluate
from dlmrl_kit.training.export import remember_recipe
from dlmrl_kit.training.identity import Identity, identity_of
from dlmrl_kit.training.record import check_unchanged, note_failure, notes, record_changes, start_record
from dlmrl_kit.training.start import find_device, start_policy

RECENT = 50
"""A reported loss is the mean over this many last steps."""


def step_noise(rows: Tensor, size: int, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Derives the noise of an optimiser step: a seed int64 [B] for each row, and what ``objective`` calls ``spread``.

    Args:
        rows: int64 [B], the demonstrations of the step, as ``training_indices`` gives them.
        size: how many demonstrations there are.
        step: number of the optimiser step.
        seed: of the run.
    """
    place = torch.arange(len(rows), device=rows.device)
    base = torch.full_like(rows, seeding.derive_seed(seed, "pretrain"))
    passes = (step * len(rows) + place) // size
    own = seeding.combine_seeds(seeding.combine_seeds(base, rows), passes)
    # One shift for the whole step, so that what is spread evenly has no other noise.
    shift = seeding.uniforms(seeding.sample_seeds(1, rows.device, seed, "pretrain", step), purpose="shift")
    return own, (shift + place / len(rows)) % 1


def pretrain(
    recipe: Recipe, folder: Path, *, observer: RunObserver | None = None, accept_changes: bool = False
) -> PretrainResult:
    """Runs a pre-training recipe, or goes on with the unfinished run of the same recipe in ``folder``.

    A run that goes on may be made longer. Whatever else it depends on must be as it was: settings, files, package
    versions, device and threads.

    Args:
        recipe: from ``load_recipe``, with root ``Pretraining``.
        folder: gets ``recipe.gin``, ``run.json``, ``checkpoints/``, ``model/`` and ``result.json``.
        observer: is told how the run goes.
        accept_changes: whether to go on although something that the run depends on has changed.

    Returns:
        The folder of the model, its loss, and its accuracy on held-out examples.

    Raises:
        UserError: the recipe is broken, ``folder`` holds another run, or something that the run depends on has changed.
    """
    with one_writer(folder):
        built = recipe.build_pretraining()
        now, length = identity_of(recipe, built, find_device(built.pretrainer.device)), _length(recipe)
        goes_on, found, changed = holds_run(folder), checkpoints(folder), []
        if goes_on:
            _check_recipe(folder, recipe, length, accept_changes)
            finished = bool(found) and found[-1][0] == built.pretrainer.steps
            changed = check_unchanged(folder, now, length=length, finished=finished, accept=accept_changes)
        with blaming(recipe, folder):
            run = PretrainRun(built, folder, recipe.name, observer or RunObserver())
            run.identity = now
            data = run.start()
        if goes_on:
            record_changes(folder, recipe, now, changed, run.done)
        else:  # not earlier, as a failure must leave no folder
            start_record(folder, recipe, now)
        for note in notes(changed, length, float(run.scheduler.get_last_lr()[0])):
            run.observer.on_message(note)
        try:
            with blaming(recipe, folder):
                return run.run(data)
        except Exception as error:
            note_failure(folder, error)
            raise


def _length(recipe: Recipe) -> str:
    return recipe.key_in("pretrainer", "steps")


def _check_recipe(folder: Path, recipe: Recipe, length: str, accept: bool) -> None:
    """Compares the recipe with that of the run in a folder, apart from how long it is.

    Raises:
        CheckpointError: it is another one, and that is not accepted.
    """
    # If ``recipe`` has imports, the user has allowed them before.
    stored = load_recipe(str(folder / RECIPE), allow_imports=bool(recipe.imports))
    before, now = ({key: b.text for key, b in r.bindings.items() if key != length} for r in (stored, recipe))
    if before != now and not accept:
        changed = next(key for key in (*before, *now) if before.get(key) != now.get(key))
        raise CheckpointError(
            f"{folder} holds a run of another recipe; choose another folder ({changed} was {before.get(changed)}, now "
            f"{now.get(changed)}), or accept that with --accept-changes"
        )


class PretrainRun:
    """One run of pre-training; call ``start``, then ``run``.

    Args:
        built: the components of the recipe.
        folder: the run folder.
        name: of the recipe.
        observer: is told how the run goes.

    Raises:
        UserError: a split is empty, the policy or the device cannot be used, or the policy leaves open how many blocks
            recompute their activations, which is for reinforcement learning.
    """

    def __init__(self, built: Pretraining, folder: Path, name: str, observer: RunObserver) -> None:
        self.built = built
        self.settings = built.pretrainer
        self.folder = folder
        self.name = name
        self.observer = observer
        self.started = time.perf_counter()
        self.done = 0
        self.losses: list[float] = []  # the last RECENT ones
        self.loss_before: float | None = None  # held-out, of the policy that the run began with
        self.identity: Identity = {}  # what the run depends on; checkpoints hold it
        recomputes = built.policy.gradient_checkpointing
        expected = "True or False in pre-training, whose activations the kit does not estimate"
        check(recomputes != "auto", built.policy, "gradient_checkpointing", recomputes, expected)
        require_examples(built.task, "pretrain", "heldout")
        self.policy, self.optimiser, self.scheduler = start_policy(built.policy, self.settings, self.settings.steps)
        self.settings.check_policy(self.policy)
        self.parameters = [p for _, p in self.policy.trainable()]
        self.length = built.sampler.completion_length
        self.heldout, self.notes = encode_heldout(
            built.task, built.demonstrator, self.policy, self.length, self.settings
        )

    def start(self) -> Demonstrations:
        """Restores the newest checkpoint, if there is one; returns the encoded demonstrations.

        The task must be able to score: that is tried on an empty completion, before hours are spent on training.

        Raises:
            UserError: the task cannot score, a demonstration cannot be encoded, or the checkpoint is damaged or has
                more steps than the run is to have.
        """
        task = self.built.task
        task.score("", examples_of(task, "heldout", [0])[0])
        prune(self.folder)
        found = checkpoints(self.folder)
        if found and found[-1][0] > self.settings.steps:
            raise CheckpointError(f"{found[-1][1]} is of more steps than the {self.settings.steps} of the recipe")
        if found:
            self.done, counters = load_checkpoint(found[-1][1], trained(self.policy), self.optimiser, self.scheduler)
            self.losses, self.loss_before = counters["losses"], counters.get("loss_before")
        parameters = sum(p.numel() for p in self.parameters)
        self.observer.on_start(
            folder=self.folder,
            recipe=self.name,
            total_updates=self.settings.steps,
            first_update=self.done,
            info={
                "parameters": parameters,
                "device": str(self.policy.device),
                "pretrain_examples": task.size("pretrain"),
                "heldout_examples": task.size("heldout"),
            },
        )
        data = encode_demonstrations(
            task, self.built.demonstrator, self.policy, self.length, too_long=self.settings.too_long
        )
        cut = [note for split in ("pretrain", "heldout") for note in cut_prompts(task, split, self.policy)]
        for note in (*said_of(task), *cut, *data.notes("pretrain", self.length), *self.notes):
            self.observer.on_message(note)
        return data

    def run(self, data: Demonstrations) -> PretrainResult:
        """Trains to the end, writes the model and evaluates it on held-out examples."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.done == 0:
            self.loss_before = self._heldout_loss()
        try:
            for step in range(self.done, self.settings.steps):
                self.losses = [*self.losses, self._step(data, step)][-RECENT:]
                self._after(step + 1)
        except NotFiniteError as error:
            left = what_is_left(self.folder, lambda: start_weights(self.built.policy, self.settings.seed))
            raise NotFiniteError(f"{error}; {left}") from error
        return self._finish()

    def _step(self, data: Demonstrations, step: int) -> float:
        """Takes one gradient step; returns its loss. Raises NotFiniteError if a number is not finite."""
        settings, number = self.settings, len(data.prompts)
        rows = torch.tensor(
            training_indices(number, settings.batch_size, step, settings.seed), device=self.policy.device
        )
        seed, spread = step_noise(rows, number, step, settings.seed)
        batch, total = batch_of(data, rows, seed, self.policy, settings, self.length), 0.0
        for part in torch.arange(len(rows), device=rows.device).split(settings.micro_batch_size or len(rows)):
            prompt, mask, completion, counted = (tensor[part] for tensor in batch)
            loss = settings.objective(self.policy, prompt, mask, completion, seed[part], spread[part], counted)
            share = loss * (len(part) / len(rows))
            share.backward()
            total += share.item()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.max_grad_norm)
        if not math.isfinite(total) or not math.isfinite(norm.item()):
            raise NotFiniteError(f"pre-training step {step}: loss {total}, gradient norm {norm.item()}")
        self.optimiser.step()
        self.scheduler.step()
        self.optimiser.zero_grad(set_to_none=True)
        return total

    def _heldout_loss(self) -> float | None:
        """Estimates the held-out loss of the policy as it is; None where there are no held-out demonstrations."""
        if self.heldout is None:
            return None
        return heldout_loss(self.heldout, self.policy, self.settings, self.length)

    def _after(self, done: int) -> None:
        """Reports metrics and saves a checkpoint if these are due after ``done`` steps."""
        settings = self.settings
        last = done == settings.steps
        if done % settings.log_every == 0 or last:
            metrics = {"loss": self._loss(), "learning_rate": float(self.scheduler.get_last_lr()[0])}
            self.observer.on_update(done - 1, metrics)
        if done % settings.checkpoint_every == 0 or last:
            require_finite(trained(self.policy).items(), f"after pre-training step {done}")
            counters = {"losses": self.losses, "loss_before": self.loss_before}
            require(self.folder)
            state = (trained(self.policy), self.optimiser, self.scheduler, counters)
            save_checkpoint(self.folder, done, *state, self.identity)

    def _loss(self) -> float:
        """Returns the mean loss of the last ``RECENT`` steps."""
        return sum(self.losses) / len(self.losses)

    def _evaluate(self, temperature: float, samples: int) -> EvalResult:
        return evaluate(
            self.policy,
            self.built.sampler,
            self.built.task,
            size=self.settings.eval_size,
            temperature=temperature,
            samples_per_prompt=samples,
            seed=self.settings.seed,
            batch_size=self.settings.eval_batch_size,
            precision=self.settings.precision,
        )

    def _finish(self) -> PretrainResult:
        """Writes the model, evaluates it, and writes ``result.json``, the last file: a run that has it is complete."""
        seconds, loss = time.perf_counter() - self.started, self._loss()
        model = self.folder / "model"
        require(self.folder)
        with atomic_folder(model) as temporary:
            save_transformers(self.policy, temporary)
            remember_recipe(temporary, self.folder)
            write_checksums(temporary)
        after = self._heldout_loss()
        greedy, sampled = (self._evaluate(0.0, 1), self._evaluate(1.0, 8)) if self.settings.eval_size else (None, None)
        if greedy is not None and greedy.caution():
            self.observer.on_message(greedy.caution())
        result = PretrainResult(
            folder=self.folder,
            model=model,
            steps=self.settings.steps,
            seconds=seconds,
            loss=loss,
            accuracy=None if greedy is None else greedy.accuracy,
            sampled_accuracy=None if sampled is None else sampled.accuracy,
            pass_at_8=None if sampled is None else sampled.pass_at_k[8],
            task=self.built.task.label() if greedy is None else greedy.task,
            heldout_loss_before=self.loss_before,
            heldout_loss=after,
        )
        summary: dict[str, object] = {"recipe": self.name, "steps": result.steps, "seconds": seconds, "loss": loss}
        summary |= {"heldout_loss": {"before": self.loss_before, "after": after}}
        summary |= {name: e.to_json() for name, e in (("greedy", greedy), ("sampled", sampled)) if e is not None}
        write_atomic(self.folder / RESULT, json.dumps(summary, indent=1))
        self.observer.on_end(result)
        return result
