"""Where a statement of a recipe stands, and the errors that name it."""

from __future__ import annotations

from dataclasses import dataclass

from dlmrl_kit.core.errors import RecipeError


@dataclass(frozen=True)
class Where:
    """Where a statement stands: a file and line, or (no line) an option of the command line."""

    source: str
    line: int | None = None

    @property
    def command_line(self) -> bool:
        """Whether this is an override rather than a line of a file."""
        return self.line is None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class StatementError(RecipeError):
    """One statement of a recipe is wrong: a line of a file, or an option of the command line.

    Attributes:
        where: the statement.
        reason: what is wrong with it.
        joint: what stands between the two in the message.
    """

    def __init__(self, where: Where, reason: str, joint: str = ": ") -> None:
        super().__init__(where, reason, joint)
        self.where, self.reason, self.joint = where, reason, joint

    def __str__(self) -> str:
        return f"{self.where}{self.joint}{self.reason}"


class UnusedBindingError(StatementError):
    """A binding that concerns nothing: no component of the recipe takes it, or nothing uses the macro.

    Attributes:
        component: the component or base class it is for; "" for a macro.
        parameter: its parameter, or the name of the macro.
    """

    def __init__(self, where: Where, reason: str, joint: str, component: str, parameter: str) -> None:
        super().__init__(where, reason, joint)
        self.args = (where, reason, joint, component, parameter)
        self.component, self.parameter = component, parameter


class BuildError(RecipeError):
    """A component refuses a value or cannot be constructed, or the components do not fit together.

    Attributes:
        place: the line or option at fault, as text; the recipe's file where it is no single one.
        reason: what is wrong.
        component: the component, with its scope; "" for the recipe as a whole.
        parameter: the parameter that is refused; "" where it is none, or not known.
    """

    def __init__(self, place: str, reason: str, component: str = "", parameter: str = "") -> None:
        super().__init__(place, reason, component, parameter)
        self.place, self.reason, self.component, self.parameter = place, reason, component, parameter

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"
