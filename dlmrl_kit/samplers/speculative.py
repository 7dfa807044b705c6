"""Speculative denoising: the trajectories of another sampler, in fewer forwards one after another (arXiv 2509.18085).

A sampler's action is a function of the state, the predictions f in it and the step's noise, a_t = D(x_t, f(x_t),
noise_t), and the noise of all steps is known in advance. So states to come can be guessed with older predictions:

    x'_t = x_t,    x'_{s+1} = x'_s after D(x'_s, f(x_{t-1}), noise_s)

One forward runs x_t and x'_{t+1} .. x'_{t+A}. While a guess is the state that is really reached, its own predictions
are there already, and the next step is taken from them; where it is not, new guesses are made. Whatever is guessed,
every step is D of the predictions in its own state: the trajectory of a seed is the sampler's own, and so is the
distribution (docs/mathematics.md). Forwards one after another are saved; states are not, as each step needs that of its
own state, and each wrong guess is one more.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dlmrl_kit.core.policy import Policy
from dlmrl_kit.core.registry import register
from dlmrl_kit.core.seeding import combine_seeds
from dlmrl_kit.core.trajectory import bring, on_host
from dlmrl_kit.core.validate import check
from dlmrl_kit.samplers.base import Sampler, View
from dlmrl_kit.samplers.continuous import Continuous, Rollout
from dlmrl_kit.samplers.recorder import MaskRecorder, Predicted, Rows


@register("sampler", paper="arXiv 2509.18085")
class Speculative(Continuous):
    """Samples the trajectories of another sampler as ``Continuous`` does, several denoising steps in a forward.

    It can pay where a forward of few states takes as long as one of more, as small batches may on a GPU. Where each
    state costs its share, as on a CPU, ``Continuous`` is faster.

    Args:
        sampler: what is sampled. It fills masks, each sample by itself.
        ahead: so many of the states to come are guessed for a row at most; at least 1.
        states: a forward runs at most so many states. Rows come first, and guesses have the places that are left.
            None: no limit, so that no row waits and each has ``ahead`` guesses.

    Reads and writes as the sampler.

    Raises:
        ValueError: a value out of range.
    """

    not_sizes = (*Continuous.not_sizes, "ahead")  # which changes no trajectory

    def __init__(self, sampler: Sampler, ahead: int = 3, states: int | None = None) -> None:
        super().__init__(sampler, states)
        check(ahead >= 1, self, "ahead", ahead, "at least 1")
        self.ahead = ahead

    def states_at_once(self, rows: int) -> int:
        """Returns the places of a forward, or how many of them so many completions and their guesses need."""
        return super().states_at_once(rows * (1 + self.ahead))

    def rollout(self, steps: range, prompt: TensorDictBase, recorder: MaskRecorder, policy: Policy) -> Rollout:
        """Returns the rollout; arguments as ``advance``."""
        return GuessingRollout(self.ahead, self, steps, prompt, recorder, policy)


class GuessingRollout(Rollout):
    """A rollout in which forwards run guesses of the states to come.

    Args:
        ahead: A, the most guesses of a row.
        sampler, steps, prompt, recorder, policy: as ``Rollout``.
    """

    def __init__(
        self,
        ahead: int,
        sampler: Continuous,
        steps: range,
        prompt: TensorDictBase,
        recorder: MaskRecorder,
        policy: Policy,
    ) -> None:
        super().__init__(sampler, steps, prompt, recorder, policy)
        batch, length = recorder.ids.shape
        self.guesses = torch.zeros(ahead, batch, length, dtype=torch.int64)
        """The states guessed for the steps to come, int64 [A, B, L], on the CPU."""
        self.count = torch.zeros(batch, dtype=torch.int64)
        """How many guesses each row has: int64 [B], on the CPU."""

    def take(self, rows: Tensor) -> None:
        """Takes a step of rows, int64 [n] on the CPU, and then one more for each guess that was right."""
        ids, most = on_host(self.recorder.ids)[rows], len(self.guesses)
        if self.sampler.states is not None:
            most = min(most, self.sampler.states // len(rows) - 1)
        each = [rows, *(rows[self.count[rows] > number] for number in range(most))]
        states = [ids, *(self.guesses[number, some] for number, some in enumerate(each[1:]))]
        step = torch.cat([self.step[some] + number for number, some in enumerate(each)])
        predicted = self.predicted(torch.cat(each), step, torch.cat(states))
        first, right = 0, torch.ones_like(self.count, dtype=torch.bool)
        for number, some in enumerate(each):
            reached = first + right[some].nonzero().squeeze(-1)
            first += len(some)
            if len(reached):
                self._take(predicted.part(reached), number, most, right)

    def _take(self, predicted: Predicted, number: int, most: int, right: Tensor) -> None:
        """Takes a step of rows, which may lead to what was guessed; guesses anew where it does not.

        Args:
            predicted: of the rows.
            number: of the guess.
            most: how many guesses of a row a forward runs.
            right: bool [B], which is set for these rows: whether the guess was right and is predicted, too.
        """
        step = self.there(self.step[on_host(predicted.rows.numbers)])

        def then(some: Rows, view: View) -> None:
            rows = on_host(some.numbers)
            self.step[rows] += 1
            if number < most:
                same = (self.guesses[number, rows] == on_host(self.recorder.ids)[rows]).all(-1)
                right[rows] = same & (self.count[rows] > number)
            else:
                right[rows] = False
            self._guess(view, some, (~right[rows]).nonzero().squeeze(-1), most)

        self.sampler.act(step, predicted, self.recorder, self.policy, then)

    def _guess(self, view: View, some: Rows, index: Tensor, most: int) -> None:
        """Guesses the states to come.

        Args:
            view: of ``some`` in the state before.
            some: rows that took a step from there.
            index: int64 [n], of which rows among these.
            most: how many states to guess of each.
        """
        rows = on_host(some.numbers)[index]
        ids, view = on_host(self.recorder.ids)[rows], view.at(self.there(index))
        self.count[rows] = 0
        for number in range(most):
            step, still_open = self.step[rows] + number, on_host(view.allowed) & (ids == self.policy.mask_id)
            # Behind the block nothing was predicted, and at the end of a row there is no state to come.
            going = (still_open.any(-1) & self.runs(ids, step)).nonzero().squeeze(-1)
            if len(going) == 0:
                break
            rows, ids, step = rows[going], ids[going], step[going]
            view = view.at(self.there(going)).narrow(self.there(still_open[going]))
            decision = self.sampler.decide(view, combine_seeds(self.seed[self.there(rows)], self.there(step)))
            bring(decision.committed, decision.tokens)
            ids = torch.where(on_host(decision.committed), on_host(decision.tokens), ids)
            self.guesses[number, rows] = ids
            self.count[rows[self.runs(ids, step + 1) & self._at_hand(view, ids)]] = number + 1

    def _at_hand(self, view: View, ids: Tensor) -> Tensor:
        """Returns whether states int64 [R, L] may be run beside those of ``view``: bool [R], on the CPU.

        Where a forward runs blocks, those of the next block would be longer.
        """
        return (on_host(view.allowed) & (ids == self.policy.mask_id)).any(-1) | (not self.blockwise)
