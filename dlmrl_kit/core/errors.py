"""Errors that the user can fix: the command line prints their text without a traceback and exits with code 2."""

from __future__ import annotations


class UserError(Exception):
    """Something in a recipe, a command or a file is wrong; the message says what, and what would be right."""


class RegistryError(UserError):
    """A kind or component does not exist, is ambiguous, or is registered twice, or a declaration cannot be."""


class RecipeError(UserError):
    """A recipe cannot be loaded, or its components do not fit together."""


class DeclarationError(RecipeError):
    """A component declares its keys wrongly.

    Attributes:
        component: its name.
        problem: what is wrong, without the name.
    """

    def __init__(self, component: str, problem: str) -> None:
        super().__init__(component, problem)
        self.component, self.problem = component, problem

    def __str__(self) -> str:
        return f"{self.component}: {self.problem}"


class ParameterError(UserError, ValueError):
    """A constructor refuses the value of a parameter.

    Attributes:
        component: name of the class.
        subject: the parameter, or an expression of parameters: ``k``, ``tasks[0]``, ``low + high``.
        reason: what is wrong with it.
        parameters: names of the parameters concerned.
        joint: text between subject and reason in the message.
    """

    def __init__(
        self, component: str, subject: str, reason: str, parameters: tuple[str, ...] = (), joint: str = " "
    ) -> None:
        super().__init__(component, subject, reason, parameters, joint)
        self.component, self.subject, self.reason, self.joint = component, subject, reason, joint
        self.parameters = parameters or (subject,)

    def message(self, component: str) -> str:
        """Returns the message with another name of the component, such as one with a gin scope."""
        return f"{component}.{self.subject}{self.joint}{self.reason}"

    def __str__(self) -> str:
        return self.message(self.component)


class MissingKeyError(UserError, KeyError):
    """A component was called with a tensordict that lacks a key that it reads."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would quote it


class CheckpointError(UserError):
    """A run folder or checkpoint is missing, is incomplete, or belongs to another recipe."""


class FileError(UserError):
    """A file or folder cannot be written: the disk is full, it was removed, or it may not be changed."""


class ComponentError(UserError):
    """A component of a plugin raised an error, or returned something of another form than its kind promises."""


class TrainingError(UserError):
    """Training cannot go on: several non-finite losses in a row, or old and new log-probabilities that disagree."""


class NotFiniteError(TrainingError):
    """Numbers are NaN or infinite: weights, losses or gradients in a row, or a policy's probabilities."""


class ProcessLostError(TrainingError):
    """Another process of a run of several has ended, so that this one cannot go on either."""


class StoppedError(TrainingError):
    """The run was asked to end by SIGTERM, and has ended in order."""
