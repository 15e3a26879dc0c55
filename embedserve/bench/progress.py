"""A progress bar on stderr, where that is a terminal; drawn between cells only, so that it costs nothing measured."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from embedserve.bench.plan import Cell, Setting

__all__ = ["ProgressBar"]


class ProgressBar:
    """How far a sweep is; implements `sweep.Progress`. Gone from the screen when left."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description:<60}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
            auto_refresh=False,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("loading the model", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        self._bar.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def planned(self, cells: int) -> None:
        """So many cells are to be measured."""
        self._bar.update(self._task, total=cells)

    def loading(self, setting: Setting) -> None:
        """As `sweep.Progress`."""
        self._say(f"loading for {setting}")

    def measuring(self, cell: Cell) -> None:
        """As `sweep.Progress`."""
        self._say(f"{cell.setting}, {cell.concurrency} caller{'s' * (cell.concurrency > 1)}")

    def measured(self) -> None:
        """As `sweep.Progress`."""
        self._bar.advance(self._task)

    def _say(self, what: str) -> None:
        self._bar.update(self._task, description=what)
        self._bar.refresh()
