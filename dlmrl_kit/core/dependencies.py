"""What a component depends on beside its settings: files, and the folder that relative paths start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class Dependent:
    """The part of every component's base class that says what else must stay the same for a run to stay the same.

    A resumed run compares the contents of these files with those it started with. Components that a component takes as
    parameters are asked themselves; it need not name their files.
    """

    @classmethod
    def anchored(cls, settings: Mapping[str, object]) -> dict[str, object]:
        """Returns new values for those settings that depend on the current folder, such as a relative path.

        Recipes keep these values, so that they mean the same in any folder. Default: no setting does.

        Args:
            settings: what the constructor is going to be given, literals only, defaults included.
        """
        return {}

    def files(self) -> tuple[Path, ...]:
        """Returns the files and folders whose contents the component depends on. Default: none."""
        return ()

    def versions(self) -> Mapping[str, str]:
        """Returns the versions of what the component depends on that is no file here, such as data of the hub, by name.

        A resumed run compares them as it compares files. Default: nothing.
        """
        return {}


def anchored_path(text: object) -> str | None:
    """Returns the absolute path of a file or folder named by a relative one; None for whatever else ``text`` is."""
    if not isinstance(text, str) or not text or "\0" in text:
        return None
    path = Path(text).expanduser()
    return None if Path(text).is_absolute() or not path.exists() else str(path.absolute())
