"""Which plugin's component is to blame for an error, by the calls that led to it."""

from __future__ import annotations

import traceback
from importlib import metadata
from pathlib import Path
from types import TracebackType

from dlmrl_kit.core.dependencies import Dependent
from dlmrl_kit.core.errors import ComponentError, UserError
from dlmrl_kit.core.installed import distributions_of
from dlmrl_kit.core.version import DISTRIBUTION, PACKAGE, VERSION

_CHECKS = {str(Path(__file__).with_name(name)) for name in ("contract.py", "interface.py")}


def is_foreign(cls: type) -> bool:
    """Tells whether a class is not the kit's own."""
    return cls.__module__.split(".", 1)[0] != PACKAGE


def named(cls: type) -> str:
    """Returns the name of a component with its package and, where pip installed that, its version."""
    package = cls.__module__.split(".", 1)[0]
    origin = distribution_of(package)
    return f"{cls.__name__} of {package}" + (f" ({origin})" if origin else "")


def distribution_of(package: str) -> str:
    """Returns name and version of what pip installed a package with: ``acme-steps 0.1.0``; "" if it did not."""
    if package == PACKAGE:  # to find out otherwise takes long the first time
        return f"{DISTRIBUTION} {VERSION}"
    for name in distributions_of(package):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return ""


def blame(error: Exception) -> ComponentError | None:
    """Makes the one-line error that names the component of a plugin in which an error came up.

    Args:
        error: as it was caught.

    Returns:
        What to raise from it; None if the error is the user's to fix already, or did not come up in such a component.
    """
    found = None if isinstance(error, UserError) else _innermost(error.__traceback__)
    if found is None:
        return None
    cls, where = found
    return ComponentError(f"{named(cls)} failed with {told(error)} ({where})")


def culprit(error: Exception) -> type | None:
    """Returns the class of the component that ``blame`` names; None if it names none."""
    found = _innermost(error.__traceback__)
    return found[0] if found else None


def told(error: BaseException) -> str:
    """Returns type and message of an error in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:300]}" if message else type(error).__name__


def _innermost(trace: TracebackType | None) -> tuple[type, str] | None:
    """Finds the last call of a method of a foreign component; returns the class, and the line that it had come to."""
    found = None
    while trace is not None:
        frame, code = trace.tb_frame, trace.tb_frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        around = found is not None and code.co_filename in _CHECKS  # what wraps the methods of plugins
        if isinstance(owner, Dependent) and is_foreign(type(owner)) and not around:
            found = type(owner), f"{code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def text_of(error: BaseException) -> str:
    """Returns the traceback of an error, for a file."""
    return "".join(traceback.format_exception(error))
