"""Countdown: reach a target with given numbers. Examples of reasoning-gym's ``countdown``, scored by ``arithmetic``."""

from __future__ import annotations

from dlmrl_kit.core.registry import register
from dlmrl_kit.core.validate import check
from dlmrl_kit.scoring import arithmetic
from dlmrl_kit.tasks.base import Example, Task, prompt_text, weighted_mean
from dlmrl_kit.tasks.checks import check_int, check_reward_weights
from dlmrl_kit.tasks.gym_dataset import GymDataset, gym_dataset


@register("task")
class Countdown(Task):
    """Write an expression that uses each given number exactly once and equals the target.

    The prompt is the numbers with spaces between them, ``=``, the target, ``:``; the answer is an expression without
    spaces in the language of ``dlmrl_kit.scoring.arithmetic``. Example: ``"71 33 12=116:"``, ``"71+33+12"``. An
    instruction stands on the lines before. ``meta`` has ``"numbers"`` (a list, in the order of the prompt) and
    ``"target"``. Examples with the same target and the same numbers, in whatever order, count as one.

    Reward components:

    * ``format``: 1 if the completion is an expression that has a value and uses each given number exactly once and no
      other, else 0. Text after the expression, also ``=116``, makes it invalid; white space around it does not;
    * ``solved``: 1 if moreover the value is exactly the target, else 0;
    * ``reward``: their weighted mean.

    reasoning-gym's own scorer is never called, because it runs the model's text as Python.

    Args:
        min_numbers, max_numbers: how many numbers are given, 2 to 8.
        min_value, max_value: range of the numbers, 1 to 1000.
        min_target, max_target: range of the target, at least 1.
        seed: decides which examples there are, and in which order.
        num_pretrain, num_train, num_heldout: examples of each split. A draw takes about 1.8 ms with the default ranges
            (more with more numbers or a narrow range of targets), and every 5 draws give 2, 2 and 1 of the splits.
        solved_weight, format_weight: weights of the reward, at least one positive. By default the right numbers alone
            earn 0.1, a right solution 1.
        instruction: tells models that follow instructions what to do; by default the numbers and target stand alone.

    Raises:
        ValueError: a parameter out of its range, or targets that no product of the numbers reaches.
    """

    generator_parameters = ("min_numbers", "max_numbers", "min_value", "max_value", "min_target", "max_target")
    max_misses = 200  # a failure of reasoning-gym's generator costs 60 ms

    def __init__(
        self,
        min_numbers: int = 3,
        max_numbers: int = 3,
        min_value: int = 1,
        max_value: int = 99,
        min_target: int = 10,
        max_target: int = 999,
        seed: int = 0,
        num_pretrain: int = 8000,
        num_train: int = 2000,
        num_heldout: int = 256,
        solved_weight: float = 0.9,
        format_weight: float = 0.1,
        instruction: str = "",
    ) -> None:
        super().__init__(num_pretrain, num_train, num_heldout)
        check_int(self, "max_numbers", max_numbers, 2, 8)
        check_int(self, "min_numbers", min_numbers, 2, max_numbers)
        check_int(self, "max_value", max_value, 1, 1000)
        check_int(self, "min_value", min_value, 1, max_value)
        check_int(self, "max_target", max_target, 1)
        check_int(self, "min_target", min_target, 1, max_target)
        largest = max(max_value**max_numbers, max_value * max_numbers)  # the sum is larger where max_value is 1
        check(min_target <= largest, self, "min_target", min_target, f"reachable: at most {largest}")
        check_int(self, "seed", seed, 0)
        check_reward_weights(self, solved_weight=solved_weight, format_weight=format_weight)
        self.seed = seed
        self.instruction = instruction
        self.ranges = {
            "min_numbers": min_numbers,
            "max_numbers": max_numbers,
            "min_value": min_value,
            "max_value": max_value,
            "min_target": min_target,
            "max_target": max_target,
        }
        self.weights = {"format": format_weight, "solved": solved_weight}
        self._dataset: GymDataset | None = None

    def candidate(self, number: int) -> Example | None:
        """Returns example ``number`` of the stream; None where reasoning-gym found none in the ranges."""
        if self._dataset is None:
            self._dataset = gym_dataset("countdown", self.seed, **self.ranges)
        try:
            made = self._dataset[number]["metadata"]
        except ValueError:
            return None
        given, target = made["numbers"], made["target"]
        start = f"{self.instruction}\n" if self.instruction else ""
        prompt = f"{start}{' '.join(map(str, given))}={target}:"
        example = Example(prompt, made["expression"].replace(" ", ""), {"numbers": given, "target": target})
        # The generator works on sympy's text of an expression; whatever that looks like, only right answers get out.
        return example if self.score(example.answer, example)["solved"] else None

    def canonical(self, example: Example) -> str:
        """Returns the prompt with the numbers sorted and without the instruction."""
        given, target = _question(example)
        return f"{' '.join(map(str, given))}={target}"

    def score(self, completion: str, example: Example) -> dict[str, float]:
        """Returns the components ``format``, ``solved`` and ``reward``, each in [0, 1]; never raises."""
        given, target = _question(example)
        value = arithmetic.value_of(completion)
        well_formed = value is not None and arithmetic.numbers_in(completion) == given
        values = {"format": float(well_formed), "solved": float(well_formed and value == target)}
        return {**values, "reward": weighted_mean(values, self.weights)}


def _question(example: Example) -> tuple[list[int], int]:
    """Returns the given numbers, sorted, and the target."""
    given, target = prompt_text(example.prompt).rpartition("\n")[2].removesuffix(":").split("=")
    return sorted(map(int, given.split())), int(target)
