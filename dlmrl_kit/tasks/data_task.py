"""``DataTask``: where a task's training and test set are, which files and commits that means, and what is told of them.

training set    ``data``, its ``split``
test set        ``test_data``; without it ``test_split`` of ``data``; without both, or where ``data`` is one file,
                the end of ``data``
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from dlmrl_kit.core.dependencies import anchored_paths
from dlmrl_kit.core.validate import check
from dlmrl_kit.tasks.base import BaseTask
from dlmrl_kit.tasks.checks import check_int
from dlmrl_kit.tasks.rows import Origin, Source


class DataTask(BaseTask):
    """Base class of tasks whose examples are the rows of data sets; nothing is read before it is needed.

    Args:
        data: the training set: a file (JSON, JSON Lines, CSV, TSV, parquet, each also ``.gz``), a folder laid out like
            a data set of the hub, or the id of one.
        config: of that data set, if it has several configurations.
        split: of that data set.
        revision: of the hub's data set: a commit, tag or branch; None: as ``pinned`` says, or the newest. A run records
            the commit.
        test_data: the test set, as ``data``; None: ``test_split`` of ``data``, or, where that is None or ``data`` a
            file, the last ``holdout`` rows of ``data`` and at most half of them, which training then never sees.
        test_split, test_revision: as ``split`` and ``revision``, of the test set; the second is for ``test_data`` only.
        holdout: as ``test_data`` says.

    Raises:
        ValueError: a parameter out of its range, or a revision of a file, a folder or no test set.
    """

    at_hand = True
    pinned: ClassVar[Mapping[str, str]] = {}
    """Commits of data sets of the hub that are taken where no revision is given, by their ids."""

    def __init__(
        self,
        data: str,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        test_data: str | None = None,
        test_split: str | None = None,
        test_revision: str | None = None,
        holdout: int = 500,
    ) -> None:
        for name, text in (("data", data), ("test_data", test_data)):
            given = isinstance(text, str) and bool(text)
            check(given or (text is None and name == "test_data"), self, name, text, "a file or the id of a data set")
        named = {"config": config, "revision": revision, "test_split": test_split, "test_revision": test_revision}
        for name, text in {"split": split, **named}.items():
            given = isinstance(text, str) and bool(text)
            check(given or (text is None and name in named), self, name, text, "a text that is not empty")
        check_int(self, "holdout", holdout, 1)
        for prefix, commit, place in (("", revision, data), ("test_", test_revision, test_data)):
            fits = commit is None or (place is not None and Source(place).local is None)
            check(fits, self, f"{prefix}revision", commit, f"None, unless {prefix}data is a data set of the hub")
        self.data, self.config, self.split, self.revision = data, config, split, revision
        self.test_data, self.test_split, self.test_revision = test_data, test_split, test_revision
        self.holdout = holdout

    @abstractmethod
    def origins(self) -> Sequence[Origin]:
        """Returns where the rows were read, which it does if need be: the training set and, if it is another one, the
        test set.

        Raises:
            UserError: the data cannot be read.
        """

    @abstractmethod
    def left_out(self) -> Sequence[str]:
        """Returns in words what of the rows is no example, a line each."""

    @classmethod
    def anchored(cls, settings: Mapping[str, object]) -> dict[str, object]:
        """Returns files and folders as absolute paths."""
        return anchored_paths(settings, "data", "test_data")

    def files(self) -> tuple[Path, ...]:
        """Returns the files and folders that the examples are from."""
        return tuple(source.local for source in self.sources() if source.local is not None)

    def versions(self) -> dict[str, str]:
        """Returns the commits of the hub's data sets that the examples are from."""
        read = [origin for origin in self.origins() if origin.source.local is None]
        return {f"{type(self).__name__} {origin.source}": origin.revision for origin in read}

    def notes(self) -> list[str]:
        """Returns where the examples are from, and what was left out."""
        return [f"data from {' and '.join(map(str, self.origins()))}", *self.left_out()]

    def sources(self) -> tuple[Source, ...]:
        """Returns where the training set and, if it is another one, the test set are."""
        revision = self.revision or self.pinned.get(self.data)
        source = Source(self.data, self.split, self.config, revision)
        if self.test_data is not None:
            test_revision = self.test_revision or self.pinned.get(self.test_data)
            return source, Source(self.test_data, self.test_split or "test", None, test_revision)
        one_file = source.local is not None and source.local.is_file()
        if self.test_split is None or one_file:
            return (source,)
        return source, Source(self.data, self.test_split, self.config, revision)
